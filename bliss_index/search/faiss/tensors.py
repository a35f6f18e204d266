"""A FAISS index on a GPU, searched with torch tensors: nothing passes through the host.

The index proposes, in its own precision. A flat one is certified as
:mod:`bliss_index.search.faiss.search` derives: where the k-th best proposal, rescored in float64,
may lie below an entry that was not proposed, the query is searched in full. So its results are
those of float64 brute force. Approximate indexes are rescored and ordered in float64.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bliss_index.errors import InvalidInputError
from bliss_index.search.certificate.ordering import exact_dot
from bliss_index.search.device.backend import checked_tensor, upload
from bliss_index.search.device.base import DeviceEngine
from bliss_index.search.device.engine import choose_engine
from bliss_index.search.device.ordering import (
    Rescored,
    best_in_order,
    row_errors,
    search_in_full,
)
from bliss_index.search.faiss.candidates import row_norms
from bliss_index.search.faiss.kinds import INDEX_KINDS
from bliss_index.search.faiss.runtime import import_faiss
from bliss_index.search.faiss.search import FaissSearch
from bliss_index.search.inputs import require_tensor
from bliss_index.search.isolation import isolated
from bliss_index.search.protocol import SearchStatistics


class FaissTensorSearch:
    """Top-k of queries that are on the device already, by a FAISS index on it.

    Parameters
    ----------
    search
        A search placed on one GPU by :func:`bliss_index.search.faiss.gpu.place_index`, or on the
        CPU.
    engine
        Who rescores; by default what the device's search takes.

    Raises
    ------
    InvalidInputError
        The index is spread over several GPUs.
    """

    @isolated
    def __init__(self, search: FaissSearch, engine: DeviceEngine | None = None) -> None:
        if search.placement.device == "cuda:all":
            raise InvalidInputError(
                "an index over 'cuda:all' has no single device for tensors; place it on one GPU, "
                "such as 'cuda:0', or search arrays"
            )
        self._search = search
        self.device = torch.device(search.placement.device)
        self._engine = engine or choose_engine(self.device)
        self._entries = upload(search.vocabulary, self.device)
        self._longest = float(row_norms(search.vocabulary).max(initial=0.0))
        self._statistics = SearchStatistics()
        self._lock = threading.Lock()

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._search.dim

    @property
    def size(self) -> int:
        """Number of vocabulary entries."""
        return self._search.size

    @property
    def k(self) -> int:
        """Results per query."""
        return self._search.k

    @property
    def name(self) -> str:
        """The kind of index and its device."""
        return self._search.name

    @property
    def statistics(self) -> SearchStatistics:
        """Counters over all searches of tensors."""
        return self._statistics

    def search(
        self, queries: npt.ArrayLike, /
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Search arrays; see :meth:`bliss_index.search.faiss.search.FaissSearch.search`."""
        return self._search.search(queries)

    @isolated
    def search_tensors(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the k best entries of every query.

        Parameters
        ----------
        queries
            (n, d) floating-point tensor on the index's device.

        Returns
        -------
        similarities (n, k) float32 and ids (n, k) int64, tensors on the device.

        Raises
        ------
        InvalidInputError
            The tensor is elsewhere, its dimension is not the vocabulary's, or rows hold NaN or
            infinity.
        """
        require_tensor(queries, self.dim, self.device)
        queries = checked_tensor(queries)
        n, k = queries.shape[0], self.k
        kind = INDEX_KINDS[self._search.kind]
        count = min(self.size, k + kind.spare if kind.exact else 4 * k)
        wide = queries.double()
        exponent = torch.frexp(wide.abs().amax(1)).exponent
        scaled = torch.ldexp(wide, -exponent[:, None]).float().contiguous()
        scores, ids = self.propose(scaled, count)
        found = ids >= 0
        row, column = found.nonzero(as_tuple=True)
        value = self._engine.pair_products(queries, self._entries, row, ids[row, column])
        values = torch.full_like(scores, -torch.inf, dtype=torch.float64)
        values[row, column] = value
        error = row_errors(queries, self._entries, self._longest)
        enough = found.sum(1) >= k
        if kind.exact and count < self.size:
            norms = scaled.double().square().sum(1).sqrt() * (1 + 1e-9)
            bounds = self._search.error_bound(norms.cpu().numpy())
            limit = scores[:, -1].double() + torch.from_numpy(bounds).to(self.device)
            limit = torch.ldexp(limit, exponent)
            enough &= values.topk(k, dim=1).values[:, -1] - error > limit
        parts = [(row[enough[row]], ids[row, column][enough[row]], value[enough[row]])]
        pending = (~enough).nonzero()[:, 0]
        if pending.shape[0]:
            parts += search_in_full(self._entries, queries, pending, k, self._longest)
        rows, entries, products = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        row, order = rows.sort(stable=True)
        rescored = Rescored(row, entries[order], products[order], error)
        best, chosen, resolved = best_in_order(rescored, k, self._exact(queries))
        with self._lock:
            self._statistics += SearchStatistics(
                n, row.shape[0], row.shape[0], resolved, pending.shape[0]
            )
        return best.float(), chosen

    def propose(self, scaled: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Let faiss write its own ``count`` best straight into tensors.

        faiss.contrib.torch_utils would do so too, but replaces methods of all of faiss's classes
        by ones that take no parameters of a search.
        """
        faiss = import_faiss()
        n = scaled.shape[0]
        scores = torch.empty((n, count), dtype=torch.float32, device=self.device)
        ids = torch.empty((n, count), dtype=torch.int64, device=self.device)
        if self.device.type == "cuda":
            stream = torch.cuda.current_stream(self.device).cuda_stream
            for resources in self._search.placement.resources:
                resources.setDefaultStream(
                    self.device.index or 0, faiss.cast_integer_to_cudastream_t(stream)
                )
        with self._search.settings():
            self._search.index.search_c(
                n, faiss.cast_integer_to_float_ptr(scaled.data_ptr()), count,
                faiss.cast_integer_to_float_ptr(scores.data_ptr()),
                faiss.cast_integer_to_idx_t_ptr(ids.data_ptr()),
                self._search.parameters(),
            )  # fmt: skip
        return scores, ids

    def _exact(self, queries: torch.Tensor) -> Any:
        vocabulary = self._search.vocabulary
        return lambda row, entry: exact_dot(queries[row].cpu().numpy(), vocabulary[entry])
