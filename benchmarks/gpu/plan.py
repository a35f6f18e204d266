"""Every row of the suite, by value: what matters most comes first."""

from __future__ import annotations

from typing import Any

from gpu.row import Row

MAIN_GROUP = "main"
_MAIN: dict[str, Any] = {"entries": 100_000, "dim": 512, "k": 10}
_DIM = 64  # in a rehearsal
_FEW = 3  # queries of most rows in a rehearsal: Triton's interpreter takes 0.1 s for each
_SEARCH_SHAPE = [16_384, 32_768, 512]
_SMALL_SHAPE = [64, 128, 64]
_SMALL_ENTRIES = {1_000: 300, 2_000: 300, 10_000: 400, 20_000: 600, 100_000: 700,
                  1_000_000: 900, 4_000_000: 1_000}  # fmt: skip


def plan() -> list[Row]:
    """Return all rows, in the order in which they run."""
    return [
        Row("facts", "card", "gpu.card:facts", {}, 40, cuda=False),
        *_main(), *_stages(), *_faiss(), *_scoring(), *_encoding(), *_near(), *_growth(),
        *_exactness("exactness"), *_searches(), *_exactness("exactness-rest"), *_tiles(),
    ]  # fmt: skip


def _main() -> list[Row]:
    rows = [
        Row(
            MAIN_GROUP, f"exactness of {queries:,} queries, {checked} checked",
            "gpu.exactness:batch_exactness", {**_MAIN, "queries": queries, "checked": checked}, 30,
            {"entries": small, "dim": _DIM, "queries": few, "checked": few - 1},
        )
        for queries, checked, small, few in ((128, 128, 5_000, 5), (4_097, 256, 700, 33))
    ]  # fmt: skip
    rate = {
        **_MAIN, "queries": 262_144, "rounds": 5, "checked": 256,
        "codes": ["int8", "triton", "bfloat16"],
        "product": _SEARCH_SHAPE, "more_products": {"8192 cubed": [8_192, 8_192, 8_192]},
        "copied": 1 << 30,
    }  # fmt: skip
    small = {
        "entries": 700, "dim": _DIM, "queries": _FEW, "product": _SMALL_SHAPE,
        "more_products": {"8192 cubed": [64, 64, 64]}, "copied": 1 << 20,
    }  # fmt: skip
    rows.append(Row(MAIN_GROUP, "rate", "gpu.rates:compare", rate, 40, small))
    return rows


def _stages() -> list[Row]:
    return [
        Row(
            "stages", codes, "gpu.stages:stages", {**_MAIN, "queries": 65_536, "codes": codes}, 20,
            {"entries": 700, "dim": _DIM, "queries": _FEW},
        )
        for codes in ("int8", "triton")
    ]  # fmt: skip


def _faiss() -> list[Row]:
    parameters = {
        **_MAIN, "queries": 262_144, "rounds": 3, "product": _SEARCH_SHAPE, "faiss": True,
    }  # fmt: skip
    small = {"entries": 700, "dim": _DIM, "queries": _FEW, "product": _SMALL_SHAPE}
    return [Row("faiss", "flat", "gpu.rates:compare", parameters, 40, small)]


def _exactness(group: str) -> list[Row]:
    """All cases of int8, and those of the other numbers that differ most; then the rest."""
    cases = [
        (kind, 20_000, 512, 10)
        for kind in ("duplicates", "near ties", "sorted", "any norm", "clustered")
    ]
    cases += [
        ("clip", entries, dim, k)
        for entries in (100_000, 20_000, 1_000, 1_000_000)
        for dim in (512, 768)
        for k in (10, 1, 100)
    ]
    rows = []
    for codes in ("int8", "triton", "bfloat16", "torch"):
        for kind, entries, dim, k in cases:
            first = codes == "int8" or (entries <= 100_000 and (dim, k) == (512, 10))
            if first != (group == "exactness"):
                continue
            few = kind in ("near ties", "any norm")  # which the host has to check
            rows.append(Row(
                group, f"{codes}, {kind}, {_named(entries, dim, k)}", "gpu.exactness:exactness",
                {"data": kind, "entries": entries, "dim": dim, "k": k,
                 "queries": 32 if few else 128, "codes": codes},
                20 if entries == 1_000_000 else 12,
                {"entries": _SMALL_ENTRIES[entries], "dim": dim // 8, "queries": _FEW},
            ))  # fmt: skip
    return rows


def _searches() -> list[Row]:
    """The main case is a row of its own."""
    order = [
        (entries, 512, 10) for entries in (1_000_000, 20_000, 2_000, 4_000_000)
    ]  # fmt: skip
    order += [(100_000, 512, k) for k in (1, 100)]
    order += [(100_000, 768, k) for k in (10, 1, 100)]
    order += [
        (entries, dim, k)
        for dim in (512, 768)
        for k in (1, 100, 10)
        for entries in (20_000, 1_000_000, 2_000, 4_000_000)
        if (dim, k) != (512, 10)
    ]
    return [
        Row(
            "searches", _named(entries, dim, k), "gpu.rates:compare",
            {"entries": entries, "dim": dim, "k": k,
             "queries": min(262_144, int(4e10 // entries)), "rounds": 3,
             "product": [*_SEARCH_SHAPE[:2], dim]},
            40 if entries == 4_000_000 else 15,
            {"entries": _SMALL_ENTRIES[entries], "dim": dim // 8, "queries": 2,
             "product": _SMALL_SHAPE},
        )
        for entries, dim, k in order
    ]  # fmt: skip


def _scoring() -> list[Row]:
    rows = [
        Row(
            "scoring", f"{classes} classes", "gpu.scoring:scoring",
            {**_MAIN, "queries": 65_536, "classes": classes}, 15,
            {"entries": 400, "dim": _DIM, "queries": 2, "classes": 1 + classes // 300},
        )
        for classes in (10, 100, 1_000)
    ]  # fmt: skip
    rows.append(Row(
        "job", "end to end", "gpu.job:end_to_end",
        {**_MAIN, "images": 1 << 20, "shard": 262_144, "classes": 10}, 30,
        {"entries": 400, "dim": _DIM, "images": 10, "shard": 4, "classes": 2},
    ))  # fmt: skip
    rows.append(Row(
        "calibration", "1000 classes of 1000 images", "gpu.normal_classes:tables",
        {"entries": 100_000, "dim": 512, "classes": 1_000, "images": 1_000}, 15,
        {"entries": 300, "dim": _DIM, "classes": 3, "images": 80},
    ))  # fmt: skip
    return rows


def _encoding() -> list[Row]:
    """The embedded model for its answers, the paper's for its speed."""
    return [
        Row(
            "encoding", f"{model}, {precision}", "gpu.encoding:encoding",
            {"model": model, "precision": precision, "images": images, "side": 384,
             "texts": 20_000, "compared": 32, "decoders": 14,
             "several": [4] if precision == "bfloat16" else []},
            90 if precision == "bfloat16" else 60,
            {"model": "bliss-tiny", "images": 40, "side": 70, "texts": 40, "compared": 4,
             "decoders": 1, "several": []},
        )
        for model, precision, images in (
            ("bliss-tiny", "float32", 20_000),
            ("ViT-B-16", "float32", 8_000),
            ("ViT-B-16", "bfloat16", 20_000),
        )
    ]  # fmt: skip


def _near() -> list[Row]:
    """Entries that are near hundreds of others, as in long lists of words."""
    return [
        Row(
            "near", _named(entries, 512, k), "gpu.rates:compare",
            {"entries": entries, "dim": 512, "k": k, "near": True,
             "queries": min(262_144, int(4e10 // entries)), "rounds": 3,
             "product": _SEARCH_SHAPE, "codes": ["int8", "triton"]},
            40 if entries == 1_000_000 else 20,
            {"entries": _SMALL_ENTRIES[entries], "dim": _DIM, "queries": _FEW,
             "product": _SMALL_SHAPE, "codes": ["int8"]},
        )
        for entries, k in ((100_000, 10), (1_000_000, 10), (20_000, 10), (100_000, 100))
    ]  # fmt: skip


def _growth() -> list[Row]:
    """Vocabularies for as many images as are quickly done, and images for one vocabulary."""
    points = [
        ("vocabulary", f"vocabulary of {entries:,}", entries, min(262_144, int(6e10 // entries)))
        for entries in (1_000, 10_000, 100_000, 1_000_000, 4_000_000)
    ]
    points += [
        ("images", f"{images:,} images", 100_000, images)
        for images in (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
    ]
    return [
        Row(
            "growth", name, "gpu.growth:growth",
            {"grows": grows, "entries": entries, "dim": 512, "k": 10, "images": images},
            30 if entries > 1_000_000 or images > 1_000_000 else 15,
            {"entries": _SMALL_ENTRIES[entries], "dim": _DIM, "images": 1 + len(str(images)) // 3},
        )
        for grows, name, entries, images in points
    ]  # fmt: skip


def _tiles() -> list[Row]:
    """A shape takes seconds to compile, so only those are here that may win."""
    common = [(128, 32, 8, 3), (64, 32, 4, 3), (64, 64, 4, 2)]
    tried = {
        ("int8", 512): [*common, (128, 32, 8, 2), (128, 64, 8, 2), (128, 128, 8, 2),
                        (256, 32, 16, 2)],
        ("int8", 768): [*common, (128, 64, 8, 2)],
        ("bfloat16", 512): common,
    }  # fmt: skip
    return [
        Row(
            "tiles", f"{codes}, d={dim}, {'x'.join(map(str, shape))}", "gpu.tiles:tile_shape",
            {"entries": 100_000, "dim": dim, "k": 10, "queries": 65_536, "codes": codes,
             "shape": list(shape)}, 10,
            {"entries": 400, "dim": dim // 8, "queries": 2},
        )
        for (codes, dim), shapes in tried.items()
        for shape in shapes
    ]  # fmt: skip


def _named(entries: int, dim: int, k: int) -> str:
    return f"W={entries}, d={dim}, k={k}"
