"""A matrix of a ``.safetensors`` file, read from its place without loading the others."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np

from bliss_index.errors import InvalidInputError
from bliss_index.store.formats.arrays import BFLOAT16, ArrayReader, Block, choose, require_block
from bliss_index.store.source_file import SourceFile
from bliss_index.store.source_reader import ColumnNames

_MOST_HEADER = 100_000_000  # as the format says
_TYPES = {"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"}


class _Tensor(NamedTuple):
    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


def open_safetensors(file: SourceFile, columns: ColumnNames, texts: bool) -> ArrayReader:
    """Find a tensor, by its name.

    Raises
    ------
    InvalidInputError
        It is no such file, is truncated, or it is not clear which tensor is meant.
    """
    with file.open() as stream:
        size = stream.size()
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, _MOST_HEADER):
            raise _damaged(file, f"a header of {length} bytes does not fit {size} bytes")
        header = stream.read(length)
    try:
        tensors: dict[str, _Tensor] = {}
        for name, said in json.loads(header).items():
            if name != "__metadata__":
                begin, end = said["data_offsets"]
                shape = tuple(map(int, said["shape"]))
                tensors[name] = _Tensor(str(said["dtype"]), shape, int(begin), int(end))
        ends = [tensor.end for tensor in tensors.values()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(file, f"{type(error).__name__} {error} in its header") from error
    data = 8 + length
    if size != data + max(ends, default=0):
        raise _damaged(file, f"{size} bytes, its header promises {data + max(ends, default=0)}")
    shapes = {name: f"{t.kind} {list(t.shape)}" for name, t in tensors.items()}
    fits = {n: t for n, t in tensors.items() if t.kind in _TYPES and len(t.shape) == 2}
    name = choose(file.name, columns.embedding, shapes, fits, texts)
    kind, shape, begin, end = tensors[name]
    what = f"{file.name}: {name}"
    rows, dim = require_block(what, shape, _TYPES.get(kind, kind))
    stored = BFLOAT16 if kind == "BF16" else np.dtype(_TYPES[kind]).newbyteorder("<")
    block = Block(rows, dim, stored, data + begin)
    if begin < 0 or end - begin != block.size:
        raise _damaged(file, f"{end - begin} bytes for {name!r}, which has {block.size}")
    return ArrayReader.of(file, block, unread=tuple(n for n in tensors if n != name))


def _damaged(file: SourceFile, what: Any) -> InvalidInputError:
    return InvalidInputError(f"{file.name} cannot be read as safetensors: {what}")
