"""Images whose embeddings are equal or nearly so: copies of one picture; calibration images."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from bliss_index.review.near_images import NearRows
from bliss_index.scoring.score_inputs import open_input
from bliss_index.scoring.scores_directory import ScoresDirectory
from bliss_index.search.duplicates import row_digests
from bliss_index.storage.cache import cache_folder
from bliss_index.storage.files import atomic_file, make_directory
from bliss_index.store import EmbeddingStore

_READ_ROWS = 8192
_DIGEST_BYTES = 16
_VERSION = 2


@dataclass(frozen=True, eq=False)
class IdenticalImages:
    """Rows of scores whose stored embeddings are those of others, or nearly so.

    Attributes
    ----------
    rows : (n,) int64 array
        Rows that have a copy, in order.
    first : (n,) int64 array
        The first row with the same embedding, or one that is near to this one.
    calibrated : (m,) int64 array or None
        Rows whose embedding is that of an image which calibrated the scores; None where these are
        not known.
    """

    rows: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    calibrated: npt.NDArray[np.int64] | None

    @classmethod
    def kept(
        cls, made_of: dict[str, str | None], find: Callable[[], IdenticalImages]
    ) -> IdenticalImages:
        """Return what the cache has of the same embeddings; else find it and keep it there.

        Parameters
        ----------
        made_of : dict
            Content hashes.
        find : callable
            Makes it.

        Raises
        ------
        OutputError
            The cache cannot be written.
        """
        digest = hashlib.sha256(json.dumps({"version": _VERSION, **made_of}).encode()).hexdigest()
        path = cache_folder() / "review" / f"{digest[:32]}.npz"
        try:
            with np.load(path) as arrays:
                calibrated = arrays.get("calibrated")
                return cls(arrays["rows"], arrays["first"], calibrated)
        except (OSError, ValueError, KeyError, BadZipFile):
            found = find()
        arrays = {name: value for name, value in vars(found).items() if value is not None}
        make_directory(path.parent)
        content = io.BytesIO()
        np.savez(content, **arrays)
        with atomic_file(path) as sink:
            sink.write(content.getvalue())
        return found


def find_identical(
    directory: ScoresDirectory, images: str, normal: EmbeddingStore | None
) -> IdenticalImages:
    """Compare the embeddings that were scored; they are read three times.

    Memory is 25 bytes a row and some more while sets are looked for. What near means is said in
    :mod:`bliss_index.review.near_images`.

    Parameters
    ----------
    directory : ScoresDirectory
        The scores.
    images : str
        Where the scored embeddings are now.
    normal : EmbeddingStore or None
        Images that calibrated.

    Raises
    ------
    StoreError, CorruptStoreError, JobError
        The embeddings are gone, damaged, or others than were scored.
    """
    digests = np.zeros(directory.rows, dtype=np.uint64)
    good = np.zeros(directory.rows, dtype=bool)
    total: Any = 0.0
    for start, embeddings, fine in _batches(directory, images):
        rows = slice(start, start + len(fine))
        digests[rows], good[rows] = row_digests(embeddings), fine
        total = total + embeddings[fine].sum(axis=0, dtype=np.float64)
    known = np.concatenate(
        [np.empty(0, np.uint64), *(row_digests(part) for part in _normal(normal))]
    )
    suspects = good & (_repeated(digests, good) | np.isin(digests, known))
    hashes = np.zeros(int(suspects.sum()), dtype=f"V{_DIGEST_BYTES}")
    rows_of = np.flatnonzero(suspects)
    for start, embeddings, fine in _batches(directory, images) if rows_of.size else ():
        begin, end = np.searchsorted(rows_of, [start, start + len(fine)])
        some = embeddings[rows_of[begin:end] - start]
        hashes[begin:end] = [_hash(row) for row in some]
    calibrating = np.array(
        [
            _hash(row)
            for part in _normal(normal)
            for row in part[np.isin(row_digests(part), digests)]
        ],
        dtype=hashes.dtype,
    )
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    leader = np.arange(directory.rows)
    leader[rows_of] = rows_of[first[inverse]]
    alone = good & (leader == np.arange(leader.size))
    near = np.arange(leader.size)
    for row, one in _near(directory, images, alone, total / max(1, good.sum())).items():
        near[row] = one
    leader = near[leader]
    members = np.flatnonzero(np.isin(leader, leader[leader != np.arange(leader.size)]))
    return IdenticalImages(
        members, leader[members], None if normal is None else rows_of[np.isin(hashes, calibrating)]
    )


def _near(
    directory: ScoresDirectory, images: str, used: npt.NDArray[np.bool_], mean: Any
) -> dict[int, int]:
    """Rows that are near to an earlier one, and that one."""
    if used.sum() < 2:
        return {}
    near = NearRows(used.size, np.asarray(mean))
    for start, embeddings, _ in _batches(directory, images):
        near.sign(start, embeddings, used[start : start + len(embeddings)])
    pairs = near.candidates()
    parts = ((start, embeddings) for start, embeddings, _ in _batches(directory, images))
    return near.first_of_each(pairs, parts)


def _batches(
    directory: ScoresDirectory, images: str
) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[np.bool_]]]:
    """First row, embeddings and whether they are good, in the order of the scores."""
    source = open_input(images)
    start = 0
    for planned, file in zip(directory.plan, directory.files, strict=True):
        at = start
        for batch in source.find(planned).read(_READ_ROWS):
            yield at, np.ascontiguousarray(batch.embeddings), batch.good
            at += len(batch.good)
        start += file.rows


def _normal(store: EmbeddingStore | None) -> Iterator[npt.NDArray[Any]]:
    for shard in () if store is None else store.iter_shards():
        yield np.ascontiguousarray(shard.embeddings[shard.good])


def _repeated(
    digests: npt.NDArray[np.uint64], good: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    ordered = np.sort(digests[good])
    return np.isin(digests, ordered[1:][ordered[1:] == ordered[:-1]])


def _hash(row: npt.NDArray[Any]) -> bytes:
    return hashlib.blake2b(row.tobytes(), digest_size=_DIGEST_BYTES).digest()
