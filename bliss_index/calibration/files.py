"""A calibration on disk: ``manifest.json`` and ``classes.<hash>.arrow``, one row per class."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bliss_index.calibration.moments import ClassMoments
from bliss_index.errors import CorruptStoreError, StoreError
from bliss_index.jobs.description import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    library_versions,
    read_description,
    require_format,
)
from bliss_index.storage import Directory, open_directory
from bliss_index.storage.directory import read_named, write_json
from bliss_index.storage.files import output_error, parse_json
from bliss_index.storage.locks import locked
from bliss_index.store.identity import ModelIdentity

_WAIT_SECONDS = 60.0
CALIBRATION_FORMAT = "bliss_index.calibration"
CLASSES_NAME = re.compile(r"classes\.[0-9a-f]{16}\.arrow")
DEFAULT_LAM = 0.5
"""lambda of a calibration that names none: the paper's."""
_WEIGHTS = {"shrinkage": 0.0, "image_weight": 0.0, "lam": DEFAULT_LAM}
_VECTOR = pa.large_list(pa.float64())
_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("images", pa.int64(), nullable=False),
        pa.field("text_embedding", _VECTOR, nullable=False),
        pa.field("mean", _VECTOR, nullable=False),
        # Upper triangle of the scatter matrix, row by row; null for a class of few images.
        pa.field("scatter", _VECTOR),
        # The images themselves, row by row, for a class of fewer than `dim` images.
        pa.field("image_embeddings", _VECTOR),
    ]
)


class StoredCalibration(NamedTuple):
    """What the files hold: the fields of :class:`bliss_index.calibration.Calibration`."""

    classes: tuple[str, ...]
    class_embeddings: npt.NDArray[np.float64]
    moments: tuple[ClassMoments, ...]
    model: ModelIdentity | None
    attributes: Mapping[str, Any]
    shrinkage: float
    image_weight: float
    lam: float


def write_calibration(stored: StoredCalibration, directory: str | Path) -> None:
    """Write a calibration; one that is there already is replaced.

    Raises
    ------
    OutputError
        The directory cannot be written.
    StoreError
        It holds something else.
    """
    place = open_directory(directory)
    classes_file(place)  # refused before anything is touched
    place.make()
    with locked(place, wait=_WAIT_SECONDS):
        _write(place, stored)


def _write(place: Directory, stored: StoredCalibration) -> None:
    before = classes_file(place)
    content = place.new_file()
    try:
        with pa.ipc.new_file(content.sink, _SCHEMA) as writer:
            for row in zip(stored.classes, stored.class_embeddings, stored.moments, strict=True):
                writer.write_batch(_class_row(*row))
        digest = content.sink.sha256
        name = f"classes.{digest[:16]}.arrow"
        content.commit(name)
    except OSError as error:
        raise output_error(place.uri, error) from error
    finally:
        content.discard()
    values = {
        "format": CALIBRATION_FORMAT,
        "format_version": FORMAT_VERSION,
        "model": None if stored.model is None else stored.model.to_json(),
        "dim": int(stored.class_embeddings.shape[1]),
        "classes": len(stored.classes),
        "images": sum(moments.count for moments in stored.moments),
        "attributes": dict(stored.attributes),
        "shrinkage": stored.shrinkage,
        "image_weight": stored.image_weight,
        "lam": stored.lam,
        "classes_file": name,
        "classes_sha256": digest,
        "versions": library_versions(),
    }
    write_json(place, MANIFEST_NAME, values)
    if before not in (None, classes_file(place)):  # readers have always had a whole one
        place.remove(before)
    if name not in place.names() and classes_file(place) == name:  # where locks keep nobody out
        _write(place, stored)


def classes_file(directory: Directory) -> str | None:
    """Name of the file of the calibration that stands there; None where there is none.

    Raises
    ------
    StoreError
        The directory holds something else.
    """
    try:
        data = directory.read(MANIFEST_NAME)
    except FileNotFoundError:
        others = sorted(name for name in directory.everything() if not _may_stay(name))
        if others:
            raise StoreError(
                f"{directory.uri} is not empty and not a calibration (it holds {others[0]!r}); "
                "choose another output"
            ) from None
        return None
    name = f"{directory.uri}/{MANIFEST_NAME}"
    values = parse_json(data, name)
    require_format(name, values, CALIBRATION_FORMAT)
    file = values.get("classes_file")
    return file if isinstance(file, str) and CLASSES_NAME.fullmatch(file) else None


def read_calibration(directory: Directory) -> StoredCalibration:
    """Read a calibration's files and check them against its manifest.

    Raises
    ------
    StoreError
        There is none.
    CorruptStoreError
        It is damaged, or was written by a newer version.
    """
    return read_named(
        lambda: read_description(
            directory,
            CALIBRATION_FORMAT,
            what="a calibration",
            how="'bliss-index calibrate'",
        ),
        lambda values: _read(directory, values),
    )


def _read(directory: Directory, values: dict[str, Any]) -> StoredCalibration:
    path = f"{directory.uri}/{MANIFEST_NAME}"
    name = values.get("classes_file")
    if not isinstance(name, str) or not CLASSES_NAME.fullmatch(name):
        raise CorruptStoreError(f"{path} is damaged: 'classes_file' is {name!r}")
    classes = f"{directory.uri}/{name}"
    dim, attributes = values.get("dim"), values.get("attributes")
    if not isinstance(dim, int) or dim < 1 or not isinstance(attributes, dict):
        raise CorruptStoreError(f"{path} is damaged: dim {dim!r}, attributes {attributes!r}")
    # Not written by the first calibrations.
    weights = {name: values.get(name, default) for name, default in _WEIGHTS.items()}
    for what, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise CorruptStoreError(f"{path} is damaged: {what} {weight!r} is no number")
    model = values.get("model")
    identity = None if model is None else ModelIdentity.from_json(model)
    try:
        content = directory.read(name)
    except FileNotFoundError as error:
        raise CorruptStoreError(f"{classes} cannot be read: No such file or directory") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != values.get("classes_sha256"):
        raise CorruptStoreError(
            f"{classes} has SHA-256 {digest}, the manifest says "
            f"{values.get('classes_sha256')!r}: truncated or altered; calibrate again"
        )
    try:
        table = pa.ipc.open_file(pa.py_buffer(content)).read_all()
        table.validate(full=True)
        rows = [_read_row(table, row, dim) for row in range(table.num_rows)]
        return StoredCalibration(
            tuple(table.column("name").to_pylist()),
            np.stack([text for text, _ in rows]),
            tuple(moments for _, moments in rows),
            identity,
            attributes,
            **weights,
        )
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise CorruptStoreError(f"{classes} is damaged: {error}") from error


def _class_row(name: str, text: npt.NDArray[np.float64], moments: ClassMoments) -> pa.RecordBatch:
    upper = np.triu_indices(moments.dim)
    columns = [
        pa.array([name], pa.string()),
        pa.array([moments.count], pa.int64()),
        _vector(text),
        _vector(moments.mean),
        _vector(None if moments.scatter is None else moments.scatter[upper]),
        _vector(None if moments.images is None else moments.images.reshape(-1)),
    ]
    return pa.record_batch(columns, schema=_SCHEMA)


def _vector(values: npt.NDArray[np.float64] | None) -> pa.Array:
    if values is None:
        return pa.nulls(1, _VECTOR)
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float64))
    return pa.LargeListArray.from_arrays(pa.array([0, len(flat)], pa.int64()), flat)


def _read_row(table: pa.Table, row: int, dim: int) -> tuple[npt.NDArray[np.float64], ClassMoments]:
    count = table.column("images")[row].as_py()
    text = _read_vector(table, "text_embedding", row, dim)
    mean = _read_vector(table, "mean", row, dim)
    if table.column("scatter")[row].is_valid:
        packed = _read_vector(table, "scatter", row, dim * (dim + 1) // 2)
        scatter = np.zeros((dim, dim))
        scatter[np.triu_indices(dim)] = packed
        scatter += np.triu(scatter, 1).T
        return text, ClassMoments(count, mean, scatter=scatter)
    images = _read_vector(table, "image_embeddings", row, count * dim)
    return text, ClassMoments(count, mean, images=images.reshape(count, dim))


def _read_vector(table: pa.Table, name: str, row: int, size: int) -> npt.NDArray[np.float64]:
    scalar: Any = table.column(name)[row]
    values: npt.NDArray[np.float64] = scalar.values.to_numpy(zero_copy_only=False)
    if values.size != size:
        raise ValueError(f"column {name!r} of row {row} holds {values.size} values, not {size}")
    return values


def _may_stay(name: str) -> bool:
    return name.startswith(".") or CLASSES_NAME.fullmatch(name) is not None
