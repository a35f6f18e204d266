"""Vocabularies on disk: what the ones in memory are, at bounded memory."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bliss_index.encode.spooled_vocabulary import spool_vocabulary
from bliss_index.errors import InvalidInputError, OutputError
from bliss_index.vocabulary import load_vocabulary

COUNTS = ("read", "empty", "duplicate", "excluded", "sources")


def assert_same(spooled, loaded):
    assert list(spooled) == list(loaded.entries)
    assert len(spooled) == len(loaded)
    assert [getattr(spooled, name) for name in COUNTS] == [getattr(loaded, name) for name in COUNTS]
    assert spooled.describe() == loaded.describe()
    joined = "\n".join(loaded.entries).encode()
    assert spooled.sha256 == hashlib.sha256(joined).hexdigest()


@pytest.mark.parametrize("words", [["|", "|"], ["a;b", "c;d"]])
def test_a_table_is_refused_alike(tmp_path, words):
    path = tmp_path / "one.txt"
    path.write_text("\n".join(words))
    refused = []
    for read in (load_vocabulary, lambda sources: spool_vocabulary(sources, tmp_path)):
        with pytest.raises(InvalidInputError, match="it is a table") as error:
            read([path])
        refused.append(str(error.value))
    assert refused[0] == refused[1]


# Few different entries, so that many repeat, within a block and across blocks.
WORDS = st.sampled_from(
    ["cat", "Cat", " cat ", "e\u0301", "\u00e9", "", "  ", "dog  house", "a\u2028b"]
)


@settings(deadline=None, max_examples=60)
@given(st.lists(WORDS | st.text(max_size=3), min_size=1, max_size=60), st.integers(1, 20))
def test_the_same_as_in_memory(tmp_path_factory, words, block_rows):
    folder = tmp_path_factory.mktemp("spool")
    lines = [word.replace("\n", " ").replace("\r", " ") for word in words]
    text = "".join(f"{line}\n" for line in lines)
    (folder / "one.txt").write_text(text, encoding="utf-8", errors="replace")
    (folder / "two.txt.gz").write_bytes(gzip.compress(b"dog house\nCAT\nowl\n"))
    sources = [folder / "one.txt", folder / "two.txt.gz"]
    for exclude in ((), ("DOG house", "x")):
        try:
            loaded = load_vocabulary(sources, exclude=exclude)
        except InvalidInputError as error:  # every line looks like a row of a table
            with pytest.raises(InvalidInputError, match=re.escape(str(error))):
                spool_vocabulary(sources, folder, exclude=exclude, block_rows=block_rows)
            continue
        with spool_vocabulary(sources, folder, exclude=exclude, block_rows=block_rows) as spooled:
            assert_same(spooled, loaded)
            for start in (0, 1, len(loaded) // 2, len(loaded), len(loaded) + 3):
                assert list(spooled.iter_from(start)) == list(loaded.entries[start:])


def test_memory_does_not_grow_with_the_list(tmp_path):
    path = tmp_path / "words.txt"
    with path.open("w") as file:
        file.writelines(f"word {row % 90_000}\n" for row in range(100_000))

    def peak(read):
        tracemalloc.start()
        try:
            assert len(read()) == 90_000
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def spool():
        with spool_vocabulary(path, tmp_path, block_rows=1000) as vocabulary:
            assert sum(1 for _ in vocabulary) == 90_000
            return vocabulary

    assert peak(spool) < 2.5e6  # files have buffers; the list's own share is one bit a row
    assert peak(lambda: load_vocabulary(path)) > 8e6


def test_nothing_is_left_behind(tmp_path):
    (tmp_path / "words.txt").write_text("cat\ndog\ncat\n")
    with spool_vocabulary(tmp_path / "words.txt", tmp_path / "not" / "yet") as vocabulary:
        assert list(vocabulary) == ["cat", "dog"]
        assert os.listdir(tmp_path) == ["words.txt"]
    seen: list[int] = []
    with spool_vocabulary(
        tmp_path / "words.txt", tmp_path, block_rows=2, progress=seen.append
    ) as vocabulary:
        assert len(vocabulary) == 2
    assert seen == [2, 1]
    assert os.listdir(tmp_path) == ["words.txt"]


def test_what_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "words.txt"
    path.write_text("\n \ncat\n")
    with pytest.raises(InvalidInputError, match="3 rows read, 2 empty, 1 excluded"):
        spool_vocabulary(path, tmp_path, exclude=["CAT"])
    with pytest.raises(InvalidInputError, match=r"'.*gone.txt' is neither a file nor built in"):
        spool_vocabulary([path, tmp_path / "gone.txt"], tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OutputError, match="No space left on device; free some space"):
        spool_vocabulary(path, tmp_path)
