"""From weights to the engine's ONNX graph. Needs torch; a robot does not."""
