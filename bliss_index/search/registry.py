"""Every search by name: the one list that options, settings, messages and measurements read."""

from __future__ import annotations

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from bliss_index.search.faiss.kinds import INDEX_KINDS

if TYPE_CHECKING:
    from bliss_index.search.protocol import EngineClass

UNAVAILABLE = "unavailable: "
NEAR = "near"
"""Name of the package's own approximate search, by lists of near entries."""
FAISS = "faiss"
"""Name of the exact search by a flat FAISS index that is built where it is needed."""


@dataclass(frozen=True)
class Engine:
    """An exact search engine.

    Attributes
    ----------
    name : str
        What ``--search`` and ``backend=`` call it.
    home : str
        "module:class" of an :class:`~bliss_index.search.protocol.EngineClass`, imported when used.
    devices : tuple of str
        Kinds of torch device that may be named for it; none for one that is the processor's alone.
    takes_shards : bool, default=False
        Whether it reads :class:`~bliss_index.search.sharded.ShardedRows` where they are; others
        are given one array.
    """

    name: str
    home: str
    devices: tuple[str, ...] = ()
    takes_shards: bool = False

    @property
    def on_processor(self) -> bool:
        """Whether it computes on the processor where no device is named."""
        return not self.devices or "cpu" in self.devices

    def load(self) -> EngineClass:
        """Import its class."""
        found: EngineClass = resolve_name(self.home)
        return found


# The fastest first, where it can be used.
ENGINES = (
    Engine("cuda", "bliss_index.search.device.backend:DeviceBackend", ("cuda",)),
    Engine("native", "bliss_index.search.native.backend:NativeBackend", takes_shards=True),
    Engine("torch", "bliss_index.search.torch.backend:TorchBackend", ("cpu", "cuda", "mps", "xpu")),
)


def engine_names() -> tuple[str, ...]:
    """Names of the exact engines."""
    return tuple(engine.name for engine in ENGINES)


def exact_names() -> tuple[str, ...]:
    """Names of the ways to search exactly without an index on disk."""
    return ("auto", *engine_names(), FAISS)


def index_names() -> tuple[str, ...]:
    """Names of the indexes that ``build`` makes."""
    return (*INDEX_KINDS, NEAR)


def search_names() -> tuple[str, ...]:
    """Names of all searches."""
    return (*exact_names(), *index_names())


def is_exact(name: str) -> bool:
    """Whether a search finds the true top k."""
    return name in exact_names() or (name in INDEX_KINDS and INDEX_KINDS[name].exact)


def takes_device(name: str) -> bool:
    """Whether a torch device says something to a search without an index on disk."""
    return name == "auto" or any(engine.name == name and engine.devices for engine in ENGINES)
