"""Bytes that are declared to be values of one type and are of another."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from bulk_fixtures import make_job
from command import run
from layouts import Rows

from bliss_index.errors import InvalidInputError
from bliss_index.store import EmbeddingStore
from bliss_index.store.formats.declared_bytes import require_declared
from bliss_index.store.source_reader import ColumnNames
from bliss_index.store.sources import open_source

X = Rows.of(6).matrix


@pytest.fixture
def job(tmp_path):
    return make_job(tmp_path / "job", shards=1, rows=8)


def _as_bfloat16(x):
    return (x.astype("<f4").view("<u4") >> 16).astype("<u2")


# How values were written, and as what: what is declared besides is another type.
WRITTEN = {
    "float16": (lambda x: x.astype("<f2"), "float16"),
    "float32": (lambda x: x.astype("<f4"), "float32"),
    "float64": (lambda x: x.astype("<f8"), "float64"),
    "float32 that was float16": (lambda x: x.astype("<f2").astype("<f4"), "float32"),
    "float64 that was float16": (lambda x: x.astype("<f2").astype("<f8"), "float64"),
    "float64 that was float32": (lambda x: x.astype("<f4").astype("<f8"), "float64"),
    "float32 that was bfloat16": (
        lambda x: (_as_bfloat16(x).astype("<u4") << 16).view("<f4"), "float32"
    ),
    "big-endian float16": (lambda x: x.astype(">f2"), "big-endian float16"),
    "big-endian float32": (lambda x: x.astype(">f4"), "big-endian float32"),
    "big-endian float64": (lambda x: x.astype(">f8"), "big-endian float64"),
    "bfloat16": (_as_bfloat16, "b?float16"),  # not always to be told
}  # fmt: skip


def _outliers(x):
    """A few coordinates are twenty times the others, as CLIP's are."""
    return x * np.where(np.arange(x.shape[1]) % 7, 1, 20)


EMBEDDINGS = {
    "unit": lambda x: x / np.linalg.norm(x, axis=1, keepdims=True),
    "not normalised": lambda x: 10 * x,
    "rectified": lambda x: np.maximum(x, 0),
    "positive": lambda x: 1 + np.abs(x),
    "with outliers": _outliers,
    "heavy tails": lambda x: x * np.abs(x),
    "whole numbers": lambda x: np.round(20 * x),
}


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("values", EMBEDDINGS)
def test_bytes_of_another_type_than_declared(written, values):
    matrix = EMBEDDINGS[values](np.random.default_rng(7).normal(size=(20, 48)))
    write, what = WRITTEN[written]
    rows = [row.tobytes() for row in write(matrix)]
    for declared in ("float16", "float32", "float64"):
        if (written, declared) == ("bfloat16", "float16"):
            continue  # likely as either
        if what == declared:
            require_declared("e.parquet", "v", rows, declared)
            continue
        with pytest.raises(
            InvalidInputError,
            match=rf"'v' holds {len(rows[0])} bytes a row: as {declared} they are .* which was "
            rf"declared; as {what} they are 48 values",
        ):
            require_declared("e.parquet", "v", rows, declared)


def test_what_the_values_would_be_is_said():
    values = np.array([[0.5, -0.25, 0.0, 1.0]] * 15 + [[0.125, 3.0, -0.01, 0.75]], "<f4")
    rows = [row.tobytes() for row in values]
    rows[0] = np.array([0x7F800001, 0x7E007E00, 0, 0x3F800000], "<u4").tobytes()  # NaN, 1e38
    half = np.frombuffer(b"".join(rows), "<f2").astype(float)
    some = np.abs(half[np.isfinite(half) & (half != 0)])
    lost = int((~np.isfinite(half)).sum())
    expected = (
        f"e: column 'v' holds 16 bytes a row: as float16 they are 8 values a row of size "
        f"{some.min():.1g} to {some.max():.1g}, {lost} of 128 not finite, which was declared; as "
        "float32 they are 4 values a row of size 0.01 to 4e+37, 1 of 64 not finite. Therefore "
    )
    with pytest.raises(InvalidInputError, match=f"^{re.escape(expected)}"):
        require_declared("e", "v", rows, "float16")


@pytest.mark.parametrize("dim", [1, 2, 3, 16])
@pytest.mark.parametrize("written", list(WRITTEN)[:7])
def test_bytes_of_which_nothing_can_be_said_are_believed(written, dim):
    write, declared = WRITTEN[written]
    x = np.random.default_rng(7).normal(size=(64, dim))
    different = x * np.geomspace(1, 1e-3, dim)
    for matrix in (np.sign(x), np.eye(dim), 0 * x, np.exp(4 * x), x[:1], different):
        require_declared("e", "v", [row.tobytes() for row in write(matrix)], declared)
    scarce = np.where(np.arange(64)[:, None] % 12, x, np.nan)
    require_declared("e", "v", [row.tobytes() for row in write(scarce)], declared)


def _arrow(table):
    pyarrow.feather.write_feather(table, "old.feather", compression="zstd")
    return "old.feather"


def _lance(table):
    pytest.importorskip("lance").write_dataset(table, "old.lance", mode="overwrite")
    return "old.lance"


def _parquet(table):
    pq.write_table(table, "old.parquet")
    return "old.parquet"


@pytest.mark.parametrize("kind", [pa.binary(), pa.binary(64)])
@pytest.mark.parametrize("write", [_arrow, _lance, _parquet])
def test_a_wrong_declaration_is_refused_by_every_layout(tmp_path, monkeypatch, write, kind):
    monkeypatch.chdir(tmp_path)
    matrix = Rows.of(80).matrix
    values = [None, *(row.tobytes() for row in matrix)]
    name = write(pa.table({"embedding": pa.array(values, kind)}))
    with pytest.raises(
        InvalidInputError,
        match="holds 64 bytes a row: as float16 they are 32 values .* which was declared; as "
        "float32 they are 16 values .*declare --embedding-dtype float32, or",
    ):
        open_source(name, columns=ColumnNames(dtype="float16"))
    (part,) = open_source(name, columns=ColumnNames(dtype="float32")).readers
    np.testing.assert_array_equal(next(part.batches()).embeddings[1:], matrix)


@pytest.mark.parametrize(
    ("stored", "declared", "meant"),
    [
        (X.astype(">f4"), "float32", X),
        (X.astype(">f8"), "float32", X.astype(">f8").astype("<f4")),
        (_as_bfloat16(X), "float32", (_as_bfloat16(X).astype("<u4") << 16).view("<f4")),
        (X, "float16", X.view("<f2").astype("<f4")),  # declared, and meant
    ],
)
def test_the_line_that_writes_bytes_as_numbers(tmp_path, monkeypatch, stored, declared, meant):
    monkeypatch.chdir(tmp_path)
    _parquet(pa.table({"v": [row.tobytes() for row in stored]}))
    with pytest.raises(InvalidInputError, match="which was declared") as caught:
        open_source("old.parquet", columns=ColumnNames("v", dtype=declared))
    (line,) = re.findall("write lists of numbers: (.*)$", str(caught.value))
    exec(line, {"old": "old.parquet", "new": "new.parquet"})
    (part,) = open_source("new.parquet", columns=ColumnNames("v")).readers
    np.testing.assert_array_equal(next(part.batches()).embeddings, meant)


@pytest.mark.parametrize("command", ["import", "score"])
def test_the_commands_refuse_a_wrong_declaration(job, tmp_path, command):
    dim = EmbeddingStore.open(job.images).dim
    matrix = Rows.of(40).matrix[:, :dim].astype(np.float64)
    table = pa.table({"v": [row.tobytes() for row in matrix]})
    pq.write_table(table, tmp_path / "e.parquet")
    given = [
        command,
        tmp_path / "e.parquet",
        "--embedding-dtype",
        "float32",
        "--out",
        tmp_path / "o",
    ]
    if command == "import":
        given += ["--kind", "image", "--model", "ViT-B-32", "--pretrained", "openai"]
    else:
        given += ["--corpus", job.corpus, "--calibration", job.calibration, "-k", "5"]
    _, error = run(*given, code=1)
    assert f"as float64 they are {dim} values" in " ".join(error.split())
    assert not (tmp_path / "o").exists()
