"""Groups: kinds that are found and named, counts that add up, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
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
from bliss_index.report.grouping import (
    ImageGrouper,
    join_groups,
    name_groups,
    names_of_images,
)
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


def test_the_largest_group_comes_first_wherever_its_name_is(kinds):
    entries, true, ids, similarities = kinds
    found, own = group(entries[::-1], len(entries) - 1 - ids, similarities)
    assert len(found.names) == 7 and own.tolist() == true.tolist()


def test_what_is_seen_alike_by_different_entries_is_one_kind():
    rng = np.random.default_rng(2)
    centres = unit(rng.normal(size=(8, 16)))
    of = np.repeat([0, 0, 1, 2, 3, 4, 5, 6, 7], 4)  # the first eight entries are one direction
    entries = unit(centres[of] + 0.04 * rng.normal(size=(36, 16))).astype(np.float32)
    seen = np.repeat([0, 1, 2], (12, 12, 9))  # by entries 0-3, 4-7 and 8-11, none in common
    ids = 4 * seen[:, None] + np.arange(4)
    similarities = np.sort(rng.uniform(0.2, 0.3, (33, 4)).astype(np.float32))[:, ::-1]
    found, own = group(entries, ids, similarities)
    assert own.tolist() == [0] * 24 + [1] * 9
    assert found.names[0][0] in range(8) and found.names[1][0] in range(8, 12)


def test_neither_batches_nor_settings_of_numpy_change_groups(kinds, monkeypatch):
    entries, _, ids, similarities = kinds
    for most in (grouping.MOST_IMAGES, 60):  # all images, and some of them
        monkeypatch.setattr(grouping, "MOST_IMAGES", most)
        whole, own = group(entries, ids, similarities)
        with np.errstate(all="raise"):
            parts, same = group(entries, ids, similarities, batch=7)
        assert whole.names == parts.names and own.tolist() == same.tolist()


def test_a_sample_of_every_name_stands_for_all_images(kinds, monkeypatch):
    entries, true, ids, similarities = kinds
    monkeypatch.setattr(grouping, "MOST_IMAGES", 60)
    grouper = ImageGrouper(entries)
    grouper.count(ids)
    held = []
    for start in range(0, len(ids), 10):
        grouper.add(ids[start : start + 10], similarities[start : start + 10])
        held.append(grouper._sample.rows)
    assert 60 < max(held) <= 2 * 60 + 10
    some, _, weights = grouper._sample.taken()
    assert 45 < len(some) <= 60 and weights.sum() == pytest.approx(len(ids), abs=0.5)
    heads, sizes = np.unique(ids[:, 0], return_counts=True)
    for head, size in zip(heads, sizes, strict=True):
        own = some[:, 0] == head
        assert weights[own].sum() == pytest.approx(size, abs=0.1)
    found, own = group(entries, ids, similarities)
    assert len(found.names) == 7 and own.tolist() == true.tolist()


def test_beyond_the_most_frequent_names_images_join_the_nearest_group(kinds, monkeypatch):
    entries, true, ids, similarities = kinds
    monkeypatch.setattr(grouping, "MOST_NAMES", 9)
    found, own = group(entries, ids, similarities)
    assert 3 <= len(found.names) <= 9
    large = true < 3
    assert own[large].tolist() == true[large].tolist()
    assert np.isin(own, np.arange(len(found.names))).all()


def naive_names(ids, similarities, weights, names):
    """The same by its definition: every name's worth anew after every step."""
    ranges = similarities[:, :1] - similarities
    scale = (ranges[:, -1] * weights).sum() / weights.sum()
    names = set(names.tolist())
    while True:
        gaps, images = Counter(), Counter()
        of_image = []
        for row, entries in enumerate(ids.tolist()):
            known = [at for at, entry in enumerate(entries) if entry in names]
            of_image.append(entries[known[0]] if known else -1)
            if known:
                first, *others = (min(ranges[row, at] / scale, 1) for at in known)
                gaps[entries[known[0]]] += weights[row] * (next(iter(others), 1) - first)
                images[entries[known[0]]] += weights[row]
        worth = {
            name: gaps[name] / max(images[name], 1) / (1 + 1 / np.sqrt(max(images[name], 1e-2)))
            for name in names
        }
        least = min(sorted(worth), key=lambda name: round(worth[name], 6))
        if worth[least] >= grouping.NAME_WORTH:
            return of_image
        names.remove(least)


@pytest.mark.parametrize("seed", range(4))
def test_names_are_given_up_as_their_definition_says(seed):
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((80, 40)) - 2.0 * (rng.random((80, 40)) < 0.08), axis=1)[:, :6]
    similarities = -np.sort(-rng.gamma(0.4, 0.1, (80, 6)), axis=1)
    weights = rng.integers(1, 6, 80) / 2
    names = np.unique(ids[:, 0])
    found = names_of_images(ids, similarities, weights, names)
    assert found.tolist() == naive_names(ids, similarities, weights, names)
    assert 3 < len(set(found.tolist())) < names.size


def naive_join(directions, weights, group):
    """The same by its definition, image by image."""
    groups = [list(np.flatnonzero(group == g)) for g in range(group.max() + 1)]

    def mean(rows):
        total = (weights[rows, None] * directions[rows]).sum(0)
        return total / np.linalg.norm(total)

    def own(rows):
        if len(rows) < 2:
            return None
        others = [mean([other for other in rows if other != row]) for row in rows]
        return np.average([directions[r] @ o for r, o in zip(rows, others, strict=True)],
                          weights=weights[rows])  # fmt: skip

    while len(groups) > 1:
        sizes = [weights[rows].sum() for rows in groups]
        owns = [own(rows) for rows in groups]
        known = [(o, n) for o, n in zip(owns, sizes, strict=True) if o is not None]
        usual = sum(o * n for o, n in known) / sum(n for _, n in known) if known else 1.0
        apart, goals = [], []
        for at, rows in enumerate(groups):
            towards = [
                -np.inf if other == at
                else np.average(directions[rows] @ mean(others), weights=weights[rows])
                for other, others in enumerate(groups)
            ]  # fmt: skip
            goals.append(int(np.argmax(towards)))
            apart.append((usual if owns[at] is None else owns[at]) - max(towards))
            apart[-1] /= 1 + 1 / np.sqrt(sizes[at])
        least = int(np.argmin(apart))
        if apart[least] >= grouping.APART:
            break
        groups[goals[least]] += groups[least]
        del groups[least]
    return {frozenset(map(int, rows)) for rows in groups}


@pytest.mark.parametrize("seed", range(4))
def test_joining_is_what_its_definition_says(seed):
    rng = np.random.default_rng(seed)
    group = np.concatenate([np.arange(20), rng.integers(-1, 18, 60)])
    centres = unit(rng.normal(size=(7, 5)))[np.arange(20) % 7]
    directions = unit(centres[group] + 0.3 * rng.normal(size=(80, 5))).astype(np.float64)
    weights = rng.integers(1, 6, 80) / 2
    found = join_groups(directions, weights, group)
    assert (found < 0).tolist() == (group < 0).tolist()
    sets = {frozenset(np.flatnonzero(found == g).tolist()) for g in range(found.max() + 1)}
    assert sets == naive_join(directions, weights, group)
    assert 1 < len(sets) < 20


def test_names_are_what_a_group_has_more_than_others_and_no_two_are_alike():
    # Entry 9 is everywhere, and in two groups a little more than their own.
    ids = np.array([[9, 0, 1]] * 4 + [[9, 2, 3]] * 4 + [[2, 9, 4]] * 2)
    votes = np.array([[0.52, 0.48, 0.0]] * 4 + [[0.46, 0.44, 0.1]] * 4 + [[0.6, 0.4, 0.0]] * 2)
    own, names = name_groups(np.repeat([0, 1, 2], (4, 4, 2)), np.ones(10), ids, votes)
    assert own.tolist() == [0] * 4 + [1] * 6  # the last two are called by one name
    assert [name[:2] for name in names] == [(0, 9), (2, 9)]


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
