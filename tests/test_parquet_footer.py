"""Sizes of columns in a Parquet footer, against pyarrow's; footers at which pyarrow ends."""

from __future__ import annotations

import base64
import datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bliss_index.errors import InvalidInputError
from bliss_index.store import ModelIdentity
from bliss_index.store.formats import parquet_footer
from bliss_index.store.formats.parquet_footer import column_sizes, require_one_file
from bliss_index.store.import_work import import_embeddings
from bliss_index.store.sources import open_source

X = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
COLUMNS = {
    "embedding": pa.array(list(X)),
    "n": pa.array(range(40)),
    "flag": pa.array([True, None] * 20),
    "nested": pa.array([{"a": "x" * n, "b": [{"c": n}, None]} for n in range(40)]),
    "map": pa.array([[(f"k{n}", n)] for n in range(40)], pa.map_(pa.string(), pa.int32())),
    "wide": pa.array(["é" * 3000] * 40),
    "decimal": pa.array([Decimal("1.5")] * 40),
    "when": pa.array([datetime.datetime(2020, 1, 1)] * 40, pa.timestamp("us", "UTC")),
    "nothing": pa.nulls(40),
    "a.b": pa.array(["dotted"] * 40),
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"row_group_size": 7},
        {"row_group_size": 1, "version": "1.0", "use_dictionary": False, "write_statistics": False},
        {"compression": "zstd", "write_page_index": True, "write_page_checksum": True},
        {"bloom_filter_options": {"n": True}, "sorting_columns": [pq.SortingColumn(1)]},
    ],
)
@pytest.mark.parametrize("names", [[], ["n", "nested"], list(COLUMNS)])
def test_sizes_are_those_that_pyarrow_says(tmp_path, options, names):
    table = pa.table(COLUMNS, metadata={f"k{n}": "v" * 400 for n in range(20)})
    pq.write_table(table, tmp_path / "t.parquet", **options)
    footer = pq.ParquetFile(tmp_path / "t.parquet").metadata
    expected = []
    for number in range(footer.num_row_groups):
        parts = [0, 0]
        for chunk in map(footer.row_group(number).column, range(footer.num_columns)):
            name = "a.b" if chunk.path_in_schema == "a.b" else chunk.path_in_schema.split(".")[0]
            parts[name in names] += chunk.total_uncompressed_size
        expected.append(parts)
    with pa.OSFile(str(tmp_path / "t.parquet")) as stream:
        assert column_sizes("t", stream, footer.serialized_size, names) == expected
    (part,) = open_source(tmp_path / "t.parquet").readers
    assert part.groups.rows == tuple(
        footer.row_group(number).num_rows for number in range(footer.num_row_groups)
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"write_page_index": True},
        {"bloom_filter_options": {"n": True}},
        {"compression": "none"},
    ],
)
def test_another_file_in_front(tmp_path, options):
    pq.write_table(pa.table(COLUMNS), tmp_path / "t.parquet", **options)
    last = (tmp_path / "t.parquet").read_bytes()
    size = pq.ParquetFile(tmp_path / "t.parquet").metadata.serialized_size
    pq.write_table(pa.table(COLUMNS).slice(0, 5), tmp_path / "t.parquet")
    first = (tmp_path / "t.parquet").read_bytes()
    column_sizes("t", pa.BufferReader(last), size, [])
    for in_front in (first, last, 3 * last):
        with pytest.raises(InvalidInputError, match=f"two files.*: {len(in_front)} bytes are in"):
            require_one_file("t", pa.BufferReader(in_front + last), size)
    require_one_file("t", pa.BufferReader(b"\0" * 1000 + last), size)  # no file, whatever it is


def test_a_footer_that_is_cut(tmp_path):
    pq.write_table(pa.table(COLUMNS), tmp_path / "t.parquet")
    content = (tmp_path / "t.parquet").read_bytes()
    footer = content[-1000:]
    with pytest.raises(InvalidInputError, match="t: the footer of .* bytes is damaged"):
        column_sizes("t", pa.BufferReader(footer[:500] + content[-8:]), 400, [])


def test_a_column_that_is_encrypted(tmp_path):
    """Embeddings beside it are read; pyarrow's way to the sizes ended the process."""
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Keys(encryption.KmsClient):
        def wrap_key(self, key, _):
            return base64.b64encode(key)

        def unwrap_key(self, key, _):
            return base64.b64decode(key)

    settings = encryption.EncryptionConfiguration(
        footer_key="f", column_keys={"k": ["secret"]}, plaintext_footer=True, double_wrapping=False
    )
    properties = encryption.CryptoFactory(lambda _: Keys()).file_encryption_properties(
        encryption.KmsConnectionConfig(), settings
    )
    table = pa.table({"secret": [str(n) for n in range(40)], "embedding": list(X)})
    path = tmp_path / "t.parquet"
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    (part,) = open_source(path).readers
    (batch,) = part.batches(carried=False)
    np.testing.assert_array_equal(batch.embeddings, X)
    with pytest.raises(InvalidInputError, match=r"t\.parquet cannot be read as Parquet: .*crypt"):
        import_embeddings(
            path, tmp_path / "store", kind="image", model=ModelIdentity("ViT-B-32", "openai")
        )


def test_values_of_every_type_are_passed_over():
    """Of Thrift's compact protocol; Parquet's own structures have some of them only."""
    fields = [
        b"\x11", b"\x12", b"\x13\x7f", b"\x14\xd8\x04", b"\x17" + 8 * b"\xff", b"\x18\x03abc",
        b"\x19\x25\x02\x04", b"\x19\xf1\x14" + 20 * b"\x01", b"\x1a\x18\x01x", b"\x1b\x00",
        b"\x1b\x02\x58" + 2 * b"\x02\x01y", b"\x1b\x01\x13\x01\x05", b"\x1c\x15\x02\x00",
        b"\x05\xc8\x01\x02",
    ]  # fmt: skip
    content = b"".join(fields) + b"\x00"
    reader = parquet_footer._Reader(content + b"\x07")
    numbers = []
    for number, kind in reader.fields():
        numbers.append(number)
        reader.skip(kind)
    assert numbers == [*range(1, 14), 100]
    assert reader.varint() == 7
    whole = parquet_footer._Reader(b"\x1c" + content + b"\x00\x07")
    whole.skip(12)
    assert whole.varint() == 7
