"""Groups: kinds that are found and named, counts that add up, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from bulk_fixtures import unit, write_text
from typer.testing import CliRunner

from bliss_index.cli.app import app
from bliss_index.errors import InvalidInputError, StoreError
from bliss_index.report import grouping
from bliss_index.report.grouping import ImageGrouper, join_cells
from bliss_index.report.groups import groups, read_groups
from bliss_index.scoring import ScoresDirectory
from bliss_index.store import EmbeddingStore


def group(entries, ids, similarities, batch=10**9):
    grouper = ImageGrouper(entries)
    parts = [slice(start, start + batch) for start in range(0, max(len(ids), 1), batch)]
    for part in parts:
        grouper.count(ids[part])
    for part in parts:
        grouper.add(ids[part], similarities[part])
    found = grouper.finish()
    return found, np.concatenate(
        [grouper.assign(found, ids[part], similarities[part]) for part in parts]
    )


@pytest.fixture(scope="module")
def kinds():
    """Images of seven kinds of 3 to 60, and entries: three near synonyms a kind, and others."""
    rng = np.random.default_rng(5)
    centres = unit(rng.normal(size=(7, 32)))
    synonyms = unit(centres[:, None] + 0.04 * rng.normal(size=(7, 3, 32))).reshape(21, 32)
    entries = np.concatenate([unit(rng.normal(size=(300, 32))), synonyms]).astype(np.float32)
    true = np.repeat(np.arange(7), (60, 40, 30, 20, 10, 5, 3))
    images = unit(centres[true] + 0.05 * rng.normal(size=(true.size, 32)))
    similarities = images @ entries.T
    ids = np.argsort(-similarities, axis=1)[:, :8]
    return entries, true, ids, np.take_along_axis(similarities, ids, 1).astype(np.float32)


def test_kinds_are_found_whatever_their_size_and_synonyms_are_one(kinds):
    entries, true, ids, similarities = kinds
    found, own = group(entries, ids, similarities)
    assert len(found.names) == 7
    assert own.tolist() == true.tolist()  # the largest first
    for kind, names in enumerate(found.names):
        assert set(names) == {300 + 3 * kind, 301 + 3 * kind, 302 + 3 * kind}
    first = [name[0] for name in found.names]
    for kind, name in enumerate(first):
        similar = similarities - similarities.min(axis=1, keepdims=True)
        votes = np.bincount(ids[true == kind].ravel(), similar[true == kind].ravel())
        assert votes[name] == pytest.approx(votes.max(), rel=0.1)


def test_neither_batches_nor_settings_of_numpy_change_groups(kinds):
    entries, _, ids, similarities = kinds
    whole, own = group(entries, ids, similarities)
    with np.errstate(all="raise"):
        parts, same = group(entries, ids, similarities, batch=7)
    assert whole.names == parts.names and own.tolist() == same.tolist()


def test_beyond_the_most_frequent_cells_images_join_the_nearest_group(kinds, monkeypatch):
    entries, true, ids, similarities = kinds
    monkeypatch.setattr(grouping, "MOST_CELLS", 9)
    found, own = group(entries, ids, similarities)
    assert 1 < len(found.names) <= 9
    assert (found.group_of_entry >= 0).sum() == 9
    large = true < 3
    assert own[large].tolist() == true[large].tolist()
    assert np.isin(own, np.arange(len(found.names))).all()


def naive_join(sums, sizes):
    """The same by its definition: all pairs, again after every step."""
    groups = [[cell] for cell in range(len(sizes))]
    while len(groups) > 1:
        best, pair = -np.inf, None
        for a in range(len(groups)):
            for b in range(a + 1, len(groups)):
                (sa, na), (sb, nb) = (
                    (sums[g].sum(0), sizes[g].sum()) for g in (groups[a], groups[b])
                )
                alike = (sa @ sb) / (na * nb) * (1 + grouping.SMALL / np.sqrt(min(na, nb)))
                if alike > best + 1e-12:
                    best, pair = alike, (a, b)
        if best < grouping.ALIKE:
            break
        groups[pair[0]] += groups.pop(pair[1])
    return {frozenset(g) for g in groups}


@pytest.mark.parametrize("seed", range(4))
def test_joining_is_what_its_definition_says(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 30, 40)
    centres = unit(rng.normal(size=(8, 5)))[rng.integers(0, 8, 40)]
    sums = unit(centres + 0.3 * rng.normal(size=(40, 5))) * sizes[:, None] * 0.9
    found = join_cells(sums, sizes)
    assert {frozenset(np.flatnonzero(found == g)) for g in np.unique(found)} == naive_join(
        sums, sizes
    )
    assert 1 < found.max() + 1 < 40


def test_one_entry_equal_similarities_and_no_images():
    entries = unit(np.random.default_rng(1).normal(size=(6, 4))).astype(np.float32)
    found, own = group(entries, np.array([[2], [2], [4]]), np.full((3, 1), 0.3, np.float32))
    assert [names[0] for names in found.names] == [2, 4] and own.tolist() == [0, 0, 1]
    found, own = group(entries, np.array([[1, 5]]), np.full((1, 2), 0.3, np.float32))
    assert found.names == ((1, 5),) and own.tolist() == [0]
    found, _ = group(entries, np.empty((0, 3), np.int64), np.empty((0, 3), np.float32), batch=1)
    assert found.names == ()


def test_every_flagged_image_is_in_one_group(job_of_kinds, tmp_path):
    table = ScoresDirectory.open(job_of_kinds.folder / "scores").table().to_pylist()
    flagged = [(row, one) for row, one in enumerate(table) if one["flag"]]
    assert 40 < len(flagged) < 80
    found = groups(job_of_kinds.folder / "scores", out=tmp_path / "groups.parquet")
    assert 4 <= len(found.groups) <= 8
    assert found.flagged == len(flagged) == sum(g.images for g in found.groups)
    written = pq.read_table(tmp_path / "groups.parquet").to_pylist()
    assert [(w["row"], w["key"], w["anomaly_score"]) for w in written] == [
        (row, one["key"], one["anomaly_score"]) for row, one in flagged
    ]
    names = EmbeddingStore.open(job_of_kinds.corpus).texts()
    sizes = [g.images for g in found.groups]
    assert sizes == sorted(sizes, reverse=True) and len({g.name for g in found.groups}) == len(
        sizes
    )
    for one in found.groups:
        own = [w for w in written if w["group"] == one.name]
        assert len(own) == one.images and one.name in names and set(one.also) <= set(names)
        scores = [w["anomaly_score"] for w in own]
        assert one.typical_score == pytest.approx(np.median(scores))
        assert one.share == pytest.approx(one.images / len(flagged))
        first = sorted(own, key=lambda w: (-w["anomaly_score"], w["row"]))[:6]
        assert list(one.examples) == [w["row"] for w in first]
    assert (
        read_groups(
            tmp_path / "groups.parquet", ScoresDirectory.open(job_of_kinds.folder / "scores")
        )
        == found
    )
    assert replace(groups(job_of_kinds.folder / "scores"), output=found.output) == found


def test_a_threshold_of_ones_own(job_of_kinds, tmp_path):
    scores = ScoresDirectory.open(job_of_kinds.folder / "flagless").table(["anomaly_score"])
    values = [v for v in scores.column(0).to_pylist() if v is not None]
    found = groups(job_of_kinds.folder / "flagless", threshold=0.5)
    assert found.flagged == sum(v >= 0.5 for v in values) > 3
    nothing = groups(job_of_kinds.folder / "flagless", threshold=1e9, out=tmp_path / "none.parquet")
    assert nothing.groups == () and pq.read_table(tmp_path / "none.parquet").num_rows == 0


def test_what_is_refused(job_of_kinds, tmp_path):
    with pytest.raises(InvalidInputError, match="no column 'entries'.*--explain"):
        groups(job_of_kinds.folder / "plain")
    with pytest.raises(InvalidInputError, match="no flags.*--threshold"):
        groups(job_of_kinds.folder / "flagless")
    write_text(tmp_path / "other", EmbeddingStore.open(job_of_kinds.corpus).embeddings()[:30])
    with pytest.raises(StoreError, match="content hash .* name the corpus of the job"):
        groups(job_of_kinds.folder / "scores", tmp_path / "other")
    groups(job_of_kinds.folder / "scores", out=tmp_path / "groups.parquet")
    with pytest.raises(StoreError, match="make it again with 'bliss-index groups'"):
        read_groups(
            tmp_path / "groups.parquet", ScoresDirectory.open(job_of_kinds.folder / "plain")
        )
    with pytest.raises(StoreError, match="is not a file"):
        read_groups(tmp_path / "missing.parquet")


def test_the_command(job_of_kinds, tmp_path):
    call = partial(CliRunner(env={"COLUMNS": "200"}).invoke, app)
    command = ["groups", str(job_of_kinds.folder / "scores")]
    found = json.loads(call([*command, "--out", str(tmp_path / "g.parquet"), "--json"]).stdout)
    assert found["groups"][0]["images"] >= found["groups"][-1]["images"]
    assert "What the flagged images show" in call(command).stdout
