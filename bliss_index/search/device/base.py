"""What an engine is: a way to find and rank the k best entries of queries on a device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from bliss_index.search.device.codes import CodeFormat, EntryCodes, QueryCodes

Prepare = Callable[[EntryCodes, torch.Tensor], QueryCodes]
PairProducts = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
ScoreKernel = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]
_LEAST_CAPACITY = 256
_CAPACITY_PER_RESULT = 16
_MOST_CAPACITY = 8192
_ROOM_FACTOR, _MOST_ROOM_FACTOR = 8, 64


@dataclass(frozen=True, eq=False)
class Ranked:
    """Results of n queries, and what they took.

    Attributes
    ----------
    values, ids
        (n, k) float64 and int64, best first, ties by smaller id.
    left
        (n,) bool: queries without a certificate, whose results mean nothing: they have more
        candidates than there is room for, values closer than the rounding of their sums, or
        coordinates that no kernel can work on.
    tallies
        (2,) int64: candidates, and of them, rescored ones, of all queries that are not left.
    """

    values: torch.Tensor
    ids: torch.Tensor
    left: torch.Tensor
    tallies: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class DeviceEngine(ABC):
    """The steps of a search that have kernels of their own.

    Attributes
    ----------
    prepare
        Makes queries ready: :meth:`EntryCodes.prepare`.
    pair_products
        Inner products (P,) float64 of rows of queries (n, d) and of entries (W, d).
    score_kernel
        From what a search found to anomaly scores; see ``torch_score_kernel`` of engine.py.
    reason
        Why it is this one; empty where nothing needs to be said.
    capacity
        Candidates kept per query; None for what k suggests.
    room_factor
        How many times the usual room there is for what is listed; see :meth:`widened`.
    """

    prepare: Prepare
    pair_products: PairProducts
    score_kernel: ScoreKernel
    reason: str = ""
    capacity: int | None = None
    room_factor: int = 1

    @property
    @abstractmethod
    def name(self) -> str:
        """For messages."""

    @property
    @abstractmethod
    def tile(self) -> int:
        """Entries that share a unit."""

    @property
    @abstractmethod
    def form(self) -> CodeFormat:
        """Numbers that are multiplied."""

    @abstractmethod
    def bytes_per_query(self, size: int, k: int) -> int:
        """Memory for a query while it is worked on, against so many entries."""

    @abstractmethod
    def search(
        self, queries: torch.Tensor, entries: torch.Tensor, codes: EntryCodes, k: int
    ) -> Ranked:
        """Find and order the k best entries of every query, as far as that can be certified.

        Nothing waits for the device.

        Parameters
        ----------
        queries, entries, codes
            (n, d), (W, d), and the codes of the latter.
        k
            Results per query, at most a quarter of the blocks.
        """

    def widened(self, k: int) -> DeviceEngine | None:
        """An engine with more room for the queries that this one leaves; None if there is none."""
        factor = self.room_factor * _ROOM_FACTOR
        return replace(self, room_factor=factor) if factor <= _MOST_ROOM_FACTOR else None

    def room(self, k: int) -> int:
        """Candidates that there is room for: a power of two."""
        return self.grown(self.capacity or max(_LEAST_CAPACITY, _CAPACITY_PER_RESULT * k), k)

    def grown(self, usual: int, k: int) -> int:
        """Candidates that there is room for, where usually it is for so many: a power of two.

        What ranks them slows down with the room, so where that is large already, it is doubled.
        """
        wanted = max(usual, k)
        more = max(2 * wanted, _LEAST_CAPACITY * self.room_factor)
        wanted = max(wanted, min(wanted * self.room_factor, more, _MOST_CAPACITY))
        return int(1 << (wanted - 1).bit_length())

    def arrange(self, codes: torch.Tensor) -> torch.Tensor:
        """Put codes (rows, D) of entries as the product reads them."""
        return codes

    def describe(self, device: torch.device) -> str:
        """Say in a few words what runs where."""
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.name} on {where} ({device}), torch {torch.__version__}{why}"
