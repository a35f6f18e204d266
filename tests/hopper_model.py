"""What the kernels of hopper.cu compute, in torch: they take the same arguments in the same order.

Scores are integers of their own arithmetic, lists hold entries in another order, and float64 sums
are torch's; bounds, thresholds, counts and results are those of the kernels.
"""

from __future__ import annotations

from typing import Any

import torch

ZERO_KEY = 0x4B400000
NOTHING = -(2**31)
UNIT_TILE = 128


class HopperModel:
    """Stands for :class:`bliss_index.search.hopper.launch.Module`.

    Attributes
    ----------
    launched
        Names of the kernels, with programs, threads and bytes of shared memory of each.
    """

    def __init__(self, macros: dict[str, int]) -> None:
        self.macros = macros
        self.launched: list[tuple[str, int, int, int]] = []

    def launch(
        self, name: str, programs: int, threads: int, shared: int, arguments: list[Any]
    ) -> None:
        for value in arguments:
            assert not isinstance(value, torch.Tensor) or value.is_contiguous()
        self.launched.append((name, programs, threads, shared))
        getattr(self, f"_{name}")(programs, *arguments)

    def _keys(
        self, query_codes: torch.Tensor, alpha: torch.Tensor, codes: Any, lifts: Any, tiles: int
    ) -> torch.Tensor:
        """Scores (n, entries) of some tiles, as the integers that the kernels compare."""
        tile = self.macros["TILE"]
        plain = plain_codes(codes[:tiles])[:, : query_codes.shape[1]]
        products = query_codes.double() @ plain.double().T
        lifted = alpha[:, None].double() * lifts[: tiles * tile].double()
        return ZERO_KEY + (products + lifted.round()).long()

    def _best_kernel(
        self, programs: int, query_codes: Any, alpha: Any, per_norm: Any, per_residual: Any,
        slack: Any, codes: Any, lifts: Any, facts: Any, lower: Any, n: int, size: int, tiles: int,
        row_tiles: int, share: int,
    ) -> None:  # fmt: skip
        tile, split = self.macros["TILE"], self.macros["SPLIT"]
        assert programs == row_tiles * -(-tiles // share)
        assert row_tiles * 64 * self.macros["GROUPS"] >= n
        assert lower.shape == (n, tiles * 4 * split)
        keys = self._keys(query_codes, alpha, codes, lifts, tiles)
        keys[:, max(0, size) :] = NOTHING
        # A thread holds every fourth pair of columns, and cuts them into `split` runs.
        blocks = keys.view(n, tiles, split, tile // 8 // split, 4, 2).permute(0, 1, 4, 2, 3, 5)
        most = blocks.reshape(n, tiles * 4 * split, -1).amax(2)
        step, bound = self._bounds(facts, per_norm, per_residual, slack, tiles)
        wide = step.repeat_interleave(4 * split), bound.repeat_interleave(4 * split, 1)
        found = (most - ZERO_KEY - 2) * wide[0] - wide[1]
        lower.copy_(torch.where(most == NOTHING, -torch.inf, found))

    def _bounds(
        self, facts: Any, per_norm: Any, per_residual: Any, slack: Any, tiles: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit (tiles,) and bound (n, tiles) of the scores of every tile."""
        each = facts.repeat_interleave(UNIT_TILE // self.macros["TILE"], 0)[:tiles].double()
        bound = per_norm[:, None].double() * each[:, 1] + per_residual[:, None] * each[:, 2]
        return each[:, 0], bound + 4 * slack[:, None]

    def _threshold_kernel(
        self, programs: int, lower: Any, threshold: Any, n: int, blocks: int, k: int
    ) -> None:
        assert lower.shape == (n, blocks)
        threshold.copy_(lower.topk(k, dim=1).values[:, -1])

    def _hits_kernel(
        self, programs: int, query_codes: Any, alpha: Any, per_norm: Any, per_residual: Any,
        slack: Any, codes: Any, lifts: Any, facts: Any, threshold: Any, counts: Any, found: Any,
        n: int, size: int, tiles: int, row_tiles: int, share: int, parts: int, room: int,
    ) -> None:  # fmt: skip
        tile = self.macros["TILE"]
        assert programs == row_tiles * parts
        assert (parts - 1) * share < tiles <= parts * share
        assert counts.shape == (n, parts, 4)
        assert found.shape == (n, parts, 4, room)
        found.fill_(-1)  # what is not written must not be read
        keys = self._keys(query_codes, alpha, codes, lifts, tiles)
        step, bound = self._bounds(facts, per_norm, per_residual, slack, tiles)
        upper = (keys - ZERO_KEY + 2) * step.repeat_interleave(tile)
        upper += bound.repeat_interleave(tile, 1)
        hit = upper >= threshold[:, None]
        hit[:, size:] = False
        place = torch.arange(tiles * tile)
        for part in range(parts):
            for quad in range(4):
                mine = (place // (tile * share) == part) & (place % 8 // 2 == quad)
                for row in range(n):
                    listed = (hit[row] & mine).nonzero()[:, 0]
                    counts[row, part, quad] = listed.shape[0]
                    kept = listed[:room]
                    found[row, part, quad, : kept.shape[0]] = kept | keys[row, kept] << 32

    def _rank_kernel(
        self, programs: int, queries: Any, entries: Any, ids: Any, facts: Any, mean: Any,
        threshold: Any, per_norm: Any, per_residual: Any, slack: Any, unit: Any, error: Any,
        zero: Any, extreme: Any, counts: Any, found: Any, values: Any, best: Any, left: Any,
        tallies: Any, n: int, k: int, parts: int, room: int, capacity: int,
    ) -> None:  # fmt: skip
        tallies.zero_()
        for row in range(n):
            if zero[row]:
                values[row], best[row], left[row] = 0.0, torch.arange(k), False
                continue
            listed = [
                found[row, part, quad, : min(int(counts[row, part, quad]), room)]
                for part in range(parts) for quad in range(4)
            ]  # fmt: skip
            records = torch.cat(listed)
            left[row] = True
            if bool((counts[row] > room).any()) or bool(extreme[row]):
                continue
            if not k <= records.shape[0] <= 4 * capacity:
                continue
            place = records & 0xFFFFFFFF
            shared = facts[place // UNIT_TILE].double()
            bound = per_norm[row] * shared[:, 1] + per_residual[row] * shared[:, 2] + 4 * slack[row]
            score = (records >> 32) - ZERO_KEY
            lower, upper = (score - 2) * shared[:, 0] - bound, (score + 2) * shared[:, 0] + bound
            least = max(float(threshold[row]), float(lower.topk(k).values[-1]))
            kept = upper >= least
            if not k <= int(kept.sum()) <= capacity:
                continue
            entry = ids[place[kept]]
            product = (queries[row].double() * entries[entry].double()).sum(1)
            order = sorted(range(len(entry)), key=lambda i: (-float(product[i]), int(entry[i])))
            sure = True
            for j in range(k):
                mine, off = product[order[j]], float(error[row])
                if off > 0 and j + 1 < len(order):
                    sure &= bool(mine - product[order[j + 1]] > 2 * off)
                sure &= bool((mine - off).float() == (mine + off).float())
                values[row, j], best[row, j] = mine + 0.0, entry[order[j]]
            left[row] = not sure
            tallies[row, 0], tallies[row, 1] = len(order), len(order)


def plain_codes(codes: torch.Tensor) -> torch.Tensor:
    """Codes (rows, depth) of entries that were arranged for the tensor cores, byte by byte."""
    tiles, chunks, tile, width = codes.shape
    row, column = torch.arange(tile)[:, None], torch.arange(width)[None, :]
    at = (column // 16 ^ row % 8) * 16 + column % 16  # where a coordinate of a row lies
    plain = codes.gather(3, at.expand(tiles, chunks, tile, width))
    return plain.transpose(1, 2).reshape(tiles * tile, chunks * width)
