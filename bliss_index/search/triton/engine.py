"""Launches the Triton kernels around the product, each on the GPU where its arrays are."""

from __future__ import annotations

import torch
import triton

from bliss_index.search.device.codes import EntryCodes, QueryCodes
from bliss_index.search.device.internal import Internal
from bliss_index.search.device.proposals import Hits
from bliss_index.search.triton import kernels
from bliss_index.search.triton.launch import device_of

_PAIRS = 16
_RANKED = 8
_HALVINGS = 16
_CHUNK = 128
_MOST_CLASSES = 1024
_PREPARED = 4096  # coordinates of a program
_ALIGNED = 64


def prepare(entries: EntryCodes, queries: torch.Tensor) -> QueryCodes:
    """Make queries ready; see :meth:`EntryCodes.prepare`."""
    if queries.dtype not in (torch.float16, torch.float32):
        return entries.prepare(queries)
    n, dim = queries.shape
    codes = torch.empty((n, entries.code_dim), dtype=entries.form.dtype, device=queries.device)
    # Rows of a multiple of 16 bytes, or each number of queries would have kernels of its own.
    rows = -(-n // _ALIGNED) * _ALIGNED
    alpha, per_norm, per_residual, slack = torch.empty(
        (4, rows), dtype=torch.float32, device=queries.device
    )[:, :n]
    unit, error = torch.empty((2, rows), dtype=torch.float64, device=queries.device)[:, :n]
    zero, extreme = torch.empty((2, rows), dtype=torch.bool, device=queries.device)[:, :n]
    width = triton.next_power_of_2(entries.code_dim)
    at_once = max(1, _PREPARED // width)
    facts, limits = entries.facts_for(queries.dtype)
    if n:
        with device_of(codes):
            kernels.prepare_kernel[(-(-n // at_once),)](
                queries.contiguous(), entries.centre, entries.rotation.signs, facts, limits,
                codes, alpha, per_norm, per_residual, slack, unit, error, zero, extreme, n, dim,
                CODE_DIM=entries.code_dim, DIM=width, BM=at_once,
                STAGES=entries.rotation.block.bit_length() - 1,
            )  # fmt: skip
    return QueryCodes(codes, alpha, per_norm, per_residual, slack, unit, error, zero, extreme)


def rank(
    queries: torch.Tensor,
    entries: torch.Tensor,
    codes: EntryCodes,
    hits: Hits,
    chosen: torch.Tensor,
    error: torch.Tensor,
    k: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rescore and order; see :func:`bliss_index.search.device.engine.torch_rank`."""
    n, capacity = hits.places.shape
    order = torch.empty((n, capacity), dtype=torch.int32, device=queries.device)
    scratch = torch.empty((n, capacity), dtype=torch.float64, device=queries.device)
    values = torch.empty((n, k), dtype=torch.float64, device=queries.device)
    ids = torch.empty((n, k), dtype=torch.int64, device=queries.device)
    doubtful = torch.empty(n, dtype=torch.bool, device=queries.device)
    rescored = torch.empty(n, dtype=torch.int32, device=queries.device)
    width = triton.next_power_of_2(capacity)
    if n:
        with device_of(queries):
            kernels.rank_kernel[(n,)](
                queries.contiguous(), entries.contiguous(), hits.count, hits.places, hits.uppers,
                hits.unit, codes.mean, codes.ids, error, order, scratch, values, ids, doubtful,
                rescored, queries.shape[1], k, capacity, codes.size,
                WIDTH=width, PAIRS=_RANKED, CHUNK=_CHUNK, HALVINGS=_HALVINGS,
                num_warps=min(8, max(1, width // 256)),
            )  # fmt: skip
    return values, ids, doubtful & chosen, rescored


def pair_products(
    queries: torch.Tensor, entries: torch.Tensor, row: torch.Tensor, entry: torch.Tensor
) -> torch.Tensor:
    """Inner products (P,) float64 of pairs: rows of (n, d) queries and of (W, d) entries."""
    values = torch.empty(row.shape[0], dtype=torch.float64, device=row.device)
    if row.shape[0]:
        with device_of(queries):
            kernels.pairs_kernel[(-(-row.shape[0] // _PAIRS),)](
                queries.contiguous(), entries.contiguous(), row.contiguous(), entry.contiguous(),
                values, row.shape[0], queries.shape[1],
                PAIRS=_PAIRS, CHUNK=_CHUNK,
            )  # fmt: skip
    return values


def score_kernel(
    similarities: torch.Tensor,
    ids: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    internal: Internal,
    lam: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the class of the smallest total; as ``torch_score_kernel`` of the engine.

    Returns
    -------
    Anomaly scores (n,) float64, nearest classes (n,) int64, their internal and external scores.
    """
    n, k = ids.shape
    classes = scale.shape[1]
    anomaly, inner, outer = (torch.empty_like(internal.products[:, 0]) for _ in range(3))
    nearest = torch.empty(n, dtype=torch.int64, device=ids.device)
    width = min(_MOST_CLASSES, triton.next_power_of_2(classes))
    rows = _MOST_CLASSES // width
    if n:
        with device_of(ids):
            kernels.score_kernel[(-(-n // rows),)](
                similarities.contiguous(), ids.contiguous(), scale.contiguous(), shift.contiguous(),
                internal.products.contiguous(), internal.mu, internal.sigma,
                internal.mu.new_tensor([lam, k]), anomaly, nearest, inner, outer, n, k, classes,
                BM=rows, CLASSES=width, enable_fp_fusion=False,
            )  # fmt: skip
    return anomaly, nearest, inner, outer
