"""Candidates by Triton's kernels: products whose scores never leave the multiprocessor."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from bliss_index.errors import InvalidInputError
from bliss_index.search.device.codes import INT8, CodeFormat, EntryCodes, QueryCodes, padded_dim
from bliss_index.search.device.proposals import Hits, group_count
from bliss_index.search.triton import block_kernels as kernels
from bliss_index.search.triton.launch import device_of, fewest_parts, processors_of

TILE = 128
_MOST_DIM = 32768  # sums of int8 products are exact and do not overflow
_HALVINGS = 30
_LANES = 4
_SAMPLE_PER_RESULT = 8
_LEAST_SAMPLE = 256
_LEAST_ROOM = 128
_PROGRAMS_PER_PROCESSOR = 2
_MOST_SECTIONS = 8
_BLOCK_BYTES = 8
_RECORD_BYTES = 12
_BYTES_PER_QUERY = 36  # of shared memory, in which the compiler rearranges block maxima
_RESERVED = 1024  # of shared memory, by the driver for every program


@dataclass(frozen=True)
class TileShape:
    """How the product is cut up; changes speed, never results.

    Attributes
    ----------
    queries
        Queries of a program, whose codes stay in shared memory: a power of two from 16.
    entries
        Entries that stream by at once: a power of two from 16 to 128.
    warps
        Of a program.
    stages
        Tiles of entries on their way.
    """

    queries: int = 128
    entries: int = 32
    warps: int = 8
    stages: int = 2

    def __post_init__(self) -> None:
        for name, most in (("queries", 1024), ("entries", TILE)):
            value = getattr(self, name)
            if not 16 <= value <= most or value & (value - 1):
                raise InvalidInputError(
                    f"{name} must be a power of two from 16 to {most}, got {value}"
                )

    def shared_bytes(self, code_bytes: int) -> int:
        """Shared memory of a program, for codes of so many bytes."""
        streaming = self.stages * self.entries
        return (
            (self.queries + streaming) * code_bytes
            + 4 * streaming
            + _BYTES_PER_QUERY * self.queries
        )


def fitting_shape(code_bytes: int, shared: int) -> TileShape | None:
    """Return a large shape that fits into so much shared memory, or None if none does.

    Two programs a multiprocessor are preferred: one multiplies while the other looks at its scores.
    """
    shapes = [TileShape(stages=3), TileShape()]
    for queries in (64, 32, 16):
        shapes += [TileShape(queries, 32, 4, stages) for stages in (3, 2)]
    shapes.append(TileShape(16, 16, 4, 2))
    needs = [(shape, shape.shared_bytes(code_bytes)) for shape in shapes]
    for shape, needed in needs[:2]:
        if 2 * (needed + _RESERVED) <= shared + _RESERVED:
            return shape
    return next((shape for shape, needed in needs if needed <= shared), None)


def shared_memory(device: torch.device) -> int:
    """Shared memory of a program on a device, in bytes."""
    if device.type != "cuda":
        return 1 << 30
    facts = torch.cuda.get_device_properties(device)
    return int(getattr(facts, "shared_memory_per_block_optin", 99 << 10))


class TritonProposals:
    """Block maxima of a sample give a threshold; of all other blocks only those that reach it stay.

    Parameters
    ----------
    shape
        How to cut the product; by default as large as the device has shared memory for.
    form
        Numbers to multiply.
    """

    tile = TILE

    def __init__(self, shape: TileShape | None = None, form: CodeFormat = INT8) -> None:
        self.shape = shape
        self.form = form
        self.name = f"triton {form.name}"

    def bytes_per_query(self, blocks: int, k: int, capacity: int) -> int:
        """See :class:`bliss_index.search.device.proposals.Proposals`."""
        sample = _sample(blocks, k, 1)
        return _BLOCK_BYTES * sample + 2 * _RECORD_BYTES * _room(blocks, sample, k, 1, capacity)

    def find(self, queries: QueryCodes, entries: EntryCodes, k: int, capacity: int) -> Hits:
        """See :class:`bliss_index.search.device.proposals.Proposals`."""
        n = queries.codes.shape[0]
        count = torch.empty(n, dtype=torch.int32, device=entries.device)
        places = torch.empty((n, capacity), dtype=torch.int32, device=entries.device)
        uppers = torch.empty((n, capacity), dtype=torch.float32, device=entries.device)
        hits = Hits(count, places, uppers, queries.unit)
        if n == 0:
            return hits
        in_tile = TILE // entries.block
        blocks = entries.codes.shape[0] // entries.block
        sample = _sample(blocks, k, in_tile)
        shape = self._shape(entries)
        tiles = -(-n // shape.queries)
        sections, share = _sections(
            tiles, blocks - sample, in_tile, _programs_at_once(entries.device)
        )
        room = _room(blocks, sample, k, sections, capacity)
        segments = 1 + sections
        threshold = torch.empty(n, dtype=torch.float32, device=entries.device)
        listed = torch.empty((n, segments), dtype=torch.int32, device=entries.device)
        found = torch.empty((n, segments, room), dtype=torch.int32, device=entries.device)
        pairs = torch.empty((n, segments, room), dtype=torch.int64, device=entries.device)
        bounds = (
            queries.per_norm, queries.per_residual, queries.slack,
            entries.tile_step, entries.tile_norm, entries.tile_residual,
        )  # fmt: skip
        groups = group_count(k)
        settings = {
            "SIZE": entries.block, "IN_TILE": in_tile, "GROUPS": groups, "HALVINGS": _HALVINGS,
            "num_warps": min(8, max(1, groups // 256)),
        }  # fmt: skip
        with device_of(found):
            best = self.block_best(queries, entries, sample)
            kernels.sieve_kernel[(n,)](
                best, *bounds, threshold, listed, found, pairs, sample, k, segments, room,
                **settings,
            )  # fmt: skip
            if sections:
                kernels.block_hits_kernel[(tiles * sections,)](
                    queries.codes, queries.alpha, entries.codes, entries.lift, threshold, *bounds,
                    listed, found, pairs,
                    n, entries.size, sample, blocks, tiles, share, segments, room,
                    TILE=TILE, **_constants(shape, entries),
                )  # fmt: skip
            kernels.select_kernel[(n,)](
                *bounds, threshold, listed, found, pairs, count, places, uppers, k, segments, room,
                capacity, **settings,
            )  # fmt: skip
        return hits

    def block_best(
        self, queries: QueryCodes, entries: EntryCodes, blocks: int | None = None
    ) -> torch.Tensor:
        """Keys of the best two entries of the first blocks, (n, blocks) int64; see the kernel."""
        shape = self._shape(entries)
        n = queries.codes.shape[0]
        in_tile = TILE // entries.block
        blocks = blocks or entries.codes.shape[0] // entries.block
        best = torch.empty((n, blocks), dtype=torch.int64, device=entries.device)
        tiles = -(-n // shape.queries)
        if n:
            sections, share = _sections(tiles, blocks, in_tile, _programs_at_once(entries.device))
            with device_of(best):
                kernels.block_best_kernel[(tiles * sections,)](
                    queries.codes, queries.alpha, entries.codes, entries.lift, best,
                    n, entries.size, blocks, tiles, share, **_constants(shape, entries),
                )  # fmt: skip
        return best

    def _shape(self, entries: EntryCodes) -> TileShape:
        code_bytes = entries.codes.shape[1] * entries.codes.element_size()
        shape = self.shape or fitting_shape(code_bytes, shared_memory(entries.device))
        if shape is None or entries.codes.shape[1] > _MOST_DIM:
            raise InvalidInputError(
                f"codes of {code_bytes} bytes are too long for this GPU's shared memory of "
                f"{shared_memory(entries.device)} bytes; search with backend='torch'"
            )
        return replace(shape, entries=min(shape.entries, _LANES * entries.block))


def why_too_long(dim: int, form: CodeFormat, device: torch.device) -> str:
    """Say why vectors of this dimension cannot be searched; empty where they can."""
    code_bytes = form.bytes_of(dim)
    shared = shared_memory(device)
    if padded_dim(dim) > _MOST_DIM or fitting_shape(code_bytes, shared) is None:
        return f"codes of {code_bytes} bytes do not fit into {shared} bytes of shared memory"
    return ""


def _constants(shape: TileShape, entries: EntryCodes) -> dict[str, Any]:
    dim = entries.codes.shape[1]
    return {
        "DIM": dim, "BM": shape.queries, "BN": shape.entries, "BK": dim & -dim,
        "SIZE": entries.block, "FOLDS": (shape.entries // 8).bit_length() - 1,
        "WIDEN": entries.form != INT8 and not entries.codes.is_cuda,
        "STAGES": shape.stages, "num_warps": shape.warps,
    }  # fmt: skip


def _programs_at_once(device: torch.device) -> int:
    """How many programs of the product a device runs beside each other, about."""
    return _PROGRAMS_PER_PROCESSOR * processors_of(device)


def _sections(tiles: int, blocks: int, in_tile: int, at_once: int) -> tuple[int, int]:
    """Into how many parts to cut so many blocks for tiles of queries, and the blocks of a part.

    As few as occupy the device, for each writes a list of its own.
    """
    if blocks == 0:
        return 0, 0
    parts = fewest_parts(tiles, max(_MOST_SECTIONS, at_once // tiles), at_once)
    share = -(-blocks // parts)
    share = -(-share // in_tile) * in_tile
    return -(-blocks // share), share


def _spread(k: int) -> float:
    """How many times the expected number of blocks may be listed for a query.

    The threshold is a lower bound, and the k-th best of a sample varies, less so for larger k. The
    tests hold this to CLIP-like data; a list that has too little room costs time, no results.
    """
    return 3.0 + 30.0 / math.sqrt(k)


def _sample(blocks: int, k: int, in_tile: int) -> int:
    """How many of the first blocks give the threshold: all, where most would have to.

    So many that their maxima take about as much memory as the list of the others.
    """
    balanced = math.sqrt(_RECORD_BYTES / _BLOCK_BYTES * blocks * k * _spread(k))
    wanted = max(int(balanced), _SAMPLE_PER_RESULT * k, _LEAST_SAMPLE)
    wanted = -(-wanted // in_tile) * in_tile
    return blocks if 2 * wanted > blocks else wanted


def _room(blocks: int, sample: int, k: int, sections: int, capacity: int) -> int:
    """How many blocks each list of a query has room for: also the list of the sample itself.

    Half the candidates at least, of which a block may hold several.
    """
    spread = _spread(k) * k
    expected = int(max(spread, spread * blocks / sample / max(1, sections)))
    return max(_LEAST_ROOM + expected, capacity // 2)
