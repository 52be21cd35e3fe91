"""Our network beside the authors' implementation, with the same weights and images."""

import numpy as np
import pytest
from reference import FOLDER, images, needs_reference, state, torch

from hashvpr_ros.model import checkpoints
from hashvpr_ros.model.network import SelaVpr

CASES = {
    "dinov2-base/gem/two_branch": (224, 322),
    "dinov2-base/gem/float": (224,),
    "dinov2-base/gem/hash": (224,),
    "dinov2-base/boq/two_branch": (224,),
    "dinov2-base/salad/two_branch": (224,),
    "dinov2-large/gem/two_branch": (224,),
}


@needs_reference
def test_every_reference_output_has_a_case():
    with np.load(FOLDER / "reference_outputs.npz") as file:
        there = {tuple(name.rsplit("/", 2)[:2]) for name in file}
    assert there == {(variant, str(side)) for variant, sides in CASES.items() for side in sides}


@needs_reference
@pytest.mark.parametrize(
    "variant",
    [
        # 430 million weights to draw: a minute and 4 GB.
        pytest.param(v, marks=pytest.mark.slow) if "large" in v else v
        for v in CASES
    ],
)
def test_the_published_function(variant, tmp_path):
    weights = state(variant)
    path = tmp_path / "x.pth"
    if variant.endswith("gem/two_branch") and "base" in variant:
        # Through a file in the authors' form, once; the others spare the disk.
        torch.save({"model_state_dict": {f"module.{k}": v for k, v in weights.items()}}, path)
        network = checkpoints.open_checkpoint(path).network
    else:
        with torch.device("meta"):
            network = SelaVpr(checkpoints.infer_config(path, weights))
        checkpoints.load_into(network, path, weights, assign=True)
        network.eval()
    with np.load(FOLDER / "reference_outputs.npz") as file:
        for side in CASES[variant]:
            with torch.no_grad():
                outputs = dict(zip(("float", "hash_logits"), network(images(side)), strict=True))
            compared = 0
            for name, output in outputs.items():
                key = f"{variant}/{side}/{name}"
                assert (key in file) == (output is not None), key
                if output is None:
                    continue
                want = file[key]
                np.testing.assert_allclose(output.numpy(), want, rtol=0, atol=1e-5)
                if name == "hash_logits":
                    sure = np.abs(want) > 1e-4
                    assert sure.mean() > 0.99
                    assert ((output.numpy() >= 0) == (want >= 0))[sure].all()
                compared += 1
            assert compared
