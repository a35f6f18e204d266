"""How fast the exact search is, against its rivals, all timed in turn on the same queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bliss_index.bench.synthetic import clustered
from bliss_index.search.device.backend import DeviceBackend
from gpu.bench import Bench
from gpu.exactness import spread_rows
from gpu.reference import device_top_k
from gpu.rivals import Way, copy_way, faiss_ways, matrix_ways, torch_ways

SEARCH_SHAPE = "shape of the search"
_CHECKED = 64


def compare(
    bench: Bench,
    entries: int,
    dim: int,
    k: int,
    queries: int,
    rounds: int,
    product: list[int],
    more_products: dict[str, list[int]] | None = None,
    copied: int = 0,
    codes: tuple[str, ...] = ("int8",),
    faiss: bool = False,
    checked: int = _CHECKED,
    near: bool = False,
) -> dict[str, Any]:
    """Time the exact search, torch's bfloat16 product and topk, and plain products.

    Parameters
    ----------
    bench
        The device.
    entries, dim, k, queries
        Of the search; queries lie on the device already.
    rounds
        In each of which everything is timed once; medians count.
    product
        Rows, columns and dim of the plain products.
    more_products
        Further ones, by name.
    copied
        Bytes to copy on the device; 0 for no copy.
    codes
        Numbers of the products that propose candidates; the first is what others are compared to.
    faiss
        Whether faiss is compared too; the row is skipped where it has no GPU.
    checked
        Queries of the last timed search whose results are compared with float64.
    near
        Whether the entries are those of ``clustered``, most of them near hundreds of others.
    """
    if near:
        drawn = clustered(entries, dim, 1, near=min(340, entries // 4), dtype=np.float16)
        texts = torch.from_numpy(drawn).to(bench.device)
    else:
        texts = bench.draw(entries, dim, "text", 1)
    images = bench.draw(queries, dim, "image", 2)
    rivals = torch_ways(texts, images, k)
    if faiss:
        most = max(way.amount for way in rivals.values())
        rivals |= faiss_ways(bench, texts, images[: int(most)], k)
    timed = {f"exact, {form}": _Timed(bench.backend(texts, k, form), images) for form in codes}
    searches = {name: Way(search, queries) for name, search in timed.items()}
    shapes = {SEARCH_SHAPE: product, **(more_products or {})}
    matrices = matrix_ways(bench, {name: tuple(shape) for name, shape in shapes.items()})
    copies = {"copy": copy_way(bench, copied)} if copied else {}
    ways = {**searches, **rivals, **matrices, **copies}
    seconds = bench.in_turn({name: way.call for name, way in ways.items()}, rounds)
    rate = {name: ways[name].amount / seconds[name] for name in ways}
    ours = next(iter(searches))
    operations = {name: round(2e-12 * rate[name] * entries * dim, 2) for name in searches}
    tera = {name: round(1e-12 * rate[name], 2) for name in matrices}
    found: dict[str, Any] = {
        **timed[ours].checked(texts, k, checked),
        "engines": {name: search.backend.description for name, search in timed.items()},
        "seconds": {name: round(value, 7) for name, value in seconds.items()},
        "images_per_second": {name: round(rate[name], 1) for name in (*searches, *rivals)},
        "equivalent_tera_operations_per_second": operations,
        "times_as_fast_as": {
            name: round(rate[ours] / rate[name], 3) for name in rate if name in rivals
        },
        "matrix_tera_operations_per_second": tera,
        "share_of_bfloat16_matrix_rate": {
            name: round(operations[name] / max(tera[f"bfloat16, {SEARCH_SHAPE}"], 1e-9), 4)
            for name in searches
        },
    }  # fmt: skip
    if copies:
        found["copy_gigabytes_per_second"] = round(1e-9 * rate["copy"], 1)
    return found


class _Timed:
    """A search of all images, and what it found the last time."""

    def __init__(self, backend: DeviceBackend, images: torch.Tensor) -> None:
        self.backend = backend
        self._images = images
        self._found: Any = None

    def __call__(self) -> None:
        self._found = self.backend.search_tensors(self._images)

    def checked(self, texts: torch.Tensor, k: int, checked: int) -> dict[str, Any]:
        """Compare some of the results with float64."""
        values, ids, counted = self._found
        count = self._images.shape[0]
        rows = spread_rows(count, checked, self._images.device)
        expected = device_top_k(texts, self._images[rows], k)
        return {
            **expected.compare(ids[rows].cpu().numpy(), values[rows].cpu().numpy()),
            "checked": int(rows.shape[0]),
            "candidates_per_query": round(counted.candidates / count, 1),
            "rescored_per_query": round(counted.rescored / count, 1),
            "full_rows": counted.full_rows,
        }
