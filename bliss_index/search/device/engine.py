"""Who multiplies on a device: Triton's kernels where they run, torch's own products elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from bliss_index.search.device.codes import INT8, CodeFormat, EntryCodes, QueryCodes
from bliss_index.search.device.ordering import Rescored, rank
from bliss_index.search.device.proposals import Hits, Proposals, TorchProposals, pairs_of

Prepare = Callable[[EntryCodes, torch.Tensor], QueryCodes]
PairProducts = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Rank = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]
Tail = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]
_LEAST_CAPABILITY = (8, 0)
_PAIR_ELEMENTS = 1 << 24
_TAIL_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class DeviceEngine:
    """The steps that have kernels of their own.

    Attributes
    ----------
    prepare
        Makes queries ready: :meth:`EntryCodes.prepare`.
    proposals
        Finds candidates by products in low precision.
    rank
        Rescores and orders candidates; see :func:`torch_rank`.
    pair_products
        Inner products (P,) float64 of rows of queries (n, d) and of entries (W, d).
    score_tail
        From what a search found to anomaly scores; see :func:`torch_score_tail`.
    reason
        Why it is this one; empty where nothing needs to be said.
    """

    prepare: Prepare
    proposals: Proposals
    rank: Rank
    pair_products: PairProducts
    score_tail: Tail
    reason: str = ""

    def describe(self, device: torch.device) -> str:
        """Say in a few words what runs where."""
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.proposals.name} on {where} ({device}), torch {torch.__version__}{why}"


def choose_engine(
    device: torch.device, dim: int | None = None, form: CodeFormat = INT8
) -> DeviceEngine:
    """Return Triton's kernels if they run on this device, else torch's products and the reason.

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
        from bliss_index.search.device.triton_proposals import why_too_long

        reason = why_too_long(dim, form, device)
    if reason:
        return torch_engine(reason, form)
    from bliss_index.search.device.triton_proposals import TritonProposals

    return triton_engine(TritonProposals(form=form))


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


def triton_engine(proposals: Proposals) -> DeviceEngine:
    """Triton's kernels around products of theirs."""
    from bliss_index.search.device import triton_engine as kernels

    return DeviceEngine(
        kernels.prepare,
        proposals,
        kernels.rank,
        kernels.pair_products,
        kernels.score_tail,
    )


def torch_engine(reason: str = "", form: CodeFormat = INT8) -> DeviceEngine:
    """Torch's own operations."""
    return DeviceEngine(
        EntryCodes.prepare,
        TorchProposals(form),
        torch_rank,
        torch_pair_products,
        torch_score_tail,
        reason,
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
    values, ids, doubtful = rank(Rescored(row, entry, value, error), k)
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


def torch_score_tail(
    similarities: torch.Tensor,
    ids: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    internal: torch.Tensor,
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
        (n, C) float64 internal scores.
    lam
        Weight of the mean over the entries.

    Returns
    -------
    Anomaly scores (n,) float64, nearest classes (n,) int64, of equal ones the first, and their
    internal and external scores (n,).
    """
    n, k = ids.shape
    pieces = []
    for start in range(0, n, max(1, _TAIL_ELEMENTS // scale.shape[1])):
        part = slice(start, start + max(1, _TAIL_ELEMENTS // scale.shape[1]))
        total = torch.zeros_like(internal[part])
        for j in range(k):
            slope, offset = scale[ids[part, j]].double(), shift[ids[part, j]].double()
            total += similarities[part, j].double()[:, None] * slope - offset
        outer = total / k
        score = internal[part] + lam * outer
        nearest = score.argmin(1, keepdim=True)
        pieces.append(
            tuple(
                column.gather(1, nearest)[:, 0] for column in (score, internal[part], outer)
            ) + (nearest[:, 0],)
        )  # fmt: skip
    if not pieces:
        nothing = internal[:, 0]
        return nothing, ids[:, 0], nothing, nothing
    anomaly, inner, outer, winner = (torch.cat(column) for column in zip(*pieces, strict=True))
    return anomaly, winner, inner, outer
