"""A matrix of a file that ``torch.save`` wrote, read from its place; nothing else is unpickled."""

from __future__ import annotations

import contextlib
import pickle
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from bliss_index.errors import InvalidInputError
from bliss_index.store.formats.arrays import BFLOAT16, ArrayReader, Block, choose, require_block
from bliss_index.store.formats.npy import ARCHIVE_ERRORS, require_one_archive
from bliss_index.store.source_file import SourceFile
from bliss_index.store.source_reader import ColumnNames

_ONLY = "(the tensor)"
_MOST_NAMES = 10_000
_READ_BYTES = 1 << 20


def open_pytorch(file: SourceFile, columns: ColumnNames, texts: bool) -> ArrayReader:
    """Find a tensor in a tensor, a list, or dictionaries of them, by its name ('a.b' in 'a').

    The file is opened by ``torch.load(weights_only=True)`` with tensors without content, which say
    where theirs lies.

    Raises
    ------
    InvalidInputError
        It holds something else than tensors and plain values, is damaged, or it is not clear which
        tensor is meant.
    """
    import torch

    with _loadable(file), file.open() as stream:
        if stream.read(4) != b"PK\x03\x04":
            raise InvalidInputError(
                f"{file.name} is no file of torch.save as it writes since version 1.6; write it "
                "again: import torch; torch.save(torch.load(old, weights_only=True), new)"
            )
        stream.seek(0)
        little = _is_little(file.name, stream)
        stream.seek(0)
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            content = torch.load(stream, weights_only=True, map_location="cpu")
        size = stream.size()
        found = dict(_tensors(content, "", torch.Tensor, set()))
    tensors = {name: tensor for name, tensor in found.items() if tensor.layout == torch.strided}
    kinds = {name: str(t.dtype).removeprefix("torch.") for name, t in tensors.items()}
    said = {name: f"{kinds[name]} {list(t.shape)}" for name, t in tensors.items()}
    fits = {n: t for n, t in tensors.items() if t.ndim == 2 and t.is_floating_point()}
    vectors = [t for t in tensors.values() if t.ndim == 1 and t.is_floating_point()]
    if not fits and len(vectors) > 1 and len({tuple(t.shape) for t in vectors}) == 1:
        raise InvalidInputError(
            f"{file.name} holds {len(vectors)} vectors of {vectors[0].shape[0]} values, one a row; "
            "write them as a table: import pandas, torch; d = torch.load(old, weights_only=True); "
            "d = d if isinstance(d, dict) else dict(enumerate(d)); "
            "pandas.DataFrame({'key': list(map(str, d)), "
            "'embedding': [v.numpy() for v in d.values()]}).to_parquet('new.parquet')"
        )
    name = next(iter(tensors)) if list(tensors) == [_ONLY] and columns.embedding is None else None
    name = name or choose(file.name, columns.embedding, said, fits, texts)
    tensor, kind = tensors[name], kinds[name]
    what = file.name if name == _ONLY else f"{file.name}: {name}"
    rows, dim = require_block(what, tuple(tensor.shape), kind)
    stored = BFLOAT16 if kind == "bfloat16" else np.dtype(kind).newbyteorder("<")
    place = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    steps = tensor.stride()
    by_column = steps == (1, rows) and rows > 1 and dim > 1
    if place is None:
        raise InvalidInputError(
            f"{what}: torch {torch.__version__} does not say where its values lie; take a newer "
            "one, or write: import numpy, torch; numpy.save('new.npy', torch.load(old, "
            "weights_only=True).float().numpy())"
        )
    if not (by_column or tensor.is_contiguous()) or not little:
        raise InvalidInputError(
            f"{what} is not stored row by row as little-endian values (strides {steps}); write it "
            "again: import torch; torch.save(torch.load(old, weights_only=True).contiguous(), new)"
        )
    block = Block(rows, dim, stored, place + tensor.storage_offset() * stored.itemsize,
                  by_column=by_column)  # fmt: skip
    if block.offset < 0 or block.offset + block.size > size:
        raise InvalidInputError(f"{what} ends behind the {size} bytes of the file: damaged")
    _require_whole(file, what, block.offset)
    return ArrayReader.of(file, block, unread=tuple(n for n in tensors if n != name))


@contextlib.contextmanager
def _loadable(file: SourceFile) -> Iterator[None]:
    """Turn whatever torch says of a file into our error."""
    try:
        yield
    except InvalidInputError:
        raise
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"({named[1]})" if named else "or is damaged"
        raise InvalidInputError(
            f"{file.name} holds more than tensors and plain values {what}; such files can run "
            "programs and are not loaded. Where you trust it, write the tensor alone: import "
            "torch; torch.save(torch.load(old, weights_only=False)['embeddings'], new)"
        ) from error
    except Exception as error:  # a damaged pickle or zip raises of all kinds
        line = (str(error).strip().splitlines() or [""])[0]
        raise InvalidInputError(
            f"{file.name} cannot be read as a file of torch.save: {type(error).__name__}: "
            f"{line[:200]}"
        ) from error


def _is_little(name: str, stream: Any) -> bool:
    with zipfile.ZipFile(stream) as archive:
        require_one_archive(name, archive)
        names = [name for name in archive.namelist() if name.rpartition("/")[2] == "byteorder"]
        return not names or archive.read(names[0]).strip() == b"little"


def _require_whole(file: SourceFile, what: str, offset: int) -> None:
    """Compare the member that a tensor lies in with its checksum, in one pass."""
    with file.open() as stream, zipfile.ZipFile(stream) as archive:
        before = [info for info in archive.infolist() if info.header_offset <= offset]
        if not before:
            raise InvalidInputError(f"{what} begins before the archive that it is of: damaged")
        member = max(before, key=lambda info: info.header_offset)
        try:
            with archive.open(member) as content:
                while content.read(_READ_BYTES):
                    pass
        except ARCHIVE_ERRORS as error:
            raise InvalidInputError(
                f"{what} is damaged: {error}. Where it was written with "
                "torch.serialization.set_crc32_options(False), write it again without"
            ) from error


def _tensors(value: Any, name: str, kind: type, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """All tensors within dictionaries and lists, by the path to them; each of these once."""
    if isinstance(value, kind):
        yield name or _ONLY, value
    elif isinstance(value, dict | list | tuple) and id(value) not in seen:
        seen.add(id(value))
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in list(pairs)[:_MOST_NAMES]:
            yield from _tensors(inner, f"{name}.{key}" if name else str(key), kind, seen)
