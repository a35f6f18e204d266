"""Top-k search over a vocabulary of embeddings.

Names are imported when first used, so that importing this package stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bliss_index.search.certificate.reference import reference_search
    from bliss_index.search.exact import ExactSearch, available_backends, exact_search
    from bliss_index.search.protocol import SearchStatistics, TensorSearch, TopKSearch

__all__ = [
    "ExactSearch",
    "SearchStatistics",
    "TensorSearch",
    "TopKSearch",
    "available_backends",
    "exact_search",
    "reference_search",
]

_HOMES = {
    "ExactSearch": "exact",
    "SearchStatistics": "protocol",
    "TensorSearch": "protocol",
    "TopKSearch": "protocol",
    "available_backends": "exact",
    "exact_search": "exact",
    "reference_search": "certificate.reference",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
