"""Reads the pickle in a .npy file of whole numbers and lists of them, without the module pickle.

A pickle is a program for a small machine. A real machine calls whatever the program names, and so
a hostile file runs code. This machine has only the instructions that Python and numpy write for
such an array, and it calls nothing: the few names that it knows stand for steps of its own.
"""

from __future__ import annotations

import enum
import re
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_VALUES = 10_000_000  # which the program makes: some 600 MB of them, and seconds
_MOST_MARKS = 100  # numpy has at most 4 open at a time
_NUMBER = re.compile(r"[iu][1248]|f[248]")


class _Name(enum.Enum):
    """What a program may name."""

    RECONSTRUCT = "numpy.core.multiarray._reconstruct"
    SCALAR = "numpy.core.multiarray.scalar"
    FROM_BUFFER = "numpy.core.numeric._frombuffer"
    NDARRAY = "numpy.ndarray"
    DTYPE = "numpy.dtype"
    ENCODE = "_codecs.encode"
    BYTES = "__builtin__.bytes"  # of none, as protocol 2 writes them


class _Type:
    """A type of array elements: a number, as in `<i8`, or objects."""

    def __init__(self, text: str) -> None:
        self.text, self.order = text, "="

    @property
    def is_object(self) -> bool:
        return self.text == "O"

    def numbers(self, data: bytes) -> NDArray[Any]:
        """The numbers in some bytes, as a view."""
        if self.is_object:
            raise ValueError("it takes bytes for objects")
        dtype = np.dtype(self.order + self.text)
        if len(data) % dtype.itemsize:
            raise ValueError("the bytes of an array are cut off")
        return np.frombuffer(data, dtype)


class Array:
    """An array that a program made.

    Attributes:
        shape: of it.
        items: numbers as an array [n], or objects as a list of n; n is not yet compared with the
            shape, since a list can still grow.
    """

    def __init__(self) -> None:
        self.shape: tuple[int, ...] | None = None
        self.items: NDArray[Any] | list[Any] = []


_MARK = object()
_TEXT_SIZE = {0x8C: 1, ord("X"): 4, 0x8D: 8}  # bytes of the length that precedes a text
_BYTES_SIZE = {ord("C"): 1, ord("B"): 4, 0x8E: 8, 0x96: 8, ord("U"): 1, ord("T"): 4}
_INTEGER = {
    ord("K"): struct.Struct("<B"),
    ord("M"): struct.Struct("<H"),
    ord("J"): struct.Struct("<i"),
}
_FLOAT = struct.Struct(">d")
_CONSTANT = {ord("N"): None, 0x88: True, 0x89: False}
_TUPLE_OF = {0x85: 1, 0x86: 2, 0x87: 3}
_GET_SIZE = {ord("h"): 1, ord("j"): 4}
_PUT_SIZE = {ord("q"): 1, ord("r"): 4}


def read_array(data: bytes | memoryview) -> Array:
    """The array that a pickle of protocol 2 to 5 makes.

    Raises:
        ValueError: with what is wrong: the program is cut off, has another instruction, names
            anything else, or makes no array or too many values.
    """
    machine = _Machine(memoryview(data))
    try:
        result = machine.run()
    except (IndexError, struct.error) as e:
        raise ValueError("its pickle is damaged") from e
    if not isinstance(result, Array):
        raise ValueError("its pickle makes no array")
    return result


class _Machine:
    """Runs one program. An IndexError or struct.error means that it is damaged."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0
        self._stack: list[Any] = []
        self._marks = 0
        self._memo: dict[int, Any] = {}
        self._encoded_bytes = 0

    def run(self) -> Any:
        if self._take(1)[0] != 0x80 or self._take(1)[0] not in (2, 3, 4, 5):
            raise ValueError("its pickle is of another protocol than 2 to 5")
        for _ in range(MOST_VALUES):
            code = self._take(1)[0]
            if code == ord("."):
                return self._pop()
            self._step(code)
        raise ValueError(f"its pickle has more than {MOST_VALUES:,} instructions")

    def _step(self, code: int) -> None:
        push = self._stack.append
        if code in _INTEGER:
            push(_INTEGER[code].unpack(self._take(_INTEGER[code].size))[0])
        elif code in _CONSTANT:
            push(_CONSTANT[code])
        elif code in _TEXT_SIZE:
            push(self._text(self._sized(_TEXT_SIZE[code])))
        elif code in _BYTES_SIZE:
            push(bytes(self._sized(_BYTES_SIZE[code])))
        elif code == 0x94:  # MEMOIZE
            self._memo[len(self._memo)] = self._top()
        elif code in _PUT_SIZE:
            self._memo[self._unsigned(_PUT_SIZE[code])] = self._top()
        elif code in _GET_SIZE:
            self._get(self._unsigned(_GET_SIZE[code]))
        elif code in _TUPLE_OF:
            items = [self._pop() for _ in range(_TUPLE_OF[code])]
            push(tuple(reversed(items)))
        elif code == ord("G"):
            push(_FLOAT.unpack(self._take(8))[0])
        elif code == ord("("):
            self._marks += 1
            if self._marks > _MOST_MARKS:
                raise ValueError("its pickle is nested too deep")
            push(_MARK)
        elif code == ord("t"):
            push(tuple(self._to_mark()))
        elif code == ord(")"):
            push(())
        elif code == ord("]"):
            push([])
        elif code == ord("a"):
            self._extend([self._pop()])
        elif code == ord("e"):
            self._extend(self._to_mark())
        elif code == ord("c"):  # GLOBAL
            push(_name(self._line(), self._line()))
        elif code == 0x93:  # STACK_GLOBAL
            name, module = self._pop(), self._pop()
            push(_name(module, name))
        elif code == ord("R"):
            arguments, name = self._pop(), self._pop()
            push(self._apply(name, arguments))
        elif code == ord("b"):
            state = self._pop()
            _build(self._top(), state)
        elif code == 0x8A:  # LONG1
            push(int.from_bytes(self._take(min(9, self._unsigned(1))), "little", signed=True))
        elif code == 0x95:  # FRAME: only says how much to read ahead
            self._take(8)
        else:
            raise ValueError(f"its pickle has the instruction {code:#04x}, which no numbers need")

    def _take(self, size: int) -> memoryview:
        part = self._data[self._at : self._at + size]
        if len(part) != size:
            raise ValueError("its pickle is cut off")
        self._at += size
        return part

    def _unsigned(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _sized(self, length_bytes: int) -> memoryview:
        return self._take(min(self._unsigned(length_bytes), len(self._data)))

    @staticmethod
    def _text(data: memoryview) -> str:
        # As Python writes it. What is not UTF-8 is a UnicodeDecodeError, which is a ValueError.
        return str(data, "utf-8", "surrogatepass")

    def _line(self) -> str:
        part = bytes(self._data[self._at : self._at + 100])
        end = part.find(b"\n")
        if end < 0:
            raise ValueError("its pickle is damaged")
        self._at += end + 1
        return part[:end].decode("ascii")

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("its pickle is damaged")
        return value

    def _top(self) -> Any:
        value = self._stack[-1]
        if value is _MARK:
            raise ValueError("its pickle is damaged")
        return value

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise ValueError("its pickle is damaged")
        self._stack.append(self._memo[index])

    def _to_mark(self) -> list[Any]:
        """All above the last mark, which is removed with it."""
        for at in range(len(self._stack) - 1, -1, -1):
            if self._stack[at] is _MARK:
                found = self._stack[at + 1 :]
                del self._stack[at:]
                self._marks -= 1
                return found
        raise ValueError("its pickle is damaged")

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise ValueError("its pickle is damaged")
        target.extend(items)

    def _apply(self, name: Any, arguments: Any) -> Any:
        """What numpy's function of a name would make of arguments."""
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise ValueError("its pickle is damaged")
        if name is _Name.RECONSTRUCT and len(arguments) == 3:
            if arguments[0] is _Name.NDARRAY:
                return Array()  # its shape, type and content follow
        elif name is _Name.DTYPE and len(arguments) == 3:
            return _type(arguments[0])
        elif name is _Name.SCALAR and len(arguments) == 2:
            return _scalar(*arguments)
        elif name is _Name.FROM_BUFFER and len(arguments) == 4:
            content, dtype, shape, _ = arguments
            return _filled(Array(), shape, dtype, content)
        elif name is _Name.BYTES and not arguments:
            return b""
        elif name is _Name.ENCODE and len(arguments) == 2:
            text, encoding = arguments
            if isinstance(text, str) and encoding == "latin1":
                # One long text can be encoded as often as the program has instructions.
                self._encoded_bytes += len(text)
                if self._encoded_bytes <= len(self._data):
                    return text.encode("latin1")
        raise ValueError(f"its pickle uses {name.value} in another way than numpy does")


def _name(module: Any, name: Any) -> _Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("its pickle is damaged")
    full = f"{module}.{name}"
    try:  # numpy 2 has renamed one module
        return _Name(full.replace("numpy._core.", "numpy.core.", 1))
    except ValueError:
        raise ValueError(f"its pickle names {full[:100]!r}, which no numbers need") from None


def _plain(value: Any) -> Any:
    """A short text as Python 3 or Python 2 wrote it; anything else as it is."""
    return value.decode("latin1") if isinstance(value, bytes) and len(value) < 10 else value


def _type(text: Any) -> _Type:
    text = _plain(text)
    if text in ("O8", "O4", "O"):
        return _Type("O")
    if not isinstance(text, str) or not _NUMBER.fullmatch(text):
        raise ValueError("an array in it holds neither numbers nor objects")
    return _Type(text)


def _scalar(dtype: Any, data: Any) -> int | float:
    if not isinstance(dtype, _Type) or not isinstance(data, bytes):
        raise ValueError("its pickle is damaged")
    numbers = dtype.numbers(data)
    if len(numbers) != 1:
        raise ValueError("a number in it is not of the length of its type")
    value: int | float = numbers[0].item()
    return value


def _build(target: Any, state: Any) -> None:
    """Complete a type or an array by its state."""
    if isinstance(target, _Type) and isinstance(state, tuple) and len(state) == 8:
        order = _plain(state[1])
        fields = state[2:5]  # of a structure
        if isinstance(order, str) and order in ("<", ">", "=", "|") and fields == (None,) * 3:
            target.order = order
            return
    elif isinstance(target, Array) and isinstance(state, tuple) and len(state) == 5:
        _, shape, dtype, _, content = state
        _filled(target, shape, dtype, content)
        return
    raise ValueError("its pickle completes a type or an array in another way than numpy does")


def _filled(array: Array, shape: Any, dtype: Any, content: Any) -> Array:
    """Give an array its content, once."""
    if array.shape is not None or not isinstance(shape, tuple) or not isinstance(dtype, _Type):
        raise ValueError("its pickle is damaged")
    if not all(type(n) is int and 0 <= n <= MOST_VALUES for n in shape):
        raise ValueError("an array in it has an impossible shape")
    if isinstance(content, list) and dtype.is_object:
        array.items = content
    elif isinstance(content, bytes):
        array.items = dtype.numbers(content)
    else:
        raise ValueError("an array in it has another content than its type says")
    array.shape = shape
    return array
