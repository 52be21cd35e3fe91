"""Checkpoints that are truncated, foreign, hostile, of another network, and good ones."""

import pickle
import resource

import pytest
import torch

from hashvpr_ros.errors import CheckpointError
from hashvpr_ros.model import checkpoints
from hashvpr_ros.model.checkpoints import CheckpointInfo
from hashvpr_ros.model.network import NetworkConfig, SelaVpr


def open_network(path):
    return checkpoints.open_checkpoint(path).network


CONFIG = NetworkConfig(backbone="small", float_dim=64)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SelaVpr(CONFIG).eval()


@pytest.fixture(scope="module")
def published(network):
    return checkpoints.published_state(network)


@pytest.fixture
def save(tmp_path):
    def write(content, name="x.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def refused(path, *words, load=open_network):
    with pytest.raises(CheckpointError) as e:
        load(path)
    text = str(e.value)
    assert str(path) in text and "\n" not in text
    for word in words:
        assert word in text, text


def test_round_trip(network, tmp_path):
    checkpoints.save_network(tmp_path / "x.pth", network, CheckpointInfo((42, 56), "MIT"))
    checkpoint = checkpoints.open_checkpoint(tmp_path / "x.pth")
    assert checkpoint.size == (42, 56) and checkpoint.info.license == "MIT"
    again = checkpoint.network
    assert again.config == CONFIG and not again.training
    images = torch.randn(1, 3, 42, 56)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(network(images), again(images), strict=True))
    assert all(not p.requires_grad for p in again.backbone.parameters())
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


def test_leading_module_and_bare_dictionaries(published, save):
    for content in (
        {"model_state_dict": {f"module.{k}": v for k, v in published.items()}},
        {"state_dict": published},
        published,
    ):
        assert open_network(save(content)).config == CONFIG


def test_half_precision_is_widened(published, save):
    half = {k: v.half() if v.is_floating_point() else v for k, v in published.items()}
    loaded = open_network(save(half))
    assert next(loaded.parameters()).dtype == torch.float32


def test_a_prefix_that_is_not_known_is_named(network, published, save):
    path = save({f"net.student.{k}": v for k, v in published.items()})
    refused(path, "all its names begin with 'net.student'")
    backbone = {f"encoder.{k}": v for k, v in network.backbone.state_dict().items()}
    refused(
        save(backbone),
        "all its names begin with 'encoder'",
        load=lambda p: checkpoints.load_backbone(SelaVpr(CONFIG), p),
    )


def test_one_branch(published, save):
    float_only = {k: v for k, v in published.items() if not k.startswith(HASH)}
    hash_only = {k: v for k, v in published.items() if not k.startswith(FLOAT)}
    images = torch.randn(1, 3, 28, 28)
    feature, logits = open_network(save(float_only))(images)
    assert feature.shape == (1, 64) and logits is None
    feature, logits = open_network(save(hash_only))(images)
    assert feature is None and logits.shape == (1, 512)


HASH = ("backbone.adapters_hashing.", "aggregation_hashing.", "linear3.", "linear4.")
FLOAT = ("backbone.adapters.", "aggregation.", "linear1.", "linear2.")


def test_missing_unexpected_and_misshapen_are_named(published, save):
    wrong = dict(published)
    del wrong["linear1.bias"]
    wrong["linear9.weight"] = torch.zeros(3)
    wrong["linear4.bias"] = torch.zeros(511)
    refused(
        save(wrong),
        "missing: linear1.bias",
        "unexpected: linear9.weight",
        "misshapen: linear4.bias [511], not [512]",
    )


def test_long_lists_are_cut(published, save):
    wrong = {k: v for k, v in published.items() if ".blocks.3." not in k}
    refused(save(wrong), "missing: backbone.blocks.3.norm1.weight", " and 10 more")


def test_not_a_number(published, save):
    wrong = dict(published)
    wrong["linear1.bias"] = torch.full_like(wrong["linear1.bias"], float("nan"))
    refused(save(wrong), "linear1.bias holds NaN or infinity")


def test_integers_for_weights(published, save):
    wrong = dict(published)
    wrong["linear1.bias"] = wrong["linear1.bias"].long()
    refused(save(wrong), "of another type: linear1.bias")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(384).to_sparse(),
        lambda: torch.zeros(384, device="meta"),
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        lambda: torch.quantize_per_tensor(torch.zeros(384), 0.1, 0, torch.quint8),
        lambda: torch.zeros(384).to(torch.float8_e4m3fn),
    ],
    ids=["sparse", "meta", "nested", "quantized", "float8"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights(published, save, make):
    refused(
        save({**published, "linear1.bias": make()}),
        "linear1.bias is no dense tensor of floats or integers",
    )


def test_one_number_said_to_be_more_than_any_memory_holds(published, save):
    huge = torch.zeros(1).expand(10**13)
    refused(save({**published, "linear1.bias": huge}), "misshapen: linear1.bias [10000000000000]")
    repeated = {**published, "linear1.bias": torch.ones(1).expand(384)}
    bias = open_network(save(repeated)).float_branch.head.project.bias
    with torch.no_grad():
        bias[0] = 0.0  # it has memory of its own for each
    assert float(bias.sum()) == 383.0


def test_negative_variances(published, save):
    name = next(k for k in published if k.endswith("running_var"))
    refused(save({**published, name: -published[name]}), f"{name} holds negative variances")


def test_a_name_twice(published, save):
    refused(save({**published, "module.linear1.bias": torch.zeros(384)}), "linear1.bias twice")


def test_missing_folder_and_empty(tmp_path):
    refused(tmp_path / "none.pth", "no such file")
    refused(tmp_path, "is not a file")
    (tmp_path / "empty.pth").write_bytes(b"")
    refused(tmp_path / "empty.pth", "cannot be read")


@pytest.mark.parametrize("part", [0.2, 0.5, 0.99])
def test_truncated(published, save, part):
    path = save(published)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    refused(path, "cannot be read as a checkpoint")


def test_foreign_files(save, tmp_path):
    for name, data in (("a.pth", b"\x89PNG\r\n" * 50), ("b.pth", b"PK\x03\x04" + bytes(99))):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, "cannot be read as a checkpoint")
    refused(save([1, 2]), "holds a list")
    refused(save({}), "holds no weights")
    refused(save({"epoch": 3}), "'epoch' is a int")
    refused(save({"fc.weight": torch.zeros(3, 3)}), "not a checkpoint of SelaVPR++")


class _Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


def test_hostile_files_run_nothing(tmp_path):
    target = tmp_path / "written"
    for name, dump in (("zip.pth", torch.save), ("plain.pth", _pickle)):
        dump({"model_state_dict": _Hostile(str(target))}, tmp_path / name)
        refused(tmp_path / name, "could run code")
    assert not target.exists()


def _pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


def test_the_backbone_of_meta(network, published, save):
    backbone = {
        k.removeprefix("backbone."): v + 1.0
        for k, v in published.items()
        if k.startswith("backbone.") and "adapters" not in k
    }
    path = save(backbone)
    fresh = SelaVpr(CONFIG)
    checkpoints.load_backbone(fresh, path)
    assert torch.equal(fresh.backbone.norm.bias, network.backbone.norm.bias + 1.0)
    refused(path, "looks like a backbone alone")
    other = SelaVpr(NetworkConfig(backbone="small", registers=4))
    refused(path, "missing: register_tokens", load=lambda p: checkpoints.load_backbone(other, p))


def test_of_another_size(published, save):
    wrong = {**published, "backbone.cls_token": torch.zeros(1, 1, 768)}
    refused(save(wrong), "misshapen: backbone.pos_embed [1, 1370, 384], not [1, 1370, 768]")


def test_a_full_disk_leaves_the_old_file(network, tmp_path):
    path = tmp_path / "x.pth"
    checkpoints.save_network(path, network, CheckpointInfo())
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot be written"):
            checkpoints.save_network(path, network, CheckpointInfo())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x.pth"]


def test_an_unknown_folder(network, tmp_path):
    with pytest.raises(CheckpointError, match="cannot be written"):
        checkpoints.save_network(tmp_path / "none" / "x.pth", network, CheckpointInfo())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", [42]),
        ("size", [0, 42]),
        ("size", "large"),
        ("size", [float("inf"), 5]),
        ("size", [torch.zeros(2), 5]),
        ("probability_curve", [float("nan"), 0.0]),
        ("probability_curve", [-1.0, 0.0]),
        ("format", 99),
        ("format", torch.zeros(2)),
    ],
)
def test_what_it_says_of_itself_is_checked(published, save, key, value):
    about = {"format": 1, "size": None, "license": "", "version": "1", "probability_curve": None}
    path = save({"hashvpr": about | {key: value}, "model_state_dict": published})
    refused(path, "its metadata is malformed")
