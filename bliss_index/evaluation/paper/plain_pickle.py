"""Reads the data of a pickle file without unpickling it.

A pickle is a program for a small machine. Here only the instructions that put texts, numbers,
lists, dictionaries and arrays of bytes together are carried out. Names of functions and classes are
compared with five known ones and never looked up, so nothing can be called, whatever the file says:
there is no unpickler, no import, no persistent id, no extension code, no object state.
"""

from __future__ import annotations

import io
import math
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import CorruptStoreError

_LARGEST_FILE = 1 << 30
_MOST_DIMENSIONS = 8
_IGNORED = {"PROTO", "FRAME"}
_VALUES = {
    "INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}


@dataclass(frozen=True)
class _Name:
    """A function or class that the file names; this is all that is ever known of it."""

    module: str
    name: str


@dataclass
class _Array:
    """An array; its content comes after it was made."""

    content: npt.NDArray[np.uint8] | None = None


_MAKERS = {_Name(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
_ARRAY = _Name("numpy", "ndarray")
_TYPE = _Name("numpy", "dtype")
_ENCODE = _Name("_codecs", "encode")  # how Python 3 writes bytes in protocol 2
_KNOWN = {*_MAKERS, _ARRAY, _TYPE, _ENCODE}
_BYTE = _Name("numpy", "dtype('u1')")
_BYTE_STATE = (3, "|", None, None, None, -1, -1, 0)


class _RefusedError(ValueError):
    """The file asks for something else than data."""


def read_plain_pickle(path: Path) -> dict[str, Any]:
    """Read the dictionary that a pickle file of Python 2 or 3 holds, protocols 0 to 4.

    Returns
    -------
    Values by their text keys: texts, bytes, numbers, lists, dictionaries and tuples of them, and
    read-only uint8 arrays of any shape.

    Raises
    ------
    CorruptStoreError
        The file cannot be read, is damaged, or asks for anything else; what it asks for is named.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise _RefusedError(f"it is larger than {_LARGEST_FILE >> 20} MiB")
        values = _Machine().run(path.read_bytes())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptStoreError(
            f"{path} cannot be read as arrays, numbers and texts: {type(error).__name__}: {error}; "
            "download it again"
        ) from error
    if not isinstance(values, dict):
        raise CorruptStoreError(f"{path} holds a {type(values).__name__}, expected a dictionary")
    return {key: v.content if isinstance(v, _Array) else v for key, v in values.items()}


class _Machine:
    """Carries out the instructions that make data."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # what lies below each mark
        self._memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        """Return what the program leaves; raise ValueError, LookupError or TypeError otherwise."""
        for code, argument, _ in pickletools.genops(io.BytesIO(content)):
            if code.name == "STOP":
                return self._stack.pop()
            self._step(code.name, argument)
        raise _RefusedError("it ends too early")

    def _step(self, code: str, argument: Any) -> None:
        stack = self._stack
        if code in _VALUES:
            stack.append(argument)
        elif code in _PUTS:
            self._memo[argument] = stack[-1]
        elif code == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif code in _GETS:
            stack.append(self._memo[argument])
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code == "MARK":
            self._below.append(stack)
            self._stack = []
        elif code in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if code == "EMPTY_LIST" else {})
        elif code in ("TUPLE", "LIST", "DICT"):
            items = self._since_mark()
            made = tuple(items) if code == "TUPLE" else items
            self._stack.append(_paired(items) if code == "DICT" else made)
        elif code in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[code])))
        elif code in ("APPEND", "APPENDS"):
            items = self._pop(1) if code == "APPEND" else self._since_mark()
            self._top(list).extend(items)
        elif code in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if code == "SETITEM" else self._since_mark()
            self._top(dict).update(_paired(items))
        elif code in ("GLOBAL", "STACK_GLOBAL"):
            module, name = argument.split(" ", 1) if code == "GLOBAL" else self._pop(2)
            stack.append(_known(module, name))
        elif code == "REDUCE":
            function, arguments = self._pop(2)
            stack.append(_stand_in(function, arguments))
        elif code == "BUILD":
            (state,) = self._pop(1)
            _fill(stack[-1], state)
        elif code not in _IGNORED:
            asked = f" {argument}" if code == "INST" else ""
            raise _RefusedError(f"it asks for{asked} the instruction {code}")

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise _RefusedError("an instruction lacks its operands")
        split = len(self._stack) - count
        taken = self._stack[split:]
        del self._stack[split:]
        return taken

    def _since_mark(self) -> list[Any]:
        taken, self._stack = self._stack, self._below.pop()
        return taken

    def _top(self, kind: type[Any]) -> Any:
        if type(self._stack[-1]) is not kind:
            raise _RefusedError(f"items are added to something that is not a {kind.__name__}")
        return self._stack[-1]


def _paired(items: list[Any]) -> dict[str, Any]:
    """A dictionary of keys and values in turn; only texts are ever hashed, nothing nested."""
    if len(items) % 2 or not all(type(key) is str for key in items[::2]):
        raise _RefusedError("keys of a dictionary are not texts")
    return dict(zip(items[::2], items[1::2], strict=True))


def _known(module: Any, name: Any) -> _Name:
    if not (type(module) is str and type(name) is str):
        raise _RefusedError("a global has no name")
    found = _Name(module, name)
    if found not in _KNOWN:
        raise _RefusedError(f"it asks for {module}.{name}")
    return found


def _stand_in(function: Any, arguments: Any) -> Any:
    """The result of a call that makes an array or bytes; only three calls are known."""
    if type(function) is _Name and type(arguments) is tuple:
        if function in _MAKERS and arguments[:2] == (_ARRAY, (0,)):
            return _Array()
        if function == _TYPE and arguments[:1] == ("u1",):
            return _BYTE
        if function == _ENCODE and arguments[1:] == ("latin1",):
            return arguments[0].encode("latin1")
        raise _RefusedError(f"it asks for {function.module}.{function.name} of something else")
    raise _RefusedError("it asks for a call of something that is not a function")


def _fill(target: Any, state: Any) -> None:
    """Give an array its shape and bytes; a type of bytes has nothing to be given."""
    if target is _BYTE and state == _BYTE_STATE:
        return
    if type(target) is not _Array or type(state) is not tuple or len(state) != 5:
        raise _RefusedError("it gives a state to something that is not an array of bytes")
    _, shape, kind, by_columns, content = state
    if kind is not _BYTE:
        raise _RefusedError("it asks for an array of another type than bytes")
    if type(content) is str:  # how Python 2 writes bytes
        content = content.encode("latin1")
    if type(content) is not bytes or type(shape) is not tuple or len(shape) > _MOST_DIMENSIONS:
        raise _RefusedError("an array lacks its shape or its bytes")
    fits = all(type(size) is int and 0 <= size <= len(content) for size in shape)
    if not fits or math.prod(shape) != len(content):
        raise _RefusedError("the shape of an array is not that of its bytes")
    flat = np.frombuffer(content, np.uint8)
    target.content = flat.reshape(shape[::-1]).T if by_columns is True else flat.reshape(shape)
