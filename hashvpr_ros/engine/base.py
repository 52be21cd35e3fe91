"""The contract of every engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import EngineError, reason_of
from hashvpr_ros.types import CODE_BYTES, Descriptor

# Rows times columns of local descriptors: to compare two images takes memory by the square of it.
MOST_CELLS = 2048


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is, known as soon as it is loaded."""

    name: str  # of the model, for people
    fingerprint: str  # 64 hex digits; equal for the same model whatever runtime executes it
    height: int  # pixels of the images that `describe` takes
    width: int
    feature_dim: int  # D
    provider: str  # what executes it, e.g. "CPUExecutionProvider"
    license: str = ""
    version: str = ""
    # Logistic curve P(match is right) = 1 / (1 + exp(-(slope * x + intercept))) over the
    # distinctness x (matching.distinct), fitted when the model was made; None: the file has none.
    probability_curve: tuple[float, float] | None = None
    # Rows, columns and values of local descriptors; None: the model gives none.
    local_shape: tuple[int, int, int] | None = None


class DescriptorEngine(Protocol):
    """Turns images into descriptors. Used by one thread at a time."""

    @property
    def info(self) -> EngineInfo:
        """The engine's model, input size and provider."""
        ...

    def describe(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Describe a batch.

        Args:
            images: uint8 [N, H, W, 3], RGB, of the engine's height and width, N >= 1.

        Returns:
            codes uint8 [N, 64] and L2-normalised features float32 [N, D].

        Raises:
            EngineError: wrong shape or dtype, or the runtime failed.
        """
        ...

    def descriptors(self, images: NDArray[np.uint8]) -> list[Descriptor]:
        """Describe a batch with local descriptors, where `info` says that there are any.

        Args, Raises: as `describe`.
        """
        ...

    def warm_up(self) -> None:
        """Run once on a blank image, so that the first real one is not the slow one."""
        ...

    def close(self) -> None:
        """Free the runtime's memory; calling it again does nothing."""
        ...


def check_images(images: object, info: EngineInfo, source: object) -> NDArray[np.uint8]:
    """The batch as an array, where it is what an engine takes.

    Args:
        source: the file of the engine, for the error.

    Raises:
        EngineError: not uint8 [N, H, W, 3] of the engine's size with N of at least 1.
    """
    array = np.asarray(images)
    want = (info.height, info.width, 3)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != want or not len(array):
        raise EngineError(
            f"{source}: takes uint8 [N, {want[0]}, {want[1]}, 3] with N of at least 1, not "
            f"{array.dtype} {list(array.shape)}; resize the images first"
        )
    return array


def outputs_of(info: EngineInfo) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
    """Name, shape of one image's, and type of what a model gives."""
    outputs: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
        "codes": ((CODE_BYTES,), np.uint8),
        "features": ((info.feature_dim,), np.float32),
    }
    if info.local_shape is not None:
        outputs["locals"] = info.local_shape, np.float32
    return outputs


def check_answer(answer: Sequence[object], rows: int, info: EngineInfo, source: object) -> None:
    """Refuse what a model has no right to answer: it is used without another look.

    Args:
        answer: in the order of `outputs_of`.
        rows: how many images were asked for.

    Raises:
        EngineError: an output of another shape or type, or a number is NaN or infinite.
    """
    for (name, (one, dtype)), array in zip(outputs_of(info).items(), answer, strict=True):
        shape = (rows, *one)
        if not isinstance(array, np.ndarray) or (array.dtype, array.shape) != (dtype, shape):
            got = type(array).__name__
            if isinstance(array, np.ndarray):
                got = f"{array.dtype} {list(array.shape)}"
            raise EngineError(
                f"{source}: the model gave {name} {got}, not {np.dtype(dtype)} {list(shape)}; "
                "export it again"
            )
        if dtype is np.float32 and not np.isfinite(array).all():
            raise EngineError(f"{source}: the model gave NaN or infinity; export it again")


# Of local descriptors in int8: elements seldom exceed a half.
_LOCAL_SCALE = 256.0


@contextmanager
def runtime_errors(source: object, what: str, remedy: str) -> Iterator[None]:
    """Whatever a runtime raises inside, of whichever class, is an EngineError of one sentence.

    Args:
        source: the file of the engine.
        what: failed, as "the runtime failed".
        remedy: what to do.
    """
    try:
        yield
    except EngineError:
        raise
    except Exception as e:  # the runtimes' own classes share no other base
        raise EngineError(f"{source}: {what} ({reason_of(e)}); {remedy}") from e


class AnsweringEngine:
    """A `DescriptorEngine` but for `close`, on top of one method."""

    info: EngineInfo

    def _answer(self, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """All outputs for a batch, checked, in the order of `outputs_of`."""
        raise NotImplementedError

    def describe(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """See `DescriptorEngine.describe`."""
        codes, features, *_ = self._answer(images)
        return codes, features

    def descriptors(self, images: NDArray[np.uint8]) -> list[Descriptor]:
        """See `DescriptorEngine.descriptors`."""
        codes, features, *local = self._answer(images)
        if not local:
            return [Descriptor(c, f) for c, f in zip(codes, features, strict=True)]
        stored = np.clip(np.rint(local[0] * _LOCAL_SCALE), -127, 127).astype(np.int8)
        return [Descriptor(*each) for each in zip(codes, features, stored, strict=True)]

    def warm_up(self) -> None:
        """See `DescriptorEngine.warm_up`."""
        self.describe(np.zeros((1, self.info.height, self.info.width, 3), np.uint8))


def closed(source: object) -> EngineError:
    """The error of an engine that is used after `close`."""
    return EngineError(f"{source}: the engine is closed; create it again")
