"""Files of others: cut into parts that depend on the file alone, read in bounded memory."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_fixtures import DIM

from bliss_index.errors import CorruptStoreError, InvalidInputError, JobError
from bliss_index.jobs import JobListener, JobOptions
from bliss_index.jobs.memory import BASE_BYTES
from bliss_index.scoring import ScoresDirectory, run_job, score_inputs, verify_scores
from bliss_index.scoring.score_inputs import open_input
from bliss_index.scoring.score_work import ScoreWork
from bliss_index.store import EmbeddingStore, ModelIdentity, import_work
from bliss_index.store import keys as keys_module
from bliss_index.store.formats import npy, tables
from bliss_index.store.import_work import import_embeddings
from bliss_index.store.keys import repeated_keys
from bliss_index.store.source_reader import ContentHash
from bliss_index.store.sources import open_source

ROWS = 300
MODEL = ModelIdentity("ViT-B-32", "openai")


@pytest.fixture(scope="module")
def rows(job):
    return EmbeddingStore.open(job.images).embeddings()


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 70 rows; files stay one part where they have no more."""
    monkeypatch.setattr(score_inputs, "ROWS_PER_PART", 70)


def vectors(rows) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), DIM)


def write(folder, layout, rows, keys=None):
    """Write rows in a layout; return what to read."""
    folder.mkdir(exist_ok=True)
    keys = keys or [f"k{i}" for i in range(len(rows))]
    if layout.startswith("npy"):
        np.save(folder / "e.npy", np.asfortranarray(rows) if "fortran" in layout else rows)
        return folder / "e.npy"
    if layout.startswith("npz"):
        save = np.savez_compressed if "deflated" in layout else np.savez
        array = np.asfortranarray(rows) if "fortran" in layout else rows
        save(folder / "e.npz", before=np.arange(9), embeddings=array, behind=np.arange(5))
        return folder / "e.npz"
    if layout == "clip":
        for name in ("img_emb", "metadata"):
            (folder / name).mkdir()
        np.save(folder / "img_emb" / "img_emb_0.npy", rows)
        table = pa.table({"image_path": keys, "caption": [f"a {key}" for key in keys]})
        pq.write_table(table, folder / "metadata" / "metadata_0.parquet", row_group_size=64)
        return folder
    group = {"parquet": 33, "parquet of one group": len(rows) or 1}[layout]
    others = {"caption": ["a long caption " * 9] * len(rows)}
    table = pa.table({"embedding": vectors(rows), "key": keys, **others})
    pq.write_table(table, folder / "e.parquet", row_group_size=group)
    return folder / "e.parquet"


LAYOUTS = [
    "npy", "npy fortran", "npz", "npz fortran", "npz deflated", "npz deflated fortran", "clip",
    "parquet", "parquet of one group",
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_of_one_file_score_as_the_whole(job, whole, rows, tmp_path, layout, small_parts):
    """Interrupted within the file as well, and by two workers, with the same bytes."""
    expected = ScoresDirectory.open(job.folder / "whole").table()
    location = write(tmp_path / "in", layout, rows)

    class Stopping(JobListener):
        def finished_part(self, record):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(location, tmp_path / "s", job.settings(), listener=Stopping())
    summary = run_job(location, tmp_path / "s", job.settings())
    assert summary.parts_earlier == 1
    assert summary.parts >= ROWS // 140
    assert (summary.rows, summary.complete, summary.bad_rows) == (ROWS, True, 0)
    table = ScoresDirectory.open(tmp_path / "s").table()
    for name in ("anomaly_score", "nearest_class", "internal_score", "external_score"):
        assert table.column(name).combine_chunks().equals(expected.column(name).combine_chunks())
    named = "parquet" in layout or layout == "clip"
    keys = [f"k{i}" if named else str(i) for i in range(ROWS)]
    assert table.column("key").to_pylist() == keys
    assert verify_scores(tmp_path / "s").ok
    run_job(location, tmp_path / "t", job.settings(), JobOptions(task="1/2"))
    run_job(location, tmp_path / "t", job.settings())
    files = {p.name: p.read_bytes() for p in (tmp_path / "s").glob("*.parquet")}
    assert {p.name: p.read_bytes() for p in (tmp_path / "t").glob("*.parquet")} == files


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_of_one_file_are_imported_as_the_whole(rows, tmp_path, layout):
    location = write(tmp_path / "in", layout, rows)
    stores = []
    for size in (1000, 40):
        out = tmp_path / f"s{size}"
        import_embeddings(location, out, kind="image", model=MODEL, rows_per_shard=size)
        stores.append(EmbeddingStore.open(out))
    one, many = stores
    assert (len(one.shards), len(many.shards) >= ROWS // 80) == (1, True)
    np.testing.assert_array_equal(one.embeddings(), many.embeddings())
    assert one.keys() == many.keys()
    if one.shard(0).metadata().num_columns:
        carried = pa.concat_tables([shard.metadata() for shard in many.iter_shards()])
        assert carried.combine_chunks().equals(one.shard(0).metadata().combine_chunks())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [0, 1])
def test_no_rows_and_one(job, rows, tmp_path, layout, count):
    location = write(tmp_path / "in", layout, rows[:count])
    summary = run_job(location, tmp_path / "s", job.settings())
    assert (summary.rows, summary.complete) == (count, True)
    if count:
        assert import_embeddings(location, tmp_path / "i", kind="image", model=MODEL).rows == 1


def test_boundaries_depend_on_the_file_alone(rows, tmp_path):
    """By rows and by bytes, carried columns too."""
    (part,) = open_source(write(tmp_path / "a", "npy", rows)).readers
    assert part.cuts(128, 1 << 30) == [0, 128, 256, 300]
    assert part.cuts(1000, 100 * DIM * 2) == [0, 100, 200, 300]
    (part,) = open_source(write(tmp_path / "b", "parquet", rows)).readers
    cuts = part.cuts(70, 1 << 30)
    assert cuts[:3] == [0, 66, 132]
    assert cuts[-1] == ROWS
    keys = [f"k{i}" for i in range(ROWS)]
    large = [np.random.default_rng(i).bytes(5000) for i in range(ROWS)]
    table = pa.table({"embedding": vectors(rows), "key": keys, "picture": large})
    pq.write_table(table, tmp_path / "large.parquet")
    (part,) = open_source(tmp_path / "large.parquet").readers
    assert len(part.cuts(1000, 200_000)) == 1 + -(-part.held() // 200_000)
    assert part.cuts(1000, 200_000, carried=False) == [0, ROWS]


def test_a_compressed_file_is_read_once_whatever_the_parts(rows, tmp_path, monkeypatch):
    names = {"npz deflated": "ArrayStream", "parquet of one group": "_BatchStream"}
    for layout, name in names.items():
        module = npy if layout.startswith("npz") else tables
        (part,) = open_source(write(tmp_path / layout, layout, rows)).readers
        begun = []
        made = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, of=made, to=begun: to.append(a) or of(*a))
        for start in range(0, ROWS, 50):
            found = np.concatenate([b.embeddings for b in part.batches(20, start=start, count=50)])
            np.testing.assert_array_equal(found, rows[start : start + 50])
        assert len(begun) == 1
        (batch,) = part.batches(start=10, count=5)  # behind what was read: from the beginning
        np.testing.assert_array_equal(batch.embeddings, rows[10:15])
        assert len(begun) == 2


def test_a_file_that_is_replaced_between_its_parts(rows, tmp_path):
    """What is still open of the old one is not read on."""
    location = write(tmp_path / "in", "npz deflated", rows)
    (part,) = open_source(location).readers
    list(part.batches(count=100))
    (tmp_path / "in" / "e.npz").rename(tmp_path / "old.npz")
    write(tmp_path / "in", "npz deflated", -rows)
    (batch,) = part.batches(start=100, count=5)
    np.testing.assert_array_equal(batch.embeddings, -rows[100:105])


def test_a_hash_does_not_depend_on_the_batches(rows, tmp_path):
    (part,) = open_input(write(tmp_path / "in", "parquet", rows)).parts
    digests = set()
    for size in (7, 50, 1000):
        digest = ContentHash()
        for _ in part.piece.read(size, digest, carried=False):
            pass
        digests.add(digest.hexdigest())
    assert digests == {part.sha256()}


def test_keys_that_occur_in_two_parts_of_a_file(job, rows, tmp_path, small_parts):
    """Within a part they are quarantined; across parts counted at the end, and named."""
    keys = [f"k{i}" for i in range(ROWS)]
    keys[20], keys[200], keys[290] = "k3", "k5", "k6"
    location = write(tmp_path / "in", "parquet", rows, keys)
    summary = run_job(location, tmp_path / "s", job.settings())
    assert summary.status == {"ok": ROWS - 1, "duplicate_key": 1}
    assert summary.facts["repeated_keys"] == 2
    manifest = ScoresDirectory.open(tmp_path / "s").manifest
    assert manifest["repeated_keys"] == {"count": 2, "first": ["k5", "k6"]}
    assert not verify_scores(tmp_path / "s").ok


@pytest.mark.parametrize("in_memory", [keys_module._IN_MEMORY, 100])
def test_repeated_keys_against_counting(monkeypatch, in_memory):
    monkeypatch.setattr(keys_module, "_IN_MEMORY", in_memory)
    rng = np.random.default_rng(3)
    parts = [[f"k{i}" for i in rng.integers(0, 3000, 400)] for _ in range(9)]
    seen: dict[str, int] = {}
    for part in parts:
        for key in set(part):
            seen[key] = seen.get(key, 0) + 1
    expected = {key for key, count in seen.items() if count > 1}
    count, first = repeated_keys(lambda: iter(parts), 10)
    assert count == len(expected)
    assert len(first) == 10
    assert first == sorted(first)
    assert set(first) <= expected
    assert repeated_keys(lambda: iter(parts[:1]), 10) == (0, [])


def damaged_npz(folder, change, compressed=True):
    """Write an archive, change its bytes, and return it."""
    location = write(
        folder, "npz deflated" if compressed else "npz", np.ones((5000, DIM), "float32")
    )
    location.write_bytes(change(bytearray(location.read_bytes())))
    return location


def declared(data: bytearray, size: int) -> bytearray:
    """Let the archive say that its array has `size` bytes."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (info,) = [i for i in archive.infolist() if i.filename == "embeddings.npy"]
        central = data.index(b"embeddings.npy", archive.start_dir) - 46
    data[central + 24 : central + 28] = struct.pack("<I", size)
    data[info.header_offset + 22 : info.header_offset + 26] = struct.pack("<I", size)
    return data


def test_damaged_archives(tmp_path):
    def refused(name, change, message, **more):
        with pytest.raises(InvalidInputError, match=message):
            open_source(damaged_npz(tmp_path / name, change, **more))

    refused("cut", lambda data: data[:-200], "cannot be read as .npz")
    refused("bomb", lambda data: declared(data, 1 << 31), "is said to have 2147483648 bytes, the .*"
            "hold at most")  # fmt: skip
    refused("more", lambda data: declared(data, 1 << 31), "hold at most", compressed=False)
    refused(
        "less", lambda data: declared(data, 200), "has 200 bytes, its header promises|Bad CRC-32"
    )

    def flipped(data):
        data[data.index(b"embeddings.npy") + 200_000] ^= 1
        return data

    refused("flipped", flipped, "Bad CRC-32", compressed=False)
    with zipfile.ZipFile(tmp_path / "e.npz", "w", zipfile.ZIP_LZMA) as archive:
        content = io.BytesIO()
        np.save(content, np.ones((5, DIM), "float32"))
        archive.writestr("embeddings.npy", content.getvalue())
    with pytest.raises(InvalidInputError, match="compressed by method 14; those of numpy.savez "):
        open_source(tmp_path / "e.npz")


def test_an_array_compressed_by_columns(tmp_path, rows, monkeypatch):
    """It would have to be decompressed as a whole; small ones are."""
    location = write(tmp_path / "in", "npz deflated fortran", rows)
    monkeypatch.setattr(npy, "_WHOLE_BYTES", rows.nbytes - 1)
    with pytest.raises(InvalidInputError, match="of which at most 9599 are read .* numpy.ascont"):
        open_source(location)


def test_a_header_that_says_it_is_long(tmp_path):
    header = b"\x93NUMPY\x02\x00" + struct.pack("<I", (1 << 32) - 1)
    (tmp_path / "e.npy").write_bytes(header + bytes(100))
    with pytest.raises(InvalidInputError, match="cannot be read as .npy"):
        open_source(tmp_path / "e.npy")


def test_other_columns_that_a_dictionary_hides(tmp_path, rows, monkeypatch):
    """A value written once and meant 300 times; the remedy that is named works."""
    table = pa.table({"embedding": vectors(rows), "picture": [b"x" * 10_000] * ROWS})
    pq.write_table(table, tmp_path / "e.parquet")
    monkeypatch.setattr(import_work, "PART_BYTES", 1_000_000)
    options = {"kind": "image", "model": MODEL}
    expected = "in column 'picture', its footer says 1000000 at most; write it again"
    with pytest.raises(InvalidInputError, match=expected):
        import_embeddings(tmp_path / "e.parquet", tmp_path / "s", **options)
    monkeypatch.setattr(tables, "_MOST_BYTES", 1_000_000)  # and within one batch, before the next
    with pytest.raises(
        InvalidInputError, match=r"2561024 of the last 256 rows .* says 10522\d\d at"
    ):
        import_embeddings(tmp_path / "e.parquet", tmp_path / "s", **options)
    pq.write_table(table, tmp_path / "f.parquet", use_dictionary=False, row_group_size=1000)
    import_embeddings(tmp_path / "f.parquet", tmp_path / "t", **options)
    assert len(EmbeddingStore.open(tmp_path / "t").shards) == 4


def test_a_text_store_reads_no_other_columns(tmp_path, rows):
    table = pa.table({"embedding": vectors(rows), "text": [f"w{i}" for i in range(ROWS)],
                      "picture": [b"x" * 100_000] * ROWS})  # fmt: skip
    pq.write_table(table, tmp_path / "e.parquet", use_dictionary=False)
    work = import_work.ImportWork(
        str(tmp_path / "e.parquet"), "text", MODEL, None, None, "float16", None,
        import_work.ColumnNames(), False, 65536,
    )  # fmt: skip
    assert len(list(work.parts())) == 1
    assert work.memory(1, 1 << 40).pieces["source"] < 1 << 20
    import_embeddings(tmp_path / "e.parquet", tmp_path / "s", kind="text", model=MODEL)
    assert EmbeddingStore.open(tmp_path / "s").texts()[9] == "w9"


def test_what_the_input_holds_is_in_the_plan(job, tmp_path, rows):
    """Shards that are read ahead; the row groups of a table, which may be refused by them."""
    plan = ScoreWork(str(job.images), job.settings()).memory(1, 1 << 40)
    assert plan.pieces["shards"] == 3 * max(s.bytes for s in EmbeddingStore.open(job.images).shards)
    location = write(tmp_path / "in", "parquet of one group", np.tile(rows, (300, 1)))
    work = ScoreWork(str(location), job.settings())
    group = work.memory(1, 1 << 40).pieces["source"]
    assert group == open_source(location).readers[0].groups.own[0] > 1 << 20
    pieces = work.memory(1, 1 << 40).pieces
    fixed = BASE_BYTES + sum(size for name, size in pieces.items() if "batches" not in name)
    with pytest.raises(JobError, match=r"need at least .* the budget is .*; raise --memory"):
        work.memory(1, fixed)


def test_a_table_whose_file_grows_shorter(job, tmp_path, rows):
    location = write(tmp_path / "in", "parquet", rows)
    (part,) = open_input(location).parts
    write(tmp_path / "in", "parquet", rows[:100])
    with pytest.raises(CorruptStoreError, match="ends before row|cannot be read"):
        list(part.read(50))


def test_a_damaged_file_that_is_large_when_it_is_repaired(job, rows, tmp_path, small_parts):
    """It was planned as one part, of rows that nobody knew, and stays one."""
    write(tmp_path / "in", "npy", rows)
    good = (tmp_path / "in" / "e.npy").read_bytes()
    np.save(tmp_path / "in" / "a.npy", rows[:10])
    (tmp_path / "in" / "e.npy").write_bytes(good[:-1])
    summary = run_job(tmp_path / "in", tmp_path / "s", job.settings())
    assert [name for name, _ in summary.failed] == ["e.npy"]
    (tmp_path / "in" / "e.npy").write_bytes(good)
    summary = run_job(tmp_path / "in", tmp_path / "s", job.settings())
    assert (summary.complete, summary.parts, summary.rows) == (True, 2, 10 + ROWS)
    assert verify_scores(tmp_path / "s").ok


def test_files_whose_names_end_like_rows_of_one(job, rows, tmp_path):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "e[1].npy", rows[:10])
    run_job(tmp_path / "in", tmp_path / "s", job.settings())
    np.save(tmp_path / "in" / "e[2].npy", rows[10:20])
    assert run_job(tmp_path / "in", tmp_path / "s", job.settings()).rows == 20
