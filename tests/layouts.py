"""The same rows in every layout, written by the library that people write it with."""

from __future__ import annotations

import io
import struct
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

DIM = 16


@dataclass(frozen=True)
class Rows:
    """What is written: n embeddings of unit norm, and what stands beside them."""

    matrix: np.ndarray
    keys: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, count: int, dtype: str = "float32", seed: int = 0) -> Rows:
        matrix = np.random.default_rng(seed).normal(size=(count, DIM))
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        names = [f"é {row:04d}.jpg" for row in range(count)]
        texts = [f"a caption, {row}" for row in range(count)]
        return cls(matrix.astype(dtype), names, texts, list(range(count)))

    def table(self, kind: str = "list") -> pa.Table:
        flat = pa.array(self.matrix.reshape(-1))
        if kind == "bytes":
            column = pa.array([row.tobytes() for row in self.matrix], pa.binary())
        elif kind == "fixed":
            column = pa.FixedSizeListArray.from_arrays(flat, DIM)
        else:
            column = pa.array(list(self.matrix), pa.list_(flat.type))
        return pa.table({
            "key": self.keys, "caption": self.texts, "n": self.counts, "embedding": column,
        })  # fmt: skip


def _parquet(rows, folder):
    pq.write_table(rows.table("fixed"), folder / "e.parquet", row_group_size=300)
    return folder / "e.parquet"


def _pandas(rows, folder):
    import pandas

    frame = pandas.DataFrame({"key": rows.keys, "caption": rows.texts, "n": rows.counts})
    frame["embedding"] = list(rows.matrix)
    frame.to_parquet(folder / "e.parquet")
    return folder / "e.parquet"


def _polars_frame(rows):
    polars = pytest.importorskip("polars")
    kind = polars.Array(polars.Float32, DIM)
    return polars.DataFrame({
        "key": rows.keys, "caption": rows.texts, "n": rows.counts,
        "embedding": polars.Series(rows.matrix, dtype=kind),
    })  # fmt: skip


def _polars_parquet(rows, folder):
    _polars_frame(rows).write_parquet(folder / "e.parquet")
    return folder / "e.parquet"


def _polars_ipc(rows, folder):
    _polars_frame(rows).write_ipc(folder / "e.arrow", compression="zstd")
    return folder / "e.arrow"


def _duckdb(rows, folder):
    duckdb = pytest.importorskip("duckdb")
    connection = duckdb.connect()
    connection.register("given", rows.table("fixed"))
    connection.execute(
        "copy (select key, caption, n, embedding::float[] as embedding from given) to "
        f"'{folder}/e.parquet' (format parquet)"
    )
    return folder / "e.parquet"


def _spark(rows, folder):
    """Folders of parts, texts as bytes, embeddings as bytes."""
    table = rows.table("bytes")
    for name in ("key", "caption"):
        number = table.schema.names.index(name)
        table = table.set_column(number, name, table.column(name).cast(pa.binary()))
    for number in range(4):
        part = table.slice(number * -(-len(table) // 4), -(-len(table) // 4))
        pq.write_table(part, folder / f"part-{number:05d}-c000.snappy.parquet")
    (folder / "_SUCCESS").write_bytes(b"")
    return folder


def _feather(rows, folder):
    pyarrow.feather.write_feather(rows.table(), folder / "e.feather", chunksize=300)
    return folder / "e.feather"


def _ipc(rows, folder):
    with pa.ipc.new_file(folder / "e.arrow", rows.table().schema) as writer:
        writer.write_table(rows.table("list"), 300)
    return folder / "e.arrow"


def _stream(rows, folder):
    with pa.ipc.new_stream(folder / "e.arrows", rows.table().schema) as writer:
        writer.write_table(rows.table(), 300)
    return folder / "e.arrows"


def _saved(rows, folder):
    datasets = pytest.importorskip("datasets")
    columns = {"key": rows.keys, "caption": rows.texts, "n": rows.counts}
    features = datasets.Features({
        "key": datasets.Value("string"), "caption": datasets.Value("string"),
        "n": datasets.Value("int64"),
        "embedding": datasets.List(datasets.Value(str(rows.matrix.dtype))),
    })  # fmt: skip
    made = datasets.Dataset.from_dict({**columns, "embedding": rows.matrix}, features)
    made.save_to_disk(folder / "saved", num_shards=3)
    return folder / "saved"


def _saved_dict(rows, folder):
    datasets = pytest.importorskip("datasets")
    table = rows.table()
    half = len(rows.keys) // 2
    splits = {"a": table.slice(0, half), "b": table.slice(half)}
    made = {name: datasets.Dataset(part.combine_chunks()) for name, part in splits.items()}
    datasets.DatasetDict(made).save_to_disk(folder / "saved")
    return folder / "saved"


def _lance(rows, folder):
    lance = pytest.importorskip("lance")
    lance.write_dataset(rows.table("fixed"), folder / "e.lance", max_rows_per_file=400)
    return folder / "e.lance"


def _webdataset(rows, folder):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(folder / "e.tar")) as writer:
        for key, text, vector in zip(rows.keys, rows.texts, rows.matrix, strict=True):
            writer.write({"__key__": key.removesuffix(".jpg"), "npy": vector, "txt": text})
    return folder / "e.tar"


def _npy(rows, folder):
    np.save(folder / "e.npy", rows.matrix)
    return folder / "e.npy"


def _npz(rows, folder):
    np.savez_compressed(folder / "e.npz", vectors=rows.matrix)
    return folder / "e.npz"


def _safetensors(rows, folder):
    from safetensors.numpy import save_file

    save_file({"bias": rows.matrix[0], "vectors": rows.matrix}, folder / "e.safetensors")
    return folder / "e.safetensors"


def _pytorch(rows, folder):
    import torch

    tensors = {"names": ["a"], "bias": torch.zeros(3), "vectors": torch.from_numpy(rows.matrix)}
    torch.save(tensors, folder / "e.pt")
    return folder / "e.pt"


def _fvecs(rows, folder):
    head = np.full((len(rows.matrix), 1), DIM, "<i4")
    np.hstack([head, rows.matrix.view("<i4")]).tofile(folder / "e.fvecs")
    return folder / "e.fvecs"


def _fbin(rows, folder):
    head = struct.pack("<II", *rows.matrix.shape)
    (folder / "e.fbin").write_bytes(head + rows.matrix.tobytes())
    return folder / "e.fbin"


TABLES = {
    "Parquet": _parquet,
    "pandas": _pandas,
    "polars Parquet": _polars_parquet,
    "polars IPC": _polars_ipc,
    "DuckDB": _duckdb,
    "Spark": _spark,
    "Feather": _feather,
    "Arrow file": _ipc,
    "Arrow stream": _stream,
    "saved data set": _saved,
    "saved data sets": _saved_dict,
    "Lance": _lance,
}
"""Layouts that hold keys and other columns."""

ARRAYS = {
    "webdataset": _webdataset,
    "npy": _npy,
    "npz": _npz,
    "safetensors": _safetensors,
    "torch.save": _pytorch,
    "fvecs": _fvecs,
    "fbin": _fbin,
}
"""Layouts of embeddings alone, or, in tars, with a text."""


def written(layout: str, rows: Rows, folder: Path) -> Path:
    """Write rows; return what to read. The test is skipped where the library is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    return {**TABLES, **ARRAYS}[layout](rows, folder)


def tar_of(path: Path, members: dict[str, object]) -> None:
    """Write a tar of arrays, texts and JSON."""
    with tarfile.open(path, "w") as archive:
        for name, value in members.items():
            content = io.BytesIO()
            if isinstance(value, np.ndarray):
                np.save(content, value)
            else:
                content.write(value if isinstance(value, bytes) else str(value).encode())
            member = tarfile.TarInfo(name)
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)
