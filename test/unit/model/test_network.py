"""Shapes, gradients and non-square images of the network, without any published weights."""

import numpy as np
import pytest
import torch

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.model import hashing
from hashvpr_ros.model.adapters import SideNetwork
from hashvpr_ros.model.dinov2 import DinoV2, grid_of
from hashvpr_ros.model.network import NetworkConfig, SelaVpr


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return SelaVpr(NetworkConfig(backbone="small")).eval()


@pytest.mark.parametrize(("height", "width"), [(112, 112), (84, 112), (112, 84), (28, 322)])
def test_non_square_images(small, height, width):
    images = torch.randn(2, 3, height, width)
    with torch.no_grad():
        feature, logits = small(images)
        alone = small(images[1:])
    assert feature.shape == (2, 1024) and logits.shape == (2, 512)
    torch.testing.assert_close(feature.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(alone[0][0], feature[1], rtol=0, atol=1e-5)


def test_rows_are_height(small):
    """A grid read the wrong way round would give the same shapes."""
    image = torch.zeros(1, 3, 28, 56)
    image[..., 28:] = 1.0  # the right half
    tokens = small.backbone.patch_embed(image)[0].unflatten(0, grid_of(image))
    assert torch.equal(tokens[0, 3], tokens[1, 2]) and not torch.equal(tokens[0, 0], tokens[0, 3])
    position = small.backbone.position_embeddings(2, 4)[0, 1:].unflatten(0, (2, 4))
    other = small.backbone.position_embeddings(4, 2)[0, 1:].unflatten(0, (4, 2))
    whole = small.backbone.pos_embed[0, 1:].unflatten(0, (37, 37))
    # The corners lie near the corners of the grid that is interpolated, on each axis.
    near = torch.cosine_similarity(position[0, 3], whole[:12, 28:].flatten(0, 1)).max()
    far = torch.cosine_similarity(position[0, 3], whole[28:, :12].flatten(0, 1)).max()
    assert near > far
    assert not torch.allclose(position[0, 3], other[0, 1])


def test_sides_that_are_no_multiple_of_14_are_refused(small):
    with pytest.raises(ConfigError, match="multiples of 14 pixels, not 225 x 224; give for exam"):
        small(torch.zeros(1, 3, 225, 224))


def test_positions_of_the_trained_size_are_untouched():
    backbone = DinoV2("small")
    assert backbone.position_embeddings(37, 37) is backbone.pos_embed


@pytest.mark.parametrize("registers", [0, 4])
def test_registers_reach_the_blocks_and_not_the_grid(registers):
    torch.manual_seed(0)
    network = SelaVpr(NetworkConfig(backbone="small", registers=registers)).eval()
    images = torch.randn(1, 3, 42, 56)
    stages = network.stages(images)
    assert len(stages) == 13 and stages[0].shape == (1, 1 + registers + 12, 384)
    before = network(images)[0]
    if registers:
        with torch.no_grad():
            network.backbone.register_tokens += 1.0
        assert not torch.equal(network(images)[0], before)


def test_large_adapts_the_last_16_blocks():
    with torch.device("meta"):
        network = SelaVpr(NetworkConfig(backbone="large"))
    assert len(network.float_branch.side.adapters) == 16
    assert network.float_branch.head.output_dim == 4096


@pytest.mark.parametrize("aggregation", ["boq", "salad"])
def test_other_aggregations_at_4_to_3(aggregation):
    torch.manual_seed(0)
    network = SelaVpr(NetworkConfig(backbone="small", aggregation=aggregation)).eval()
    with torch.no_grad():
        feature, _ = network(torch.randn(2, 3, 126, 168))
    assert feature.shape == (2, {"boq": 12288, "salad": 8448}[aggregation])
    torch.testing.assert_close(feature.norm(dim=1), torch.ones(2))


def test_salad_with_too_few_patches_is_refused():
    network = SelaVpr(NetworkConfig(backbone="small", aggregation="salad")).eval()
    with pytest.raises(ConfigError, match="more than 64 patches, not 64"):
        network(torch.zeros(1, 3, 112, 112))


def test_no_gradient_reaches_the_backbone(small):
    network = SelaVpr(NetworkConfig(backbone="small"))
    network.train()
    assert not network.backbone.training and network.float_branch.training
    feature, logits = network(torch.randn(2, 3, 42, 42))
    (feature.sum() + logits.sum()).backward()
    assert all(p.grad is None for p in network.backbone.parameters())
    branches = [*network.float_branch.parameters(), *network.hash_branch.parameters()]
    assert all(p.grad is not None for p in branches)


def test_the_side_network_adds_to_the_first_stage():
    """With adapters that say nothing, y is what came in, whatever the blocks did."""
    side = SideNetwork(32, 3)
    for adapter in side.adapters:
        torch.nn.init.zeros_(adapter.D_fc2.weight)
        torch.nn.init.zeros_(adapter.D_fc2.bias)
    stages = [torch.randn(2, 7, 32) for _ in range(4)]
    assert torch.equal(side(stages, (2, 3)), stages[0])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        side(stages[:-1], (2, 3))


@pytest.mark.parametrize("field", ["backbone", "aggregation"])
def test_unknown_variants_are_refused(field):
    with pytest.raises(ConfigError, match=f"{field} must be one of"):
        NetworkConfig(**{field: "giant"})


def test_a_network_without_branches_is_refused():
    with pytest.raises(ConfigError, match="needs a float branch"):
        NetworkConfig(float_branch=False, hash_branch=False)


def test_sign_is_straight_through():
    logits = torch.tensor([-2.0, -0.0, 0.0, 1e-9, 3.0], requires_grad=True)
    signs = hashing.sign(logits)
    assert signs.tolist() == [-1.0, 1.0, 1.0, 1.0, 1.0]
    (signs * torch.arange(5.0)).sum().backward()
    assert logits.grad.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_bits_are_packed_as_numpy_packs_them():
    logits = torch.randn(5, 512, generator=torch.Generator().manual_seed(0))
    logits[0, :3] = torch.tensor([0.0, -0.0, -1e-30])
    packed = hashing.PackBits()(logits)
    np.testing.assert_array_equal(packed.numpy(), np.packbits(logits.numpy() >= 0, axis=1))
