"""Chooses the kernels of a search on a device: Hopper's, Triton's, or torch's own operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from bliss_index.search.device.base import DeviceEngine, Ranked
from bliss_index.search.device.codes import INT8, CodeFormat, EntryCodes
from bliss_index.search.device.internal import Internal
from bliss_index.search.device.ordering import Rescored, rank
from bliss_index.search.device.proposals import (
    Hits,
    Proposals,
    TorchProposals,
    block_size,
    pairs_of,
)

if TYPE_CHECKING:
    from bliss_index.search.hopper.engine import ProductShape

Rank = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]
_LEAST_CAPABILITY = (8, 0)
_HOPPER = (9, 0)
_MOST_BLOCKS = 16  # of a tile
_CANDIDATE_BYTES = 20  # place, bound, order and value
_PAIR_ELEMENTS = 1 << 24
_SCORE_ELEMENTS = 1 << 24


@dataclass(frozen=True, kw_only=True)
class ProposalEngine(DeviceEngine):
    """An engine whose candidates are found by one object, and ranked by one function.

    Attributes
    ----------
    proposals
        Finds candidates by products in low precision.
    rank
        Rescores and orders candidates; see :func:`torch_rank`.
    """

    proposals: Proposals
    rank: Rank

    @property
    def name(self) -> str:
        """See :class:`DeviceEngine`."""
        return self.proposals.name

    @property
    def tile(self) -> int:
        """See :class:`DeviceEngine`."""
        return self.proposals.tile

    @property
    def form(self) -> CodeFormat:
        """See :class:`DeviceEngine`."""
        return self.proposals.form

    def bytes_per_query(self, size: int, k: int) -> int:
        """See :class:`DeviceEngine`."""
        blocks = size // self._block(block_size(size, self.tile, k)) + 1
        listed = self.proposals.bytes_per_query(blocks, k, self.room(k))
        return listed + _CANDIDATE_BYTES * self.room(k)

    def widened(self, k: int) -> DeviceEngine | None:
        """See :class:`DeviceEngine`."""
        wider = super().widened(k)
        return wider if wider is not None and wider.room(k) > self.room(k) else None

    def _block(self, usual: int) -> int:
        """Entries of a block: few where many blocks hold two candidates, and count as a whole."""
        return usual if self.room_factor == 1 else min(usual, self.tile // _MOST_BLOCKS)

    def search(
        self, queries: torch.Tensor, entries: torch.Tensor, codes: EntryCodes, k: int
    ) -> Ranked:
        """See :class:`DeviceEngine`."""
        prepared = self.prepare(codes, queries)
        codes = codes.in_blocks(self._block(codes.block))
        capacity = self.room(k)
        hits = self.proposals.find(prepared, codes, k, capacity)
        left = ((hits.count > capacity) | prepared.extreme) & ~prepared.zero
        chosen = ~(left | prepared.zero)
        values, ids, doubtful, each = self.rank(
            queries, entries, codes, hits, chosen, prepared.error, k
        )
        zero = prepared.zero[:, None]
        values = torch.where(zero, 0.0, values)
        ids = torch.where(zero, torch.arange(k, device=ids.device), ids)
        tallies = torch.stack([hits.count, each.to(hits.count.dtype)])
        tallies = torch.where(chosen & ~doubtful, tallies, 0).sum(1)
        return Ranked(values, ids, left | doubtful, tallies)


def choose_engine(
    device: torch.device, dim: int | None = None, form: CodeFormat = INT8
) -> DeviceEngine:
    """Return the fastest kernels that run on this device, and why it is not faster ones.

    Parameters
    ----------
    device
        Where to search.
    dim
        Length of the vectors to search for; None where nothing is searched.
    form
        Numbers of the products that propose candidates.
    """
    reason = why_no_triton(device)
    if not reason and dim is not None:
        from bliss_index.search.triton.proposals import why_too_long

        reason = why_too_long(dim, form, device)
    if reason:
        return torch_engine(reason, form)
    capability = torch.cuda.get_device_capability(device)
    if capability != _HOPPER:
        reason = f"not yet run on compute capability {capability[0]}.{capability[1]}"
    elif dim is not None:
        from bliss_index.search.hopper.engine import why_no_hopper

        reason = why_no_hopper(dim, form)
        if not reason:
            return hopper_engine()
    from bliss_index.search.triton.proposals import TritonProposals

    return triton_engine(TritonProposals(form=form), reason)


def why_no_triton(device: torch.device) -> str:
    """Say why Triton's kernels do not run on a device; empty where they do."""
    if device.type != "cuda":
        return "Triton's kernels are for CUDA"
    if find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    return ""


def hopper_engine(shape: ProductShape | None = None) -> DeviceEngine:
    """CUDA kernels for Hopper, and Triton's around them."""
    from bliss_index.search.hopper.engine import HopperEngine
    from bliss_index.search.triton import engine as kernels

    return HopperEngine(
        prepare=kernels.prepare,
        pair_products=kernels.pair_products,
        score_kernel=kernels.score_kernel,
        shape=shape,
    )


def triton_engine(proposals: Proposals, reason: str = "") -> ProposalEngine:
    """Triton's kernels around products of theirs."""
    from bliss_index.search.triton import engine as kernels

    return ProposalEngine(
        prepare=kernels.prepare,
        proposals=proposals,
        rank=kernels.rank,
        pair_products=kernels.pair_products,
        score_kernel=kernels.score_kernel,
        reason=reason,
    )


def torch_engine(reason: str = "", form: CodeFormat = INT8) -> ProposalEngine:
    """Torch's own operations."""
    return ProposalEngine(
        prepare=EntryCodes.prepare,
        proposals=TorchProposals(form),
        rank=torch_rank,
        pair_products=torch_pair_products,
        score_kernel=torch_score_kernel,
        reason=reason,
    )


def torch_rank(
    queries: torch.Tensor,
    entries: torch.Tensor,
    codes: EntryCodes,
    hits: Hits,
    chosen: torch.Tensor,
    error: torch.Tensor,
    k: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rescore candidates in float64 and order the k best, as far as float64 decides.

    Parameters
    ----------
    queries, entries, codes
        (n, d), (W, d), and the codes of the latter.
    hits
        Candidates.
    chosen
        (n,) bool, queries whose candidates are all there; others get no results.
    error
        (n,) float64, bound of the error of a query's float64 sums.
    k
        Results per query.

    Returns
    -------
    values (n, k) float64, ids (n, k) int64, (n,) bool: chosen queries that are for the host, and
    (n,) int32: how many candidates were rescored.
    """
    row, entry = pairs_of(hits, codes, chosen)
    value = torch_pair_products(queries, entries, row, entry)
    values, ids, doubtful = rank(Rescored(row, entry, value, error), k, hits.places.shape[1])
    return values, ids, doubtful, hits.count


def torch_pair_products(
    queries: torch.Tensor, entries: torch.Tensor, row: torch.Tensor, entry: torch.Tensor
) -> torch.Tensor:
    """Inner products (P,) float64 of pairs of rows of queries (n, d) and of entries (W, d)."""
    values = torch.empty(row.shape[0], dtype=torch.float64, device=row.device)
    at_once = max(1, _PAIR_ELEMENTS // queries.shape[1])
    for start in range(0, row.shape[0], at_once):
        part = slice(start, start + at_once)
        left, right = queries[row[part]].double(), entries[entry[part]].double()
        values[part] = (left * right).sum(1)
    return values


def torch_score_kernel(
    similarities: torch.Tensor,
    ids: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    internal: Internal,
    lam: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum the normalised similarities of every class and find the class of the smallest total.

    Parameters
    ----------
    similarities, ids
        (n, k) float32 and int64 of the search.
    scale, shift
        (W, C) float32 tables; an entry adds similarity * scale - shift.
    internal
        What the internal scores (n, C) are made of.
    lam
        Weight of the mean over the entries.

    Returns
    -------
    Anomaly scores (n,) float64, nearest classes (n,) int64, of equal ones the first, and their
    internal and external scores (n,).
    """
    n, k = ids.shape
    pieces = []
    for start in range(0, n, max(1, _SCORE_ELEMENTS // scale.shape[1])):
        part = slice(start, start + max(1, _SCORE_ELEMENTS // scale.shape[1]))
        inner = internal.scores(part)
        total = torch.zeros_like(inner)
        for j in range(k):
            slope, offset = scale[ids[part, j]].double(), shift[ids[part, j]].double()
            total += similarities[part, j].double()[:, None] * slope - offset
        outer = total / total.new_tensor(k)  # by a number, a GPU multiplies with its reciprocal
        score = inner + lam * outer
        nearest = score.argmin(1, keepdim=True)
        pieces.append(
            tuple(column.gather(1, nearest)[:, 0] for column in (score, inner, outer))
            + (nearest[:, 0],)
        )
    if not pieces:
        nothing = internal.products[:, 0]
        return nothing, ids[:, 0], nothing, nothing
    anomaly, inner, outer, winner = (torch.cat(column) for column in zip(*pieces, strict=True))
    return anomaly, winner, inner, outer
