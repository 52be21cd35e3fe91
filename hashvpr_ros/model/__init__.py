"""Networks: images in, features and hash logits out. Needs torch; a robot does not."""
