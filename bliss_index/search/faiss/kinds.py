"""FAISS's kinds of index: the one place that lists them, and what is particular to each."""

from __future__ import annotations

from dataclasses import dataclass

from bliss_index.errors import InvalidInputError


@dataclass(frozen=True)
class IndexKind:
    """A kind of index.

    Attributes
    ----------
    name : str
        What ``--index`` and ``--search`` call it.
    classes : tuple of str
        FAISS's classes whose files are accepted.
    parameters : tuple of str
        Those of ``IndexParameters`` that mean something to it.
    effort : str, default=''
        FAISS's name of what is tuned: the higher, the more is found; '' for an exact index.
    centred : bool, default=False
        Whether entries are indexed minus their mean unless asked otherwise.
    spare : int, default=0
        Results beyond k that are asked for at first.
    better : str, default=''
        Which index finds more.
    built_on_gpu : bool, default=False
        Whether building needs a GPU.
    placed_on_gpu : bool, default=True
        Whether it can be searched on one.
    """

    name: str
    classes: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    effort: str = ""
    centred: bool = False
    spare: int = 0
    better: str = ""
    built_on_gpu: bool = False
    placed_on_gpu: bool = True

    @property
    def exact(self) -> bool:
        """Whether it finds the true top k."""
        return not self.effort


_DENSER = "denser one (more links)"
_CELLS = ("cells", "centered", "seed")
INDEX_KINDS = {
    kind.name: kind
    for kind in (
        IndexKind("flat", ("IndexFlatIP", "IndexFlat"), spare=22),
        IndexKind(
            "ivf", ("IndexIVFFlat",), _CELLS, "nprobe", spare=8, better="an index of another kind"
        ),
        IndexKind(
            "ivfpq", ("IndexIVFPQ",), (*_CELLS, "subspaces", "bits"), "nprobe",
            better="finer one (more subspaces)",
        ),
        IndexKind(
            "hnsw", ("IndexHNSWFlat",), ("links", "construction", "centered"), "efSearch",
            centred=True, better=_DENSER, placed_on_gpu=False,
        ),
        IndexKind(
            "cagra", ("IndexHNSWCagra",), ("links", "centered"), "itopk_size",
            centred=True, better=_DENSER, built_on_gpu=True,
        ),
    )
}  # fmt: skip


def index_kind(name: str) -> IndexKind:
    """Return a kind by its name; InvalidInputError, listing all, where there is none."""
    if name not in INDEX_KINDS:
        raise InvalidInputError(f"kind must be one of {', '.join(INDEX_KINDS)}, got {name!r}")
    return INDEX_KINDS[name]
