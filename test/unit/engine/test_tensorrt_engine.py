"""The TensorRT engine on the double: contexts, memory, threads, errors. No GPU has run this."""

import dataclasses
import threading

import numpy as np
import onnx
import pytest

from hashvpr_ros.engine.factory import create_engine, default_model_path
from hashvpr_ros.engine.onnx_engine import OnnxEngine
from hashvpr_ros.engine.onnx_file import with_digest
from hashvpr_ros.engine.tensorrt_build import BuildOptions, build
from hashvpr_ros.engine.tensorrt_engine import TensorRtEngine
from hashvpr_ros.engine.tensorrt_file import write_engine
from hashvpr_ros.engine.tensorrt_gpu import GpuMemoryError
from hashvpr_ros.errors import EngineError

ALLOCATING = {"pagelocked_empty", "mem_alloc", "Stream", "create_execution_context", "Runtime"}


def images(n, seed=0, shape=(8, 12, 3)):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def test_double_describes_as_onnx_runtime_does(world, make_engine):
    """The double's plan is run by ONNX Runtime: this checks copies, batches and their order."""
    path = default_model_path()
    engine, plain = make_engine(path, max_batch=2), OnnxEngine(path, threads=1)
    batch = images(5, shape=(192, 256, 3))
    for count in (1, 2, 5, 3, 1):
        codes, features = engine.describe(batch[:count])
        want_codes, want_features = plain.describe(batch[:count])
        assert codes.dtype == np.uint8 and features.dtype == np.float32
        np.testing.assert_allclose(features, want_features, atol=1e-5)
        different = np.unpackbits(codes ^ want_codes, axis=1).sum(1)
        assert codes.shape == want_codes.shape and different.max() <= 1
    want = dataclasses.replace(plain.info, provider=engine.info.provider)
    assert engine.info == want
    short = ".".join(world.version.split(".")[:2])
    precision = "fp32" if world.major >= 11 else "fp16"
    assert engine.info.provider == f"TensorRT {short} {precision} (Orin)"


@pytest.mark.parametrize("fixed", [1, 3])
def test_double_of_a_fixed_batch_is_given_it_whole(world, tmp_path, make_engine, fixed):
    """TensorRT refuses fewer images than a static batch (setInputShape); so they are padded."""
    model = onnx.load(str(default_model_path()))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = fixed
    path = tmp_path / "fixed.onnx"
    path.write_bytes(with_digest(model.SerializeToString()))
    engine, plain = make_engine(path), OnnxEngine(default_model_path(), threads=1)
    assert engine.header.max_batch == fixed and not world.configs[-1].profiles
    engine.warm_up()
    batch = images(7, shape=(192, 256, 3))
    for count in (1, 2, 3, 7, 1):
        codes, features = engine.describe(batch[:count])
        want_codes, want_features = plain.describe(batch[:count])
        assert codes.shape == want_codes.shape
        np.testing.assert_allclose(features, want_features, atol=1e-5)
        assert np.unpackbits(codes ^ want_codes, axis=1).sum(1).max() <= 1


def test_double_answers_are_the_callers_own(world, make_engine):
    engine = make_engine(default_model_path())
    first, second = images(2, shape=(192, 256, 3))
    codes, features = engine.describe(first[np.newaxis])
    kept = codes.copy(), features.copy()
    engine.describe(second[np.newaxis])
    np.testing.assert_array_equal(codes, kept[0])
    np.testing.assert_array_equal(features, kept[1])


def test_double_allocates_nothing_per_image(world, tiny_model, make_engine):
    engine = make_engine(tiny_model(), max_batch=2)
    engine.warm_up()
    memory = (set(world.device), set(world.host), list(world.live), world.count("set_input_shape"))
    world.calls.clear()
    for i in range(20):
        engine.describe(images(1, i))
    assert not ALLOCATING & {c[0] for c in world.calls}
    assert world.count("set_input_shape") == world.count("set_tensor_address") == 0
    assert world.count("execute_async_v3") == world.count("synchronize") == 20
    assert (set(world.device), set(world.host), list(world.live)) == memory[:3]


def test_double_pushes_and_pops_around_every_use(world, tiny_model, make_engine):
    engine = make_engine(tiny_model())
    assert world.stacks[threading.get_ident()] == []
    world.calls.clear()
    engine.describe(images(1))
    names = [c[0] for c in world.calls]
    assert (names[0], names[-1], names.count("push"), names.count("pop")) == ("push", "pop", 1, 1)


def test_double_is_used_from_many_threads(world, make_engine):
    path = default_model_path()
    engine, plain = make_engine(path), OnnxEngine(path, threads=1)
    batch = images(8, shape=(192, 256, 3))
    want = plain.describe(batch)[1]
    got: dict[int, np.ndarray] = {}
    problems = []

    def work(i):
        try:
            got[i] = engine.describe(batch[i : i + 1])[1]
        except BaseException as e:
            problems.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    for i in range(8):
        np.testing.assert_allclose(got[i][0], want[i], atol=1e-5)
    assert all(stack == [] for stack in world.stacks.values())


def test_double_made_used_and_closed_in_different_threads(world, tiny_model):
    header, plan = build(tiny_model(), BuildOptions())
    made = []
    for work in (
        lambda: made.append(TensorRtEngine(header, plan, "x.engine")),
        lambda: made[0].describe(images(1)),
        lambda: made[0].close(),
    ):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert world.leaks() == []  # the primary context is counted down though another retained it


def test_double_frees_all_and_can_be_made_again(world, tiny_model):
    header, plan = build(tiny_model(), BuildOptions())
    assert world.leaks() == []
    for _ in range(3):
        engine = TensorRtEngine(header, plan, "x.engine")
        assert world.retained == 1 and len(world.device) == len(world.host) == 3
        assert sorted(world.live) == ["Engine", "Execution", "Runtime", "Stream"]
        engine.warm_up()
        engine.close()
        engine.close()
        assert world.leaks() == []
        with pytest.raises(EngineError, match=r"x\.engine: the engine is closed; create it"):
            engine.warm_up()


def test_double_leaves_a_context_of_others_current(world, tiny_model):
    """Where torch or FAISS have a context current, it is so again after each call."""
    import pycuda.driver as cuda

    world.cuda_stack().append("of torch")
    others = cuda.Device(0).retain_primary_context()
    others.push()

    def check():
        assert world.stack() == [others] and world.cuda_stack() == ["of torch", "primary"]

    header, plan = build(tiny_model(), BuildOptions())
    check()
    engine = TensorRtEngine(header, plan, "x.engine")
    check()
    engine.describe(images(1))
    check()
    engine.close()
    check()
    assert world.retained == 1
    others.detach()
    world.cuda_stack().clear()


def test_double_leaves_no_context_current(world, tiny_model):
    """Detaching takes a primary context off PyCUDA's stack and leaves it on CUDA's."""
    header, plan = build(tiny_model(), BuildOptions())
    assert world.cuda_stack() == []
    for _ in range(3):
        TensorRtEngine(header, plan, "x.engine").close()
    assert world.cuda_stack() == [] and world.retained == 0


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((1, 8, 12, 3), np.float32), np.zeros((8, 12, 3), np.uint8),
        np.zeros((0, 8, 12, 3), np.uint8), np.zeros((1, 12, 8, 3), np.uint8), None, [],
    ],
)  # fmt: skip
def test_double_refuses_what_the_onnx_engine_refuses(world, tiny_model, make_engine, bad):
    engine, plain = make_engine(tiny_model("same.onnx")), OnnxEngine(tiny_model("same.onnx"))
    said = []
    for one in (engine, plain):
        with pytest.raises(EngineError) as e:
            one.describe(bad)
        said.append(str(e.value).partition(": ")[2])
    assert said[0] == said[1] and "takes uint8 [N, 8, 12, 3]" in said[0]


def test_double_takes_an_image_of_any_layout(world, make_engine):
    engine = make_engine(default_model_path())
    batch = images(1, shape=(192, 256, 3))
    want = engine.describe(batch)
    for view in (batch[:, ::-1].copy()[:, ::-1], np.asfortranarray(batch)):
        for a, b in zip(engine.describe(view), want, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_double_does_not_hand_on_nan(world, tiny_model, make_engine, value):
    engine = make_engine(tiny_model(feature_value=value))
    with pytest.raises(EngineError, match=r"tiny\.engine: the model gave NaN or infinity"):
        engine.warm_up()


def test_double_that_fails_in_an_image_is_an_engine_error_and_can_go_on(
    world, tiny_model, make_engine
):
    engine = make_engine(tiny_model())
    world.fail["execute"] = "an illegal memory access was encountered"
    with pytest.raises(EngineError, match=r"tiny\.engine: TensorRT failed \(an illegal memory"):
        engine.describe(images(1))
    del world.fail["execute"]
    engine.describe(images(1))


@pytest.mark.parametrize("call", ["deserialize", "context", "mem_alloc", "retain"])
def test_double_that_fails_to_load_frees_what_it_took(world, tiny_model, call):
    header, plan = build(tiny_model(), BuildOptions())
    world.fail[call] = "out of memory"
    with pytest.raises(GpuMemoryError, match="out of memory") as e:
        TensorRtEngine(header, plan, "x.engine")
    assert "engine build" not in str(e.value)  # which would change nothing
    assert world.leaks() == [], e  # the error is still held, what its frames held is not
    world.fail.clear()
    TensorRtEngine(header, plan, "x.engine").close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tensorrt": "9.9.9"}, "by TensorRT 9.9.9"),
        ({"gpu": "Xavier"}, "on the GPU Xavier"),
        ({"compute_capability": "7.2"}, "for compute capability 7.2"),
        ({"feature_dim": 5}, "not of the model that its header names"),
        ({"height": 9}, "not of the model that its header names"),
    ],
)
def test_double_refuses_an_engine_of_elsewhere(world, tiny_model, changes, words):
    header, plan = build(tiny_model(), BuildOptions())
    with pytest.raises(EngineError, match=rf"x\.engine: .*{words}.*engine build"):
        TensorRtEngine(dataclasses.replace(header, **changes), plan, "x.engine")
    assert world.leaks() == []


def test_double_runs_an_engine_file(world, tiny_model, tmp_path):
    header, plan = build(tiny_model(), BuildOptions())
    for suffix in ("engine", "plan", "ENGINE"):
        path = tmp_path / f"x.{suffix}"
        write_engine(path, header, plan)
        engine = create_engine(path)
        codes, _ = engine.describe(images(3))
        np.testing.assert_array_equal(codes, np.full((3, 64), 0x80, np.uint8))
        engine.close()
