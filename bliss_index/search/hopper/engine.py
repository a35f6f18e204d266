"""Exact top-k on Hopper: shapes of the product, and the steps of a search by the kernels there.

A sample of the entries gives every query a threshold that its k-th best entry certainly reaches;
the product of all entries then lists those that can reach it; these raise the threshold, and what
is left is rescored in float64. Scores never leave a multiprocessor, unless they are listed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from bliss_index.search.device.base import DeviceEngine, Ranked
from bliss_index.search.device.codes import INT8, CodeFormat, EntryCodes, padded_dim
from bliss_index.search.hopper import launch as hopper_launch
from bliss_index.search.triton.launch import device_of, fewest_parts, processors_of

UNIT_TILE = 128
_CHUNK = 128  # coordinates whose codes are side by side in shared memory
_CHUNK_BYTES = 64 * _CHUNK
_SHARED = 227 << 10  # bytes of a program's shared memory
_REGISTERS = {1: 240, 2: 240, 3: 168, 4: 128}  # of a thread, by warpgroups that multiply
_OTHER_REGISTERS = 32  # beside codes and sums
_KINDS = {torch.float16: 0, torch.float32: 1, torch.float64: 2}
_MOST_WARPS = 4
_WARP_SHARED = 48 << 10  # of programs whose warps work for themselves
_LEAST_CAPACITY = 256
_CAPACITY_PER_RESULT = 8
_MOST_ROOM = 8192  # of a list
_MOST_CAPACITY = 8192
_SAMPLE_PER_RESULT = 16
_LEAST_SAMPLE = 256
_MOST_SPLIT = 4
_SAMPLE_FACTOR = 400.0
_LEAST_ROOM = 24
_LISTS = 4  # of a query, in a part
_MOST_PARTS = 32
_RECORD_BYTES = 8


@dataclass(frozen=True)
class ProductShape:
    """How the product is cut up; changes speed, never results.

    Attributes
    ----------
    tile
        Entries that are multiplied at once: 64 or 128.
    groups
        Warpgroups that multiply, with 64 queries each.
    stages
        Tiles of entries on their way.
    shared_chunks
        Runs of 128 coordinates of the queries' codes in shared memory; the others are in registers.
    """

    tile: int
    groups: int
    stages: int
    shared_chunks: int = 0

    @property
    def queries(self) -> int:
        """Queries of a program."""
        return 64 * self.groups

    @property
    def threads(self) -> int:
        """Threads of a program."""
        return 128 * self.groups

    def registers(self, depth: int) -> int:
        """Registers that a thread needs, about, for codes of so many coordinates."""
        return self.tile // 2 + (depth - _CHUNK * self.shared_chunks) // 8 + _OTHER_REGISTERS

    def shared_bytes(self, depth: int) -> int:
        """Shared memory of a program."""
        stage = self.tile * depth + 4 * self.tile + 16 + 16
        queries = self.groups * self.shared_chunks * _CHUNK_BYTES
        return self.stages * stage + queries + 16 * self.queries + 1024

    def fits(self, depth: int) -> bool:
        """Whether codes of so many coordinates can be multiplied."""
        return (
            self.shared_chunks * _CHUNK <= depth
            and self.registers(depth) <= _REGISTERS[self.groups]
            and self.shared_bytes(depth) <= _SHARED
        )


# The more queries a program has, the fewer bytes of entries a multiplication needs.
_SHAPES = [
    ProductShape(tile, groups, stages, chunks)
    for tile, groups, stages in ((128, 3, 3), (128, 2, 3), (128, 2, 2), (64, 3, 4), (64, 2, 3),
                                 (64, 2, 2))
    for chunks in range(3)
]  # fmt: skip


def depth_of(dim: int) -> int:
    """Coordinates of a product for vectors of this length."""
    return -(-padded_dim(dim) // _CHUNK) * _CHUNK


def fitting_shape(depth: int) -> ProductShape | None:
    """Return the preferred shape for codes of so many coordinates, or None if none fits."""
    return next((shape for shape in _SHAPES if shape.fits(depth)), None)


def why_no_hopper(dim: int, form: CodeFormat) -> str:
    """Say why these kernels do not search on a Hopper GPU; empty where they do."""
    if form != INT8:
        return f"Hopper's kernels multiply int8, not {form.name}"
    if fitting_shape(depth_of(dim)) is None:
        return f"{dim} coordinates are too many for Hopper's kernels"
    return hopper_launch.find_compiler()[1]


def arranged(codes: torch.Tensor, tile: int) -> torch.Tensor:
    """Put codes (rows, D) of entries as the tensor cores read them from shared memory.

    Returns
    -------
    (rows / tile, depth / 128, tile, 128): in every row of 128 bytes, the eight sixteens have the
    places of their number exclusive-or that of the row.
    """
    rows, dim = codes.shape
    depth = -(-dim // _CHUNK) * _CHUNK
    padded = torch.zeros((rows, depth), dtype=codes.dtype, device=codes.device)
    padded[:, :dim] = codes
    tiles = padded.view(rows // tile, tile // 8, 8, depth // _CHUNK, 8, 16)
    turned = torch.empty(
        (rows // tile, depth // _CHUNK, tile // 8, 8, 8, 16), dtype=codes.dtype, device=codes.device
    )
    for row in range(8):
        places = [sixteen ^ row for sixteen in range(8)]
        turned[:, :, :, row] = tiles[:, :, row][:, :, :, places].transpose(1, 2)
    return turned.view(rows // tile, depth // _CHUNK, tile, _CHUNK)


@dataclass(frozen=True)
class SearchPlan:
    """How one batch is searched: sizes of the sample, of the parts and of the lists.

    Attributes
    ----------
    row_tiles
        Programs that a batch of queries needs.
    split
        Blocks of the sample's maxima that a thread's part of a tile is cut into.
    sample, sample_share
        Tiles of the sample, and of them, of a program.
    parts, share
        Parts of the entries, each with four lists of its own for every query, and tiles of a part.
    room
        Records of a list.
    expected
        Records of a query, rather more than less.
    """

    row_tiles: int
    split: int
    sample: int
    sample_share: int
    parts: int
    share: int
    room: int
    expected: int


def plan_search(n: int, size: int, k: int, shape: ProductShape, at_once: int) -> SearchPlan:
    """Plan a search of n queries among so many entries, with so many programs running at once."""
    row_tiles = -(-n // shape.queries)
    tiles = -(-size // UNIT_TILE) * (UNIT_TILE // shape.tile)
    wanted = max(_SAMPLE_PER_RESULT * k, _LEAST_SAMPLE)  # blocks
    sample = math.ceil(tiles * math.sqrt(_SAMPLE_FACTOR * k / size))
    # Smaller blocks only where there would be too few: they take time.
    split = next((s for s in (1, 2) if sample * _LISTS * s >= wanted), _MOST_SPLIT)
    sample = min(tiles, max(sample, -(-wanted // (_LISTS * split))))
    sample_share = -(-sample // _parts(row_tiles, sample, at_once))
    share = -(-tiles // _parts(row_tiles, tiles, at_once))
    parts = -(-tiles // share)
    expected = int((3.0 + 30.0 / math.sqrt(k)) * k * tiles / sample)
    room = _LEAST_ROOM + expected // (_LISTS * parts)
    return SearchPlan(row_tiles, split, sample, sample_share, parts, share, room, expected)


def _parts(row_tiles: int, tiles: int, at_once: int) -> int:
    """Into how many parts to cut so many tiles of entries: as few as occupy the device."""
    return fewest_parts(row_tiles, min(tiles, _MOST_PARTS), at_once)


@dataclass(frozen=True, kw_only=True)
class HopperEngine(DeviceEngine):
    """Kernels of hopper.cu between the codes of a batch and its ranked results.

    Attributes
    ----------
    shape
        How to cut the product; by default by the length of the codes.
    """

    shape: ProductShape | None = None

    @property
    def name(self) -> str:
        """See :class:`DeviceEngine`."""
        return "hopper int8"

    @property
    def tile(self) -> int:
        """See :class:`DeviceEngine`."""
        return UNIT_TILE

    @property
    def form(self) -> CodeFormat:
        """See :class:`DeviceEngine`."""
        return INT8

    def shape_of(self, depth: int) -> ProductShape:
        """Shape for codes of so many coordinates."""
        shape = self.shape or fitting_shape(depth)
        if shape is None:
            raise ValueError(f"no shape for {depth} coordinates")
        return shape

    def arrange(self, codes: torch.Tensor) -> torch.Tensor:
        """See :class:`DeviceEngine`."""
        return arranged(codes, self.shape_of(-(-codes.shape[1] // _CHUNK) * _CHUNK).tile)

    def bytes_per_query(self, size: int, k: int) -> int:
        """See :class:`DeviceEngine`."""
        plan = plan_search(1 << 16, size, k, ProductShape(UNIT_TILE, 2, 2), 132)
        lower = 4 * _LISTS * plan.split * plan.sample
        listed = _RECORD_BYTES * _LISTS * plan.parts * self._listed(plan)
        return lower + listed + 16 * k + 64

    def _listed(self, plan: SearchPlan) -> int:
        """Records that a list has room for."""
        return max(plan.room, min(plan.room * self.room_factor, _MOST_ROOM))

    def search(
        self, queries: torch.Tensor, entries: torch.Tensor, codes: EntryCodes, k: int
    ) -> Ranked:
        """See :class:`DeviceEngine`."""
        n, device = queries.shape[0], queries.device
        prepared = self.prepare(codes, queries)
        depth = codes.codes.shape[1] * _CHUNK
        shape = self.shape_of(depth)
        plan = plan_search(n, codes.size, k, shape, processors_of(device))
        room = self._listed(plan)
        usual = self.capacity or max(_LEAST_CAPACITY, _CAPACITY_PER_RESULT * k, plan.expected // 4)
        capacity = self.grown(min(max(usual, 4 * k), _MOST_CAPACITY), k)
        module = hopper_launch.module_of(
            {
                "DIM": codes.dim, "CODE_DIM": codes.code_dim, "QUERY_KIND": _KINDS[queries.dtype],
                "ENTRY_KIND": _KINDS[entries.dtype], "TILE": shape.tile, "GROUPS": shape.groups,
                "STAGES": shape.stages, "SHARED_CHUNKS": shape.shared_chunks, "SPLIT": plan.split,
            },
            device,
        )  # fmt: skip
        blocks = plan.sample * _LISTS * plan.split
        lower = torch.empty((n, blocks), dtype=torch.float32, device=device)
        threshold = torch.empty(n, dtype=torch.float32, device=device)
        counts = torch.empty((n, plan.parts, _LISTS), dtype=torch.int32, device=device)
        found = torch.empty((n, plan.parts, _LISTS, room), dtype=torch.int64, device=device)
        values = torch.empty((n, k), dtype=torch.float64, device=device)
        ids = torch.empty((n, k), dtype=torch.int64, device=device)
        left = torch.empty(n, dtype=torch.bool, device=device)
        tallies = torch.empty((n, 2), dtype=torch.int32, device=device)
        product: list[Any] = [
            prepared.codes, prepared.alpha, prepared.per_norm, prepared.per_residual,
            prepared.slack, codes.codes, codes.lift, codes.facts,
        ]  # fmt: skip
        shared = shape.shared_bytes(depth)
        with device_of(queries):
            module.launch(
                "best_kernel", plan.row_tiles * -(-plan.sample // plan.sample_share),
                shape.threads, shared,
                [*product, lower, n, codes.size, plan.sample, plan.row_tiles, plan.sample_share],
            )  # fmt: skip
            warps = _warps(4 * blocks)
            module.launch(
                "threshold_kernel", -(-n // warps), 32 * warps, 4 * blocks * warps,
                [lower, threshold, n, blocks, k],
            )  # fmt: skip
            module.launch(
                "hits_kernel", plan.row_tiles * plan.parts, shape.threads, shared,
                [*product, threshold, counts, found, n, codes.size, codes.codes.shape[0],
                 plan.row_tiles, plan.share, plan.parts, room],
            )  # fmt: skip
            warps = _warps(16 * capacity)
            module.launch(
                "rank_kernel", -(-n // warps), 32 * warps, 16 * capacity * warps,
                [queries, entries, codes.ids, codes.facts, codes.mean, threshold,
                 prepared.per_norm, prepared.per_residual, prepared.slack, prepared.unit,
                 prepared.error, prepared.zero, prepared.extreme, counts, found, values, ids, left,
                 tallies, n, k, plan.parts, room, capacity],
            )  # fmt: skip
        return Ranked(values, ids, left, tallies.sum(0))


def _warps(shared: int) -> int:
    """How many warps a program has that need so much shared memory each."""
    return max(1, min(_MOST_WARPS, _WARP_SHARED // shared))
