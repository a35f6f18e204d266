"""BLISS scores on a GPU: search, tables, class scores and the minimum never leave it.

The formulas are those of :mod:`bliss_index.scoring.formulas`, and the search finds the same entries
and similarities, bit for bit. What follows is computed in float64 as well, but the GPU adds
products over the dimension in an order of its own. A score rounded to float32 therefore differs
from the processor's in its last bit about once in a hundred million, and a job records where its
scores were computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bliss_index.calibration import Calibration
from bliss_index.calibration.moments import SIGMA_FLOOR, shrunken
from bliss_index.scoring.formulas import Scores
from bliss_index.scoring.scorer import require_fitting
from bliss_index.search.device.backend import upload
from bliss_index.search.device.base import DeviceEngine
from bliss_index.search.device.engine import choose_engine
from bliss_index.search.device.internal import Internal
from bliss_index.search.inputs import as_matrix
from bliss_index.search.isolation import isolated
from bliss_index.search.protocol import TensorSearch
from bliss_index.search.sharded import Matrix

_ENTRY_ROWS = 16384
_IMAGE_ELEMENTS = 1 << 25
_RESIDENT_BYTES = 4 << 30

FoundTensors = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class ScoreTensors:
    """Scores of n images on the device; as :class:`bliss_index.scoring.formulas.Scores`.

    Attributes
    ----------
    anomaly, internal, external
        (n,) float64.
    nearest_class
        (n,) int64.
    similarities, ids
        (n, k) float32 and int64.
    """

    anomaly: torch.Tensor
    nearest_class: torch.Tensor
    internal: torch.Tensor
    external: torch.Tensor
    similarities: torch.Tensor
    ids: torch.Tensor

    def to_arrays(self) -> Scores:
        """Copy to the host."""
        return Scores(
            self.anomaly.cpu().numpy(),
            self.nearest_class.cpu().numpy(),
            self.internal.cpu().numpy(),
            self.external.cpu().numpy(),
            self.similarities.cpu().numpy(),
            self.ids.cpu().numpy(),
        )


class DeviceTables:
    """:class:`bliss_index.scoring.tables.ExternalTables` on a device.

    Parameters
    ----------
    vocabulary, calibration
        As for :class:`bliss_index.scoring.tables.ExternalTables`; the vocabulary stays on the host.
    device
        Where the tables are.
    """

    @isolated
    def __init__(self, vocabulary: Matrix, calibration: Calibration, device: torch.device) -> None:
        self._vocabulary = vocabulary
        self._device = device
        self._shrinkage = calibration.shrinkage
        # On the host, as for the processor's tables: the same bits.
        self.prior = calibration.prior_of(vocabulary)
        shape = (vocabulary.shape[0], len(calibration.classes))
        self.scale = torch.empty(shape, dtype=torch.float32, device=device)
        self.shift = torch.empty(shape, dtype=torch.float32, device=device)
        self._known = torch.zeros(shape[0], dtype=torch.bool, device=device)
        means = np.stack([moments.mean for moments in calibration.moments])
        self._means = torch.from_numpy(means).to(device)
        self._counts = [moments.count for moments in calibration.moments]
        self._few = [moments.images is not None for moments in calibration.moments]
        spreads = [torch.from_numpy(np.ascontiguousarray(m.spread())) for m in calibration.moments]
        if sum(spread.numel() * 8 for spread in spreads) <= _RESIDENT_BYTES:
            spreads = [spread.to(device) for spread in spreads]
        self._spreads = spreads

    @property
    def known(self) -> int:
        """Number of entries computed so far."""
        return int(self._known.sum())

    @isolated
    def require(self, ids: torch.Tensor) -> None:
        """Compute the rows of these entries, of any shape, unless they are known already."""
        wanted = torch.zeros_like(self._known)
        wanted[ids.reshape(-1)] = True
        missing = (wanted & ~self._known).nonzero()[:, 0]
        for start in range(0, missing.shape[0], _ENTRY_ROWS):  # split makes a piece of nothing, too
            entries = missing[start : start + _ENTRY_ROWS]
            rows = upload(self._vocabulary[entries.cpu().numpy()], self._device)
            mu, sigma = self.statistics(rows)
            self.scale[entries] = (1.0 / sigma).float()
            self.shift[entries] = (mu / sigma).float()
            self._known[entries] = True

    @isolated
    def statistics(self, entries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of every class's images on (m, d) texts: (m, C) float64 each.

        :meth:`bliss_index.calibration.Calibration.statistics`, on the device.
        """
        rows = entries.double()
        mu = rows @ self._means.T
        towards = [0.0] * len(self._counts) if self.prior is None else self.prior.tolist()
        sigma = torch.empty_like(mu)
        for c, (spread, count, few) in enumerate(
            zip(self._spreads, self._counts, self._few, strict=True)
        ):
            product = rows @ spread.to(self._device)
            square = (product * (product if few else rows)).sum(1)
            variance = square.clamp(min=0.0) / count
            sigma[:, c] = shrunken(variance, count, self._shrinkage, towards[c]).sqrt()
        return mu, sigma + SIGMA_FLOOR


class DeviceScorer:
    """Scores images on a GPU; the counterpart of :class:`bliss_index.scoring.scorer.BlissScorer`.

    Parameters
    ----------
    search
        Top-k search over `vocabulary` whose results stay on a device.
    vocabulary, calibration, lam
        As for :class:`bliss_index.scoring.scorer.BlissScorer`; the vocabulary stays on the host.
    engine
        What adds up the scores; by default the engine that the search on this device uses.

    Raises
    ------
    InvalidInputError
        Dimensions or sizes differ; both are named.
    """

    @isolated
    def __init__(
        self,
        search: TensorSearch,
        vocabulary: Matrix,
        calibration: Calibration,
        *,
        lam: float = 0.5,
        engine: DeviceEngine | None = None,
    ) -> None:
        require_fitting(search, vocabulary, calibration, lam)
        self.search = search
        self.calibration = calibration
        self.lam = float(lam)
        self._device = torch.device(search.device)
        self._engine = engine or choose_engine(self._device)
        self.tables = DeviceTables(vocabulary, calibration, self._device)
        vectors, mu, sigma = calibration.class_terms(self.tables.prior)
        self._vectors = torch.from_numpy(vectors.T.copy()).to(self._device)
        self._mu, self._sigma = (torch.from_numpy(a).to(self._device) for a in (mu, sigma))
        on_gpu = self._device.type == "cuda"
        self._copies = torch.cuda.Stream(self._device) if on_gpu else None  # type: ignore[no-untyped-call]

    @property
    def k(self) -> int:
        """Vocabulary entries per image."""
        return self.search.k

    @isolated
    def stage(self, images: npt.NDArray[Any]) -> torch.Tensor:
        """Copy images to the device while it computes; return when they are there.

        Called from the thread that reads ahead, so the search of other images does not wait.
        """
        images = as_matrix(images, "images")
        if self._copies is None:
            return upload(images, self._device)
        kind = torch.from_numpy(np.empty(0, images.dtype)).dtype
        pinned = torch.empty(images.shape, dtype=kind, pin_memory=True)
        pinned.numpy()[:] = images
        with torch.cuda.stream(self._copies):
            there = pinned.to(self._device, non_blocking=True)
        self._copies.synchronize()
        return there

    @isolated
    def find(self, images: torch.Tensor) -> FoundTensors:
        """Search (n, d) staged images: similarities and ids (n, k), on the device."""
        if images.is_cuda:
            images.record_stream(torch.cuda.current_stream(self._device))
        return self.search.search_tensors(images)

    @isolated
    def join(self, pieces: Sequence[FoundTensors]) -> FoundTensors:
        """Put the results of successive images together."""
        similarities, ids = zip(*pieces, strict=True)
        return torch.cat(similarities), torch.cat(ids)

    @isolated
    def score(self, images: npt.NDArray[Any]) -> Scores:
        """Score (n, d) unit image embeddings of the host.

        Raises
        ------
        InvalidInputError
            A dimension differs, or rows hold NaN or infinity.
        """
        staged = self.stage(images)
        return self.combine(staged, *self.find(staged))

    @isolated
    def combine(
        self, images: torch.Tensor, similarities: torch.Tensor, ids: torch.Tensor
    ) -> Scores:
        """Score staged images whose search is done, and bring the scores to the host."""
        return self.combine_tensors(images, similarities, ids).to_arrays()

    @isolated
    def score_tensors(self, images: torch.Tensor) -> ScoreTensors:
        """Score (n, d) images on the device; the scores stay there."""
        return self.combine_tensors(images, *self.find(images))

    @isolated
    def combine_tensors(
        self, images: torch.Tensor, similarities: torch.Tensor, ids: torch.Tensor
    ) -> ScoreTensors:
        """Score images whose search is done; the scores stay on the device."""
        self.tables.require(ids)
        widest = max(images.shape[1], self._mu.shape[0])
        at_once = max(1, _IMAGE_ELEMENTS // widest)
        pieces = []
        for start in range(0, max(1, images.shape[0]), at_once):
            part = slice(start, start + at_once)
            inner = Internal(images[part].double() @ self._vectors, self._mu, self._sigma)
            pieces.append(
                self._engine.score_kernel(
                    similarities[part], ids[part], self.tables.scale, self.tables.shift,
                    inner, self.lam,
                )
            )  # fmt: skip
        anomaly, nearest, internal, external = (
            torch.cat(column) for column in zip(*pieces, strict=True)
        )
        return ScoreTensors(anomaly, nearest, internal, external, similarities, ids)

    @isolated
    def contributions(self, scores: Scores) -> npt.NDArray[np.float64]:
        """What each entry adds to the anomaly score: (n, k) float64, summing to lambda E."""
        ids = torch.from_numpy(scores.ids).to(self._device)
        nearest = torch.from_numpy(scores.nearest_class).to(self._device)[:, None]
        self.tables.require(ids)
        similarity = torch.from_numpy(scores.similarities).to(self._device).double()
        slope = self.tables.scale[ids, nearest].double()
        terms = similarity * slope - self.tables.shift[ids, nearest].double()
        return np.asarray((terms * (self.lam / ids.shape[1])).cpu().numpy())
