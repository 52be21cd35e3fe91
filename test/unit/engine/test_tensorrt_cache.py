"""The cache of engines and the choice between runtimes, on the double of TensorRT."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hashvpr_ros.config import EngineConfig
from hashvpr_ros.engine import tensorrt_build
from hashvpr_ros.engine.factory import create_engine, open_engine
from hashvpr_ros.engine.tensorrt_build import BuildOptions
from hashvpr_ros.engine.tensorrt_cache import cached_engine, default_cache_dir
from hashvpr_ros.engine.tensorrt_file import read_engine
from hashvpr_ros.errors import EngineError

HERE = Path(__file__).resolve().parent
BUILD = "build_serialized_network"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def engines(cache):
    return sorted(cache.glob("*.engine"))


def opened(path, cache, **options):
    engine = cached_engine(path, BuildOptions(**options), cache)
    engine.warm_up()
    engine.close()
    return engine.header


def test_the_second_time_nothing_is_built(world, tiny_model, cache):
    first, second = (opened(tiny_model(), cache) for _ in range(2))
    assert world.count(BUILD) == 1 and first == second
    (file,) = engines(cache)
    assert read_engine(file)[0] == first and file.name.startswith("tiny-")


def test_each_difference_is_another_engine(doubled, tiny_model, cache):
    meta = {"hashvpr.name": "a", "hashvpr.fingerprint": "ab" * 32}
    plain = tiny_model("a.onnx", metadata=meta)
    cases = (
        (plain, {}, {}),
        (plain, {}, {"precision": "fp32"}),
        (plain, {}, {"max_batch": 2}),
        (plain, {}, {"workspace_mb": 64}),
        (plain, {"version": "10.7.0"}, {}),
        (plain, {"gpu": "Thor"}, {}),
        (plain, {"capability": (8, 6)}, {}),
        # The same fingerprint, but another graph: a second export of one model.
        (tiny_model("b.onnx", metadata=meta, feature_value=0.25), {}, {}),
    )
    for built, (path, settings, options) in enumerate(cases, 1):
        world = doubled(**settings)
        opened(path, cache, **options)
        assert world.count(BUILD) == 1 and len(engines(cache)) == built


def test_an_update_that_builds_otherwise_builds_again(world, tiny_model, cache, monkeypatch):
    opened(tiny_model(), cache)
    monkeypatch.setattr(tensorrt_build, "_VERSION", tensorrt_build._VERSION + 1)
    opened(tiny_model(), cache)
    assert world.count(BUILD) == len(engines(cache)) == 2


# As TensorRT and PyCUDA say it.
NO_MEMORY = {
    "deserialize": "[safeDeserialize.cpp::load::269] Error Code 2: OutOfMemory",
    "context": "[defaultAllocator.cpp::allocate::19] Error Code 1: Cuda Runtime (out of memory)",
    "mem_alloc": "cuMemAlloc failed: out of memory",
    "retain": "cuDevicePrimaryCtxRetain failed: out of memory",
}


@pytest.mark.parametrize("call", NO_MEMORY)
def test_a_gpu_without_memory_left_makes_no_engine_stale(world, tiny_model, cache, call, caplog):
    opened(tiny_model(), cache)
    (file,) = engines(cache)
    whole = file.read_bytes()
    world.fail[call] = NO_MEMORY[call]
    with pytest.raises(EngineError, match=r"(?i)of ?memory.*; close what fills it"):
        provider(tiny_model(), cache, tensorrt="require")
    assert provider(tiny_model(), cache) == "CPUExecutionProvider"
    assert "is built again" not in caplog.text and NO_MEMORY[call] in caplog.text
    del world.fail[call]
    assert provider(tiny_model(), cache).startswith("TensorRT ")
    assert world.count(BUILD) == 1 and file.read_bytes() == whole


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "foreign", "folder"])
def test_a_damaged_or_foreign_engine_is_built_again(world, tiny_model, cache, damage, caplog):
    opened(tiny_model(), cache)
    (file,) = engines(cache)
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    if damage == "folder":
        file.unlink()
        file.mkdir()
    elif damage == "foreign":
        opened(tiny_model("other.onnx", dim=8), cache)
        other = next(f for f in engines(cache) if f != file)
        os.replace(other, file)
    else:
        content = {"empty": b"", "truncated": whole[:-9], "flipped": bytes(flipped)}[damage]
        file.write_bytes(content)
    caplog.clear()
    before = world.count(BUILD)
    header = opened(tiny_model(), cache)
    assert header.feature_dim == 4 and world.count(BUILD) == before + 1
    assert "is built again" in caplog.text
    if damage != "folder":  # which nothing can be put in the place of
        assert file.read_bytes() == whole


def test_a_plan_that_tensorrt_refuses_is_built_again(world, tiny_model, cache):
    opened(tiny_model(), cache)
    refusals = iter(["corrupt"])
    real, fail = world.fail, {}

    class Once(dict):
        def __contains__(self, key):
            return key == "deserialize" and next(refusals, None) is not None

        def __getitem__(self, key):
            return "corrupt"

    world.fail = Once(fail)
    opened(tiny_model(), cache)
    world.fail = real
    assert world.count(BUILD) == 2


@pytest.mark.parametrize("how", ["folder", "files"])
def test_a_cache_that_cannot_be_written(world, tiny_model, tmp_path, how, caplog, monkeypatch):
    cache = tmp_path / "cache"
    if how == "folder":
        cache.write_text("a file where the folder would be")
    else:
        cache.mkdir()
        real = os.open

        def refuse(path, flags, *rest, **more):
            if str(path).startswith(str(cache)) and flags & os.O_CREAT:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, flags, *rest, **more)

        monkeypatch.setattr(os, "open", refuse)
        monkeypatch.setattr(
            "hashvpr_ros.engine.tensorrt_cache.write_engine",
            lambda path, *_: (_ for _ in ()).throw(EngineError(f"{path}: cannot be written")),
        )
    for count in (1, 2):
        opened(tiny_model(), cache)
        assert world.count(BUILD) == count
    assert "built" in caplog.text
    assert sum(r.levelno >= logging.WARNING for r in caplog.records) >= 2


def test_the_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_cache_dir() == tmp_path / ".cache" / "hashvpr_ros" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_cache_dir() == tmp_path / "x" / "hashvpr_ros" / "engines"


PROGRAM = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from cuda_double import World
from tensorrt_double import install
world = install(World(build_s=1.0))
from hashvpr_ros.engine.tensorrt_build import BuildOptions
from hashvpr_ros.engine.tensorrt_cache import cached_engine
print("ready", flush=True)
sys.stdin.readline()
told = []
engine = cached_engine(Path({path!r}), BuildOptions(), {cache!r}, told.append)
engine.warm_up()
engine.close()
print(world.count("build_serialized_network"), any("another process" in s for s in told))
"""


def start(path, cache):
    program = PROGRAM.format(here=str(HERE), path=str(path), cache=str(cache))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[2]), *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip


def test_of_two_processes_one_builds_and_the_other_waits(tiny_model, cache):
    processes = [start(tiny_model(), cache) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = sorted(p.communicate(timeout=60)[0].split() for p in processes)
    assert said == [["0", "True"], ["1", "False"]]
    assert len(engines(cache)) == 1 and not list(cache.glob(".*.new"))


def test_a_process_that_is_killed_while_it_builds_leaves_no_lock_and_no_file(tiny_model, cache):
    process = start(tiny_model(), cache)
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()
    end = time.monotonic() + 20
    while not list(cache.glob("*.lock")) and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.3)
    process.kill()
    process.wait()
    assert engines(cache) == []
    other = start(tiny_model(), cache)
    assert other.communicate("go\n", timeout=60)[0].split() == ["ready", "1", "False"]


# Which runtime.


def config(path, cache, **more):
    return EngineConfig(path=str(path), cache_dir=str(cache), **more)


def provider(*arguments, **more):
    engine = open_engine(config(*arguments, **more))
    engine.warm_up()
    engine.close()
    return engine.info.provider


def test_an_onnx_runs_by_tensorrt_where_it_is(world, tiny_model, cache):
    assert provider(tiny_model(), cache).startswith("TensorRT ")
    assert provider(tiny_model(), cache, precision="fp32").endswith("fp32 (Orin)")
    pool = next(iter(world.configs[-1].pools.values()))
    assert pool == EngineConfig().workspace_mb << 20


def test_off_and_chosen_providers_are_obeyed(world, tiny_model, cache):
    cpu = "CPUExecutionProvider"
    assert provider(tiny_model(), cache, tensorrt="off") == cpu
    assert provider(tiny_model(), cache, providers=[cpu]) == cpu
    assert world.calls == [] and not cache.exists()
    chosen = provider(tiny_model(), cache, providers=[cpu], tensorrt="require")
    assert chosen.startswith("TensorRT ")


def test_auto_falls_back_and_says_why(world, tiny_model, cache, caplog):
    world.fail["build"] = "could not find any implementation"
    assert provider(tiny_model(), cache) == "CPUExecutionProvider"
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING
                 and "ONNX Runtime instead" in r.message]  # fmt: skip
    assert "could not find any implementation" in record.message
    with pytest.raises(EngineError, match="could not find any implementation"):
        provider(tiny_model(), cache, tensorrt="require")


def test_auto_falls_back_where_the_first_image_fails(world, tiny_model, cache, caplog):
    world.fail["execute"] = "an illegal memory access was encountered"
    assert provider(tiny_model(), cache) == "CPUExecutionProvider"
    assert "ONNX Runtime instead" in caplog.text and "illegal memory" in caplog.text
    assert world.leaks() == []  # the engine that was given up is closed
    with pytest.raises(EngineError, match="illegal memory access"):
        provider(tiny_model(), cache, tensorrt="require")


def test_a_model_of_a_fixed_batch_runs_by_tensorrt(world, tiny_model, cache):
    for fixed in (1, 4):
        model = tiny_model(f"of{fixed}.onnx", shape=(fixed, 8, 12, 3))
        assert provider(model, cache, tensorrt="require").startswith("TensorRT ")


@pytest.mark.parametrize("missing", ["tensorrt", "pycuda.driver", "gpu", "old", "stubs"])
def test_where_something_is_missing(doubled, tiny_model, cache, missing, monkeypatch, caplog):
    world = doubled(version="8.5.3" if missing == "old" else "10.3.0")
    words = {"gpu": "no usable NVIDIA GPU", "old": "too old", "stubs": "tensorrt is not installed"}
    if missing == "gpu":
        world.gpu = None
    elif missing == "stubs":  # their folder imports as an empty package
        monkeypatch.setitem(sys.modules, "tensorrt", type(sys)("tensorrt"))
    elif missing != "old":
        monkeypatch.setitem(sys.modules, missing, None)
    word = words.get(missing, f"package {missing.partition('.')[0]} is not installed")
    with caplog.at_level(logging.DEBUG):
        assert provider(tiny_model(), cache) == "CPUExecutionProvider"
    (said,) = [r for r in caplog.records if word in r.getMessage()]
    assert said.levelno == logging.DEBUG  # nobody asked for TensorRT
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    with pytest.raises(EngineError, match=word):
        provider(tiny_model(), cache, tensorrt="require")


def test_an_engine_file_without_tensorrt_names_how_to_install_it(
    world, tiny_model, cache, monkeypatch
):
    opened(tiny_model(), cache)
    (file,) = engines(cache)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError) as e:
        create_engine(file)
    for word in (str(file), "JetPack", "pip install tensorrt pycuda"):
        assert word in str(e.value)
