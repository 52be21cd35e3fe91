"""Tiny but real runs: the loss falls, a killed run ends as one that was not, the cache agrees."""

import copy
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hashvpr_ros.errors import CheckpointError, ConfigError
from hashvpr_ros.model.checkpoints import CheckpointInfo, open_checkpoint, save_network
from hashvpr_ros.setting import with_values
from hashvpr_ros.training.config import TrainConfig
from hashvpr_ros.training.images import PLAIN, plan_epoch
from hashvpr_ros.training.stages import set_train
from hashvpr_ros.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("shallow")
SIDE = 42


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def places(tmp_path_factory) -> Path:
    """Twelve places, each a texture of its own, seen twice, in the layout of VPR-Bench."""
    folder = tmp_path_factory.mktemp("places")
    rng = np.random.default_rng(0)
    for part in ("query", "ref"):
        (folder / part).mkdir()
    for i in range(12):
        texture = cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), (96, 96))
        for part in ("query", "ref"):
            shade = rng.uniform(0.6, 1.0)
            cv2.imwrite(str(folder / part / f"{i:03d}.png"), (texture * shade).astype(np.uint8))
    rows = np.empty((12, 2), object)
    for i in range(12):
        rows[i] = [i, [i]]
    np.save(folder / "ground_truth_new.npy", rows, allow_pickle=True)
    return folder


@pytest.fixture
def config(places, tmp_path) -> TrainConfig:
    values = {
        "output": str(tmp_path / "run"),
        "model.size": "small",
        "model.float_dim": 64,
        "data.folder": str(places),
        "data.height": SIDE,
        "data.width": SIDE,
        "data.augmentation": "camera",
        "data.workers": 0,
        "optimizer.epochs": 3,
        "optimizer.places_per_batch": 6,
        "optimizer.images_per_place": 2,
        "optimizer.learning_rate": 1e-3,
        "optimizer.halve_every": 2,
    }
    return with_values(TrainConfig(), values)


def changed(config: TrainConfig, **values) -> TrainConfig:
    return with_values(config, {k.replace("__", "."): v for k, v in values.items()})


def weights(folder) -> dict:
    return open_checkpoint(Path(folder) / "last.pth").network.state_dict()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_loss_falls_and_only_the_branch_moves(config):
    config = changed(config, optimizer__epochs=8, data__augmentation="none")
    trainer = Trainer(config, "float")
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    losses = [e.loss for e in trainer.epochs()]
    assert losses[-1] < 0.8 * losses[0], losses
    moved = {
        k.split(".")[0]
        for k, v in trainer.network.state_dict().items()
        if not torch.equal(v, before[k])
    }
    assert moved == {"float_branch"}
    assert list((Path(config.output) / "tensorboard").glob("events*"))


def test_resumed_equals_uninterrupted(config, tmp_path):
    list(Trainer(config, "float").epochs())
    broken = changed(config, output=str(tmp_path / "broken"))
    run = Trainer(broken, "float").epochs()
    next(run)
    run.close()  # after one epoch, in mid-run
    resumed = Trainer(broken, "float", resume=True)
    assert resumed.epoch == 1
    list(resumed.epochs())
    assert same(weights(config.output), weights(broken.output))


def test_killed_in_mid_epoch_and_resumed_equals_uninterrupted(config, tmp_path):
    list(Trainer(config, "float").epochs())
    broken = changed(config, output=str(tmp_path / "broken"))
    script = (
        "import dataclasses, sys, json, torch; torch.set_num_threads(1)\n"
        "from hashvpr_ros.model.dinov2 import SIZES\n"
        "SIZES['small'] = dataclasses.replace(SIZES['small'], depth=4)\n"  # as here
        "from hashvpr_ros.config import with_values\n"
        "from hashvpr_ros.training.config import TrainConfig, flatten\n"
        "from hashvpr_ros.training.trainer import Trainer\n"
        "t = Trainer(with_values(TrainConfig(), json.loads(sys.argv[1])), 'float')\n"
        "for e in t.epochs(): print(e.number, flush=True)\n"
    )
    from hashvpr_ros.training.config import flatten

    values = json.dumps(flatten(dataclasses.asdict(broken)))
    root = str(Path(__file__).resolve().parents[3])
    environment = os.environ | {"PYTHONPATH": root}
    process = subprocess.Popen(
        [sys.executable, "-c", script, values], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "0\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = Trainer(broken, "float", resume=True)
    assert resumed.epoch in (1, 2)
    list(resumed.epochs())
    assert same(weights(config.output), weights(broken.output))


def test_the_hash_branch_follows_the_float(config, tmp_path):
    list(Trainer(config, "float").epochs())
    hashing = changed(
        config, output=str(tmp_path / "hash"), model__checkpoint=f"{config.output}/best.pth"
    )
    trainer = Trainer(hashing, "hash")
    start = trainer.network.state_dict()
    for key, value in start.items():
        if key.startswith("hash_branch.side."):
            assert torch.equal(value, start[key.replace("hash_", "float_")]), key
    frozen = {k: v.clone() for k, v in start.items() if not k.startswith("hash_branch.")}
    assert len(list(trainer.epochs())) == 3
    after = open_checkpoint(tmp_path / "hash" / "best.pth").network
    assert after.hash_branch is not None
    # BatchNorm statistics of the float branch stay too, though it is called.
    assert same(frozen, {k: after.state_dict()[k] for k in frozen})


def test_validation_and_early_stop(config, places):
    config = changed(
        config,
        data__validation_folder=str(places),
        optimizer__learning_rate=0.0,  # it never gets better
        optimizer__patience=2,
        optimizer__epochs=9,
    )
    epochs = list(Trainer(config, "float").epochs())
    assert len(epochs) == 3 and [e.best for e in epochs] == [True, False, False]
    assert set(epochs[0].recall) == {"1", "5", "10"} and epochs[0].recall["10"] > 50


def test_the_best_epoch_is_the_best_mean_over_several_sets(config, places):
    sets = [{"folder": str(places)}, {"folder": str(places), "first": -4, "fit_probability": True}]
    several = changed(config, data__validation=sets, optimizer__epochs=1)
    trainer = Trainer(several, "float")
    (epoch,) = trainer.epochs()
    assert [v.fit_probability for v in trainer.validations] == [False, True]
    recalls = []
    for one in trainer.validations:
        output = trainer._describe_all(one.source, len(one.dataset.paths), PLAIN, "float")
        recalls.append(one.dataset.recall(output, binary=False))
    assert epoch.recall == {k: (recalls[0][k] + recalls[1][k]) / 2 for k in recalls[0]}
    assert trainer.best_recall == epoch.recall["1"] + epoch.recall["5"]
    trainer.finish()
    queries = trainer.validations[1].dataset.queries
    assert queries == 4


def test_several_sources_are_trained_on(config, places):
    sources = [
        {"folder": str(places), "last_place": 5},
        {"folder": str(places), "first_place": 7},
    ]
    trainer = Trainer(
        changed(config, data__folder="", data__sources=sources, optimizer__epochs=1), "float"
    )
    assert len(trainer.images.places) == 10 and len(trainer.images.paths) == 20
    assert next(iter(trainer.epochs())).loss is not None


def test_the_cache_gives_what_the_images_give(config, tmp_path):
    plain = changed(config, data__augmentation="none", optimizer__epochs=1)
    cached = changed(
        plain,
        output=str(tmp_path / "cached"),
        cache__folder=str(tmp_path / "cache"),
        cache__views=2,
    )
    first = next(iter(Trainer(plain, "float").epochs()))
    second = next(iter(Trainer(cached, "float").epochs()))
    assert second.loss == pytest.approx(first.loss, rel=1e-2)  # float16 on disk
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*")}
    Trainer(changed(cached, output=str(tmp_path / "again")), "float")
    assert made == {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*")}
    Trainer(changed(cached, output=str(tmp_path / "other"), data__width=56), "float")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_an_unfinished_cache_is_made_again(config, tmp_path):
    config = changed(config, cache__folder=str(tmp_path / "cache"), cache__views=1)
    Trainer(config, "float")
    (mark,) = (tmp_path / "cache").iterdir()
    (mark / "complete.json").unlink()
    (mark / "0.f16").write_bytes(b"half")
    Trainer(config, "float")
    assert (mark / "complete.json").exists()


def test_accumulated_gradients_are_those_of_the_mean(config, tmp_path):
    """Twelve places by four are three batches: two are added, and one is left."""
    still = {"optimizer__learning_rate": 0.0, "optimizer__places_per_batch": 4}
    config = changed(config, optimizer__accumulate=2, optimizer__epochs=1, **still)
    trainer = Trainer(config, "float")
    learning = list(trainer.network.learning("float").parameters())
    steps = []
    trainer._optimizer.register_step_pre_hook(
        lambda *_: steps.append([p.grad.clone() for p in learning])
    )
    list(trainer.epochs())
    assert len(steps) == 2

    again = Trainer(changed(config, output=str(tmp_path / "again")), "float")
    plan = plan_epoch(again.images.places, 4, 2, config.optimizer.seed, 0)
    set_train(again.network, "float")
    batches = zip(again.source.batches([keys for keys, _ in plan]), plan, strict=True)
    losses = [again._loss(stages, torch.tensor(labels)) for stages, (_, labels) in batches]
    parameters = list(again.network.learning("float").parameters())
    for got, loss in zip(steps, ((losses[0] + losses[1]) / 2, losses[2]), strict=True):
        wanted = torch.autograd.grad(loss, parameters)
        assert max(float(g.abs().max()) for g in wanted) > 1e-4
        for g, w in zip(got, wanted, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-7)


def test_bfloat16_trains(config):
    config = changed(config, optimizer__precision="mixed", optimizer__epochs=1)
    (epoch,) = Trainer(config, "float").epochs()
    assert np.isfinite(epoch.loss)


def test_misuse_is_explained(config, tmp_path):
    list(Trainer(changed(config, optimizer__epochs=1), "float").epochs())
    with pytest.raises(ConfigError, match="holds a run already; go on with it by --resume"):
        Trainer(config, "float")
    with pytest.raises(ConfigError, match=r"other settings \(optimizer.seed\)"):
        Trainer(changed(config, optimizer__seed=7), "float", resume=True)
    with pytest.raises(ConfigError, match=r"set model.checkpoint to the best.pth"):
        Trainer(changed(config, output=str(tmp_path / "h")), "hash")
    with pytest.raises(CheckpointError, match="no run of the hash branch"):
        Trainer(
            changed(config, model__checkpoint=f"{config.output}/best.pth"), "hash", resume=True
        )
    with pytest.raises(ConfigError, match="multiples of 14"):
        Trainer(changed(config, output=str(tmp_path / "s"), data__height=50), "float")
    with pytest.raises(ConfigError, match=r"data.folder is empty"):
        Trainer(changed(config, output=str(tmp_path / "d"), data__folder=""), "float")


def test_a_cache_may_move_but_not_come_or_go(config, tmp_path):
    cached = changed(config, optimizer__epochs=1, cache__folder=str(tmp_path / "c"))
    list(Trainer(cached, "float").epochs())
    moved = changed(cached, cache__folder=str(tmp_path / "d"))
    assert Trainer(moved, "float", resume=True).epoch == 1
    with pytest.raises(ConfigError, match=r"other settings \(cache.folder\)"):
        Trainer(changed(cached, cache__folder=""), "float", resume=True)


def test_the_output_folder_is_tried_before_anything_else(config):
    missing = {"model__checkpoint": "/none/best.pth", "data__folder": "/none"}
    for output in ("/proc/x", "/dev/null/x", "~nobody_of_this_name/x"):
        with pytest.raises(ConfigError, match="set output to another folder") as e:
            Trainer(changed(config, output=output, **missing), "float")
        assert str(e.value).startswith(f"{output}: cannot be written (")
    with pytest.raises(ConfigError, match="output must be a text without null characters"):
        changed(config, output="a\0b")


def _edit(*keys, to):
    def edit(content):
        part = content["training"]
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = to

    return edit


MALFORMED = [
    _edit("settings", to=5),
    _edit("settings", "optimizer.seed", to=torch.zeros(3)),
    _edit("optimizer", to=5),
    _edit("optimizer", "state", to=[1]),
    _edit("optimizer", "state", 99, to={}),
    _edit("optimizer", "state", 0, to={}),
    _edit("optimizer", "state", 0, "exp_avg", to=torch.zeros(3)),
    _edit("optimizer", "state", 0, "exp_avg_sq", to=torch.zeros(3).to_sparse()),
    _edit("optimizer", "state", 0, "step", to=torch.tensor(float("nan"))),
    _edit("optimizer", "state", 0, "step", to="one"),
    _edit("scaler", to=5),
    _edit("scaler", to={"scale": "large"}),
    _edit("epoch", to=-5),
    _edit("epoch", to=float("inf")),
    _edit("epoch", to=10**30),
    _edit("since_best", to="never"),
    _edit("best_recall", to=float("nan")),
]


def test_a_malformed_training_state_is_one_sentence(config):
    list(Trainer(changed(config, optimizer__epochs=1), "float").epochs())
    last = Path(config.output) / "last.pth"
    good = torch.load(last, weights_only=True)
    for edit in MALFORMED:
        content = copy.deepcopy(good)
        edit(content)
        torch.save(content, last)
        with pytest.raises(CheckpointError) as e:
            Trainer(config, "float", resume=True)
        said = str(e.value)
        assert said.startswith(f"{last}: its training state is malformed ("), said
        assert said.endswith("); delete it and start again") and "\n" not in said, said
    torch.save(good, last)
    last.write_bytes(last.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"cannot be read .*; delete it and start again"):
        Trainer(config, "float", resume=True)


def test_what_the_start_says_of_itself_is_kept_where_it_stays_true(config, tmp_path):
    config = changed(config, optimizer__epochs=1)
    list(Trainer(config, "float").epochs())
    best = Path(config.output) / "best.pth"
    opened = open_checkpoint(best)
    about = CheckpointInfo((SIDE, SIDE), "MIT", "7", (5.0, -1.0))
    save_network(best, opened.network, about)

    def info(branch, **values):
        values = {"output": str(tmp_path / "next"), "model__checkpoint": str(best)} | values
        list(Trainer(changed(config, **values), branch).epochs())
        found = open_checkpoint(tmp_path / "next" / "best.pth").info
        shutil.rmtree(tmp_path / "next")
        return found

    assert info("hash") == about
    larger = info("hash", data__height=56, model__license="Apache-2.0")
    assert larger == CheckpointInfo((56, SIDE), "Apache-2.0", "7", None)
    assert info("float") == dataclasses.replace(about, probability_curve=None)


def test_a_loss_that_explodes_is_an_error(config):
    config = changed(config, optimizer__learning_rate=1.0)
    trainer = Trainer(config, "float")
    with torch.no_grad():
        trainer.network.float_branch.head.output.bias.fill_(float("inf"))
    with pytest.raises(ConfigError, match=r"lower optimizer\.learning_rate"):
        list(trainer.epochs())


def test_progress_is_told(config):
    told = []

    def bar(total, what):
        def tick(count):
            told.append((what, count, total))

        return tick

    list(Trainer(changed(config, optimizer__epochs=1), "float", bar=bar).epochs())
    assert told == [("epoch 0", 1, 2), ("epoch 0", 1, 2)]
