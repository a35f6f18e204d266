"""Sources that grow: only what came in is done, behind the others; the rest is named."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from bulk_fixtures import write_images
from job_fixtures import TrivialWork, result, run_trivial

from bliss_index.errors import JobError
from bliss_index.jobs import JobListener, JobOptions, run
from bliss_index.jobs.part import Part, grown
from bliss_index.scoring import ScoresDirectory, run_job, verify_scores
from bliss_index.store import EmbeddingStore, ModelIdentity, verify_store
from bliss_index.store.import_work import import_embeddings


class Notes(JobListener):
    def __init__(self):
        self.texts = []

    def notice(self, text):
        self.texts.append(text)


def test_parts_that_came_in_are_done_behind_the_others(tmp_path):
    run_trivial(tmp_path / "s", 5)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("part-*")}
    notes = Notes()
    summary = run(TrivialWork(8), tmp_path / "s", listener=notes)
    assert (summary.parts, summary.parts_earlier, summary.rows_now) == (8, 5, 3)
    assert notes.texts == ["the input has grown by 3 rows in 3 parts"]
    assert all((tmp_path / "s" / n).stat().st_mtime_ns == t for n, t in before.items())
    run_trivial(tmp_path / "whole", 8)
    whole = result(tmp_path / "whole")
    grown = {n: c for n, c in result(tmp_path / "s").items() if not n.startswith("_plan")}
    assert grown == {n: c for n, c in whole.items() if not n.startswith("_plan")}
    run(TrivialWork(11), tmp_path / "s", JobOptions(workers=2))
    assert run(TrivialWork(11), tmp_path / "s").rows_now == 0
    notes = Notes()
    assert run(TrivialWork(7), tmp_path / "s", listener=notes).complete
    assert notes.texts == [
        "4 of what was planned are gone since, their rows stay as they were: piece 7, piece 8, "
        "piece 9, piece 10"
    ]


def test_new_files_of_embeddings_are_imported_and_scored(job, tmp_path):
    rows = EmbeddingStore.open(job.images).embeddings()
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "b.npy", rows[:100])
    options = {"kind": "image", "model": ModelIdentity("ViT-B-32", "openai")}
    import_embeddings(tmp_path / "in", tmp_path / "s", **options)
    run_job(tmp_path / "in", tmp_path / "scores", job.settings())
    first = ScoresDirectory.open(tmp_path / "scores").table()
    np.save(tmp_path / "in" / "a.npy", rows[100:150])  # before the other, by name
    summary = import_embeddings(tmp_path / "in", tmp_path / "s", **options)
    assert (summary.rows, summary.complete) == (150, True)
    store = EmbeddingStore.open(tmp_path / "s")
    assert store.keys() == [str(i) for i in range(150)]
    np.testing.assert_array_equal(store.embeddings(), rows[:150])
    assert verify_store(tmp_path / "s").ok
    summary = run_job(tmp_path / "in", tmp_path / "scores", job.settings())
    assert (summary.rows, summary.rows_now) == (150, 50)
    table = ScoresDirectory.open(tmp_path / "scores").table()
    assert table.slice(0, 100).equals(first)
    assert table.column("key").to_pylist() == [str(i) for i in range(150)]
    assert verify_scores(tmp_path / "scores").ok
    np.save(tmp_path / "in" / "b.npy", rows[:90])
    with pytest.raises(JobError, match="have changed since they were planned: b.npy"):
        run_job(tmp_path / "in", tmp_path / "scores", job.settings())


@pytest.mark.parametrize(
    ("planned", "now", "changed"),
    [(5, 5, []), (5, 6, ["a"]), (5, 0, ["a"]), (0, 5, ["a"]), (0, 0, []), (-1, 5, []), (5, -1, [])],
)
def test_a_file_with_other_rows_than_planned_has_changed(planned, now, changed):
    """Fewer than no rows: nobody knows how many."""
    kept = [Part(0, "a", planned, ""), Part(1, "b", 3, "")]
    found = grown(kept, [Part(0, "a", now, ""), Part(1, "b", 3, ""), Part(2, "c", 1, "")])
    assert (found.changed, found.removed) == (changed, [])
    assert [(part.index, part.name) for part in found.parts] == [(2, "c")]


def test_a_store_that_has_grown_is_scored_behind(job, tmp_path):
    rows = EmbeddingStore.open(job.images).embeddings("float32")
    write_images(tmp_path / "a", rows[:100], 50)
    run_job(tmp_path / "a", tmp_path / "s", job.settings())
    import shutil

    shutil.rmtree(tmp_path / "a")
    write_images(tmp_path / "a", rows[:150], 50)
    summary = run_job(tmp_path / "a", tmp_path / "s", job.settings())
    assert (summary.parts_earlier, summary.rows_now, summary.complete) == (2, 50, True)
    assert ScoresDirectory.open(tmp_path / "s").rows == 150


@pytest.mark.skipif(find_spec("open_clip") is None, reason="open_clip is not installed")
def test_new_photos_are_encoded_behind_the_others(tmp_path):
    from bliss_index.demo.scenes import draw_scene
    from bliss_index.encode import load_encoder
    from bliss_index.encode.image_work import encode_image_store
    from bliss_index.encode.images import open_images

    folder = tmp_path / "p"
    folder.mkdir()

    def draw(number):
        scene = draw_scene(np.random.default_rng([7, number]), size=32)
        scene.image.save(folder / f"{number:02}.png")

    encoder = load_encoder("bliss-tiny", device="cpu", batch_size=4)
    options = {"rows_per_shard": 4, "decoders": 0}
    for number in range(0, 20, 2):
        draw(number)
    encode_image_store(encoder, open_images(folder), tmp_path / "s", **options)
    first = EmbeddingStore.open(tmp_path / "s")
    for number in (5, 7, 21):
        draw(number)
    notes = Notes()
    summary = encode_image_store(
        encoder, open_images(folder), tmp_path / "s", listener=notes, **options
    )
    assert (summary.rows, summary.rows_now) == (13, 3)
    assert notes.texts == ["the input has grown by 3 rows in 1 parts"]
    store = EmbeddingStore.open(tmp_path / "s")
    assert store.keys() == [*first.keys(), "05.png", "07.png", "21.png"]
    np.testing.assert_array_equal(store.embeddings()[:10], first.embeddings())
    (folder / "04.png").unlink()
    (folder / "06.png").write_bytes((folder / "08.png").read_bytes())
    notes = Notes()
    summary = encode_image_store(
        encoder, open_images(folder), tmp_path / "s", listener=notes, **options
    )
    assert summary.rows_now == 0
    assert notes.texts == [
        "1 of what was planned are gone since, their rows stay as they were: 04.png",
        "1 of what was planned have changed since, their rows stay as they were: 06.png",
    ]
    assert verify_store(tmp_path / "s").ok


WORDS = [f"word {i}" for i in range(300)]


def encode(words, out, notes=None, **options):
    from bliss_index.encode.encode_work import EncoderSpec
    from bliss_index.encode.text_work import encode_text_store

    return encode_text_store(
        EncoderSpec("bliss-tiny"), words, out, templates=["a {}"], rows_per_shard=100,
        listener=notes, options=JobOptions(**options),
    )  # fmt: skip


def test_new_entries_of_a_vocabulary_are_encoded_behind_the_others(tmp_path):
    out = tmp_path / "corpus"
    first = encode(WORDS[:230], out)
    assert (first.rows, first.rows_now) == (230, 230)
    content = EmbeddingStore.open(out).content_hash
    notes = Notes()
    more = ["new at the top", *WORDS[:50], "Café ☕", *WORDS[50:]]
    second = encode(more, out, notes)
    assert (second.rows, second.rows_now, second.complete) == (302, 72, True)
    assert "the input has grown by 72 rows in 1 parts" in notes.texts
    store = EmbeddingStore.open(out)
    behind = ["new at the top", "Café ☕", *WORDS[230:]]
    assert store.texts() == [*WORDS[:230], *behind] and store.content_hash != content
    assert verify_store(out).ok
    encode(store.texts(), tmp_path / "whole")
    whole = EmbeddingStore.open(tmp_path / "whole").embeddings("float32")
    np.testing.assert_allclose(store.embeddings("float32"), whole, atol=2e-3)
    # Neither another order nor another run does anything, and it may grow again.
    for again in (more, sorted(more)):
        assert encode(again, out).rows_now == 0
    assert encode([*more, "one"], out).rows == 303
    assert EmbeddingStore.open(out).texts()[-1] == "one"


@pytest.mark.slow
def test_new_entries_of_a_vocabulary_are_encoded_by_workers(tmp_path):
    out = tmp_path / "corpus"
    encode(WORDS[:130], out)
    assert encode([*WORDS, "one"], out, workers=2).rows == 301
    assert EmbeddingStore.open(out).texts() == [*WORDS, "one"]
    assert verify_store(out).ok


def test_entries_that_are_gone_are_named(tmp_path):
    out = tmp_path / "corpus"
    encode(WORDS, out)
    before = result(out)
    with pytest.raises(JobError, match="2 of the entries .*: 'word 7', 'word 150'; put them back"):
        encode([word for word in WORDS if word not in ("word 7", "word 150")] + ["more"], out)
    assert result(out) == before


def test_tasks_of_an_array_have_the_entries_that_were_planned(tmp_path):
    out = tmp_path / "corpus"
    encode(WORDS, out, task="0/2")
    with pytest.raises(JobError, match="begun without 1 of these entries; .*without --task"):
        encode([*WORDS, "more"], out, task="1/2")
    with pytest.raises(JobError, match="'word 299'"):
        encode(WORDS[:-1], out, task="1/2")
    encode(WORDS, out, task="1/2")
    assert encode([*WORDS, "more"], out).rows == 301
    assert encode([*WORDS, "more"], out, task="1/2").rows_now == 0
    assert EmbeddingStore.open(out).texts() == [*WORDS, "more"]


def test_what_of_two_lists_is_in_one_alone():
    from bliss_index.encode.text_work import _differences

    random = np.random.default_rng(3)
    for _ in range(50):
        every = random.permutation(40)
        rows = np.stack([every // 3, every % 3], axis=1).astype(np.uint64)  # equal halves, too
        before = rows[: random.integers(1, 30)]
        now = random.permutation(rows)[: random.integers(0, 40)]
        new, gone = _differences(before, now)
        listed = {tuple(row) for row in before.tolist()}
        assert new.tolist() == [tuple(row) not in listed for row in now.tolist()]
        listed = {tuple(row) for row in now.tolist()}
        assert gone.tolist() == [tuple(row) not in listed for row in before.tolist()]
