"""Vocabularies: what is read, what is left out and counted, what is refused."""

from __future__ import annotations

import gzip
import unicodedata
from importlib.util import find_spec
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bliss_index.errors import InvalidInputError, MissingDependencyError
from bliss_index.vocabulary import (
    PROMPT_ENSEMBLE,
    clean_entry,
    load_vocabulary,
    prompt_templates,
    render_prompts,
)


def write(path, text):
    path.write_bytes(text.encode())
    return path


def test_entries_are_cleaned_counted_and_kept_in_order(tmp_path):
    decomposed = unicodedata.normalize("NFD", "café")
    path = write(
        tmp_path / "a.txt",
        f"dog\n  cat \r\n\n{decomposed}\ncafé\ngreat\t white  shark\ndog\n \nDog",
    )
    vocabulary = load_vocabulary([path])
    assert vocabulary.entries == ("dog", "cat", "café", "great white shark", "Dog")
    assert (vocabulary.read, vocabulary.empty, vocabulary.duplicate) == (9, 2, 2)
    assert vocabulary.excluded == 0
    assert vocabulary.describe() == "5 entries of 9 read (2 empty, 2 duplicate, 0 excluded)"
    assert len(vocabulary) == 5
    assert list(vocabulary) == list(vocabulary.entries)
    assert load_vocabulary(path).sources == (str(path),)


def test_line_ends_of_every_system(tmp_path):
    for number, end in enumerate((b"\n", b"\r\n", b"\r")):
        path = tmp_path / f"{number}.txt"
        path.write_bytes(end.join([b"cat", b"dog house", b"", b"owl"]) + end)
        vocabulary = load_vocabulary(path)
        assert vocabulary.entries == ("cat", "dog house", "owl")
        assert (vocabulary.read, vocabulary.empty) == (4, 1)


def test_exclusion_ignores_case_and_spacing(tmp_path):
    path = write(tmp_path / "a.txt", "dog\nDOG\nhot dog\ncat")
    vocabulary = load_vocabulary([path], exclude=["Dog", "hot  dog "])
    assert vocabulary.entries == ("cat",)
    assert (vocabulary.read, vocabulary.excluded, vocabulary.duplicate) == (4, 3, 0)
    with pytest.raises(InvalidInputError, match="one string 'dog'"):
        load_vocabulary([path], exclude="dog")


def test_duplicates_are_found_across_sources(tmp_path):
    first = write(tmp_path / "a.txt", "dog\ncat")
    second = write(tmp_path / "b.txt", "cat\nowl")
    vocabulary = load_vocabulary([first, second])
    assert vocabulary.entries == ("dog", "cat", "owl")
    assert vocabulary.duplicate == 1


def test_every_file_kind_gives_the_same(tmp_path):
    expected = ("dog", "a, b", "owl")
    plain = write(tmp_path / "a.txt", "dog\na, b\nowl\n")
    zipped = tmp_path / "b.txt.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    marked = tmp_path / "c.txt"
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    table = write(tmp_path / "d.csv", 'id,Word\n1,dog\n2,"a, b"\n3,owl\n')
    packed = tmp_path / "e.csv.gz"
    packed.write_bytes(gzip.compress(table.read_bytes()))
    tabbed = write(tmp_path / "f.tsv", "name\tcount\ndog\t3\na, b\t4\nowl\t5")
    single = write(tmp_path / "g.csv", 'anything\ndog\n"a, b"\nowl\n')
    columns = {"n": [1, 2, 3, 4], "entry": ["dog", None, "a, b", "owl"]}
    pq.write_table(pa.table(columns), tmp_path / "h.parquet")
    coded = pa.array(["dog", "a, b", "owl"]).dictionary_encode()
    pq.write_table(pa.table({"label": coded, "other": ["x", "y", "z"]}), tmp_path / "i.PARQUET")
    names = [plain, zipped, marked, table, packed, tabbed, single]
    for path in [*names, tmp_path / "h.parquet", tmp_path / "i.PARQUET"]:
        assert load_vocabulary([path]).entries == expected, path


def test_a_quoted_field_may_hold_a_line_break(tmp_path):
    path = write(tmp_path / "a.csv", 'text,id\n"great\nwhite shark",1\n')
    assert load_vocabulary([path]).entries == ("great white shark",)


def test_imagenets_synonyms_are_built_in():
    """The authors' dictionary has 1,860 strings, of which 18 occur twice."""
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    vocabulary = load_vocabulary(["imagenet-synonyms"])
    assert (vocabulary.read, len(vocabulary), vocabulary.duplicate) == (1860, 1842, 18)
    assert vocabulary.entries[:3] == ("tench", "Tinca tinca", "goldfish")
    assert vocabulary.empty == 0
    large = load_vocabulary(["imagenet-21k"])
    assert (large.read, len(large)) == (40742, 37009)
    assert len(set(vocabulary.entries) - set(large.entries)) < 10


def test_built_in_synonyms_without_their_files(monkeypatch, tmp_path):
    monkeypatch.setattr("bliss_index.vocabulary.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"timm.*pip install 'bliss-index\[clip\]'"):
        load_vocabulary(["imagenet-21k"])
    spec = SimpleNamespace(origin=str(tmp_path / "timm" / "__init__.py"))
    monkeypatch.setattr("bliss_index.vocabulary.find_spec", lambda name: spec)
    with pytest.raises(InvalidInputError, match="does not hold ImageNet's synsets"):
        load_vocabulary(["imagenet-synonyms"])


def test_imagenet_is_built_in():
    vocabulary = load_vocabulary(["imagenet"])
    assert vocabulary.read == 1000
    assert "tench" in vocabulary.entries


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.txt", b"dog\nc\xe4t\n", ["a.txt", "byte 5", "0xe4", "UTF-8"]),
        ("a.txt", b"\n  \n", ["a.txt", "2 rows read", "2 empty"]),
        ("a.csv", b"", ["a.csv", "0 rows read"]),
        ("a.csv", b"id,value\n1,2\n", ["'id', 'value'", "text, word, name, label"]),
        ("a.csv", b"id,text\n1\n", ["line 2", "1 fields", "2"]),
        ("a.csv", b'text\n"dog\n', ["a.csv", "line"]),
        ("a.txt.gz", b"not gzip", ["a.txt.gz", "gzip"]),
        ("a.txt.gz", gzip.compress(b"dog\n" * 100, mtime=0)[:-12], ["a.txt.gz", "complete gzip"]),
        ("a.parquet", b"PAR1 but no", ["a.parquet", "Parquet"]),
        ("a.json", b"[]", ["a.json", ".json", ".txt"]),
        ("a.parquet.gz", b"", [".parquet.gz", ".txt"]),
    ],
)
def test_bad_files(tmp_path, name, content, parts):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidInputError) as caught:
        load_vocabulary([path])
    for part in parts:
        assert part in str(caught.value)


def test_missing_sources_and_text_columns(tmp_path):
    with pytest.raises(InvalidInputError, match="'wordnet'.*imagenet"):
        load_vocabulary(["wordnet"])
    with pytest.raises(InvalidInputError, match="imagenet"):
        load_vocabulary([])
    pq.write_table(pa.table({"n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(InvalidInputError, match=r"no string column.*n \(int64\)"):
        load_vocabulary([tmp_path / "a.parquet"])
    pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), tmp_path / "a.parquet")
    with pytest.raises(InvalidInputError, match="'a', 'b'"):
        load_vocabulary([tmp_path / "a.parquet"])
    path = write(tmp_path / "a.txt", "dog")
    with pytest.raises(InvalidInputError, match="1 rows read, 0 empty, 1 excluded"):
        load_vocabulary([path], exclude=["dog"])


def test_prompts():
    prompts = render_prompts(["cat", "{x}"])
    assert prompts == ["This is a photo of a cat", "This is a photo of a {x}"]
    assert render_prompts(["cat"], "{{{}}}!") == ["{cat}!"]


def test_the_ensemble_is_that_of_clips_authors(monkeypatch, tmp_path):
    templates = prompt_templates(PROMPT_ENSEMBLE)
    assert len(templates) == len(set(templates)) == 80
    assert "a photo of a {}." in templates and "itap of a {}." in templates
    assert prompt_templates("a {}") == ("a {}",)
    assert prompt_templates() == ("This is a photo of a {}",)
    folder = tmp_path / "open_clip"
    spec = SimpleNamespace(origin=str(folder / "__init__.py"))
    monkeypatch.setattr("bliss_index.vocabulary.find_spec", lambda name: spec)
    folder.mkdir()
    for content in ("", "OPENAI_IMAGENET_TEMPLATES = 3", "OPENAI_IMAGENET_TEMPLATES = (1,)", "("):
        (folder / "zero_shot_metadata.py").write_text(content)
        with pytest.raises(InvalidInputError):
            prompt_templates(PROMPT_ENSEMBLE)


@pytest.mark.parametrize(
    "template", ["a photo", "{} and {}", "{0}", "{name}", "{", "{!r}", "{:>9}", ""]
)
def test_bad_templates(template):
    with pytest.raises(InvalidInputError) as caught:
        render_prompts(["cat"], template)
    assert repr(template) in str(caught.value)
    assert "This is a photo of a {}" in str(caught.value)


@given(st.text())
def test_cleaning_twice_changes_nothing(text):
    once = clean_entry(text)
    assert clean_entry(once) == once
    assert once == once.strip()
