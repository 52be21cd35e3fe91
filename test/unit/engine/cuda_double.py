"""The half of the double that stands for `pycuda`, and what both halves record.

See tensorrt_double.py; it runs nothing on a GPU.
"""

from __future__ import annotations

import threading
import types
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class World:
    """What the double recorded, and what it shall do."""

    version: str = "10.3.0"
    gpu: str | None = "Orin"
    capability: tuple[int, int] = (8, 7)
    build_s: float = 0.0
    refused_operators: tuple[str, ...] = ()
    fail: dict[str, str] = field(default_factory=dict)  # call -> what TensorRT says of it
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # what would have gone wrong on a GPU
    stacks: dict[int, list[Any]] = field(default_factory=dict)  # PyCUDA's contexts by thread
    # CUDA's own stack, which PyCUDA keeps at most one context on, and other libraries theirs.
    current: dict[threading.Thread, list[str]] = field(default_factory=dict)
    retained: int = 0
    device: dict[int, bytearray] = field(default_factory=dict)  # live allocations by address
    host: set[int] = field(default_factory=set)
    live: list[str] = field(default_factory=list)  # kinds of live TensorRT objects and streams
    streams: dict[int, Any] = field(default_factory=dict)
    configs: list[Any] = field(default_factory=list)
    networks: list[Any] = field(default_factory=list)
    next_address: int = 4096

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    def count(self, call: str) -> int:
        return sum(c[0] == call for c in self.calls)

    def stack(self) -> list[Any]:
        return self.stacks.setdefault(threading.get_ident(), [])

    def cuda_stack(self) -> list[str]:
        return self.current.setdefault(threading.current_thread(), [])

    def need_context(self, call: str, error: type[Exception] = RuntimeError) -> None:
        self.calls.append((call, threading.get_ident()))
        if not self.cuda_stack() or not self.retained:
            self.problems.append(f"{call} without a current context")
            raise error(f"{call} failed: invalid device context")

    def leaks(self) -> list[str]:
        """What is not freed, not popped or not counted down; CUDA's stacks end with threads."""
        found = [f"device {n}" for n in self.device] + [f"host {n}" for n in self.host]
        found += self.live
        found += [f"context in thread {t}" for t, stack in self.stacks.items() if stack]
        found += [
            f"{len(stack)} current in {thread.name}"
            for thread, stack in self.current.items()
            if stack and thread.is_alive()
        ]
        if self.retained:
            found.append(f"primary context retained {self.retained} times")
        return found + self.problems


class Tracked:
    """An object of a native library: its destruction needs the context."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.live.append(type(self).__name__)

    def __del__(self) -> None:
        self.world.live.remove(type(self).__name__)
        if not self.world.cuda_stack():
            self.world.problems.append(f"{type(self).__name__} destroyed without a context")


def pycuda_driver(world: World) -> types.ModuleType:
    module = types.ModuleType("pycuda.driver")

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    def fail(call: str) -> None:
        if call in world.fail:
            said = world.fail[call]
            raise (MemoryError if "out of memory" in said else Error)(said)

    class Context:
        """A primary context; after cuda.hpp of PyCUDA 2026.1, class `context`."""

        def __init__(self) -> None:
            self.valid = True
            self.thread = threading.get_ident()
            world.retained += 1

        def push(self) -> None:
            if not self.valid:
                raise Error("cuCtxPushCurrent failed: invalid device context")
            world.calls.append(("push", threading.get_ident()))
            if world.stack():
                world.cuda_stack().pop()
            world.cuda_stack().append("primary")
            world.stack().append(self)

        @staticmethod
        def pop() -> None:
            world.calls.append(("pop", threading.get_ident()))
            if not world.stack():
                raise Error("cannot pop context from empty stack")
            world.cuda_stack().pop()
            world.stack().pop()
            if world.stack():
                world.cuda_stack().append("primary")

        def detach(self) -> None:
            """cuDevicePrimaryCtxRelease pops from no stack, so that something stays on CUDA's."""
            world.calls.append(("detach", threading.get_ident()))
            if not self.valid:
                raise Error("cannot detach from invalid context")
            stack = world.stack()
            active = bool(stack) and stack[-1] is self
            if active:
                world.retained -= 1
            elif self.thread == threading.get_ident():
                world.cuda_stack().append("primary")
                world.retained -= 1
            self.valid = False  # elsewhere nothing is counted down, and nothing said
            while stack and not stack[-1].valid:
                stack.pop()
            if active and stack:
                world.cuda_stack().append("primary")

    class Device:
        def __init__(self, ordinal: int) -> None:
            assert ordinal == 0

        def name(self) -> str:
            return str(world.gpu)

        def compute_capability(self) -> tuple[int, int]:
            return world.capability

        def retain_primary_context(self) -> Context:
            fail("retain")
            return Context()

    def need_pycuda(call: str) -> None:
        """What PyCUDA makes keeps the context of its own stack."""
        world.need_context(call, Error)
        if not world.stack():
            raise Error("explicit_context_dependent failed: no currently active context?")

    class Stream(Tracked):
        def __init__(self) -> None:
            need_pycuda("Stream")
            super().__init__(world)
            self.handle = id(self)
            self.queue: list[Any] = []
            # By its methods' closure alone, or it would keep itself alive.
            world.streams[self.handle] = self.queue

        def synchronize(self) -> None:
            world.need_context("synchronize", Error)
            work, self.queue[:] = list(self.queue), []
            for step in work:
                step()

    class HostAllocation:
        def __init__(self, array: Any) -> None:
            self.array = array
            self.__array_interface__ = array.__array_interface__
            world.host.add(id(self))

        def free(self) -> None:
            world.need_context("host free", Error)
            world.host.remove(id(self))

    class DeviceAllocation:
        def __init__(self, size: int) -> None:
            self.address = world.next_address
            world.next_address += size + 4096
            world.device[self.address] = bytearray(size)

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            world.need_context("device free", Error)
            del world.device[self.address]

    def init() -> None:
        if world.gpu is None:
            raise Error("cuInit failed: no CUDA-capable device is detected")

    def pagelocked_empty(shape: Any, dtype: Any) -> Any:
        need_pycuda("pagelocked_empty")
        return np.asarray(HostAllocation(np.empty(shape, dtype)))

    def mem_alloc(size: int) -> DeviceAllocation:
        need_pycuda("mem_alloc")
        fail("mem_alloc")
        return DeviceAllocation(size)

    def memcpy_htod_async(target: Any, source: Any, stream: Any) -> None:
        world.need_context("memcpy_htod_async", Error)
        assert source.flags.c_contiguous and isinstance(source.base.base, HostAllocation)

        def copy() -> None:
            world.device[int(target)][: source.nbytes] = source.tobytes()

        stream.queue.append(copy)

    def memcpy_dtoh_async(target: Any, source: Any, stream: Any) -> None:
        world.need_context("memcpy_dtoh_async", Error)
        assert target.flags.c_contiguous and isinstance(target.base.base, HostAllocation)

        def copy() -> None:
            data = bytes(world.device[int(source)][: target.nbytes])
            target[...] = np.frombuffer(data, target.dtype).reshape(target.shape)

        stream.queue.append(copy)

    for thing in (
        Error, MemoryError, Context, Device, Stream, init, pagelocked_empty, mem_alloc,
        memcpy_htod_async, memcpy_dtoh_async,
    ):  # fmt: skip
        setattr(module, thing.__name__, thing)
    return module
