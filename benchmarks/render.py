"""Write the tables of README.md and the pages in docs/ from the committed results.

    python benchmarks/render.py

A table, or a sentence full of figures, stands between ``<!-- table NAME -->`` and ``<!-- end -->``;
whatever is there is replaced.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SETS = ("Caltech101", "ImageNet")
PROTOCOLS = {"6 normal": "six", "half": "half", "all-but-one": "all but one"}
_TABLE = re.compile(r"<!-- table (\S+) -->\n.*?<!-- end -->", re.S)


@cache
def result(name: str) -> Any:
    """Read one of benchmarks/results."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def render(page: str) -> str:
    """Return the page with its tables as the results give them."""
    return _TABLE.sub(lambda m: f"<!-- table {m[1]} -->\n\n{TABLES[m[1]]()}\n\n<!-- end -->", page)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Write a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def percent(found: dict[str, float]) -> str:
    """A mean in percent with its interval."""
    return "{:.1f} ({:.1f} to {:.1f})".format(*(100 * found[n] for n in ("mean", "low", "high")))


def points(found: dict[str, float]) -> str:
    """A paired difference in percentage points with its interval."""
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * found[n] for n in ("mean", "low", "high")))


def gains(part: str, default: str) -> str:
    """AUROC of the default, and the paired differences of the other values."""
    data = result("choosing")[part]
    header = ["", *(f"{title}, {name}" for title in SETS for name in PROTOCOLS.values())]
    rows = []
    for value in data[SETS[0]]["half"]:
        cells = [data[title][p][value] for title in SETS for p in PROTOCOLS]
        shown = [percent(c) if value == default else points(c["gain"]) for c in cells]
        rows.append([f"**{value}**" if value == default else value, *shown])
    return markdown(header, rows)


def detectors() -> str:
    """AUROC with intervals, and how much BLISS leads."""
    data = result("choosing")["detectors"]
    titles = {
        "bliss": "BLISS", "bliss:shrinkage=10": "BLISS, shrinkage 10", "label": "label term alone",
        "raw": "raw similarity to the nearest label", "mcm": "MCM, temperature 1",
        "neglabel": "NegLabel, 15 % of the entries",
        "neglabel:negatives=1": "NegLabel, all entries",
        "knn:neighbours=1": "nearest calibration image",
    }  # fmt: skip
    protocols = {"one-class": "one class", **PROTOCOLS}
    header = ["", *(f"{title}, {name}" for title in SETS for name in protocols.values())]
    rows = [
        [title, *(percent(data[s][p][name]) for s in SETS for p in protocols)]
        for name, title in titles.items()
    ]
    return markdown(header, rows)


def shrinkage() -> str:
    """AUROC by images a class and shrinkage."""
    rows = []
    shown = ("0", "2", "10", "50")
    for title, counts in result("few_images")["sets"].items():
        for count, found in counts.items():
            cells = [
                f"{100 * found['auroc'][p][n]['mean']:.1f}" if n in found["auroc"][p] else ""
                for p in ("6 normal", "half")
                for n in shown
            ]
            rows.append([f"{title}, {'all' if count == '160' else count}", *cells])
    header = [f"{name}N = {n}" for name in ("six, ", "half, ") for n in shown]
    return markdown(["images a class", *header], rows)


def shrinkage_gains() -> str:
    """What shrinkage 10 gains, with intervals."""
    protocols = {"one-class": "one class", **PROTOCOLS}
    rows = []
    for title, counts in result("few_images")["sets"].items():
        for count, found in counts.items():
            if count != "1":
                cells = [points(found["auroc"][p]["10"]["gain"]) for p in protocols]
                rows.append([f"{title}, {'all' if count == '160' else count}", *cells])
    return markdown(["images a class", *protocols.values()], rows)


def nearest_class() -> str:
    """How often the nearest class is the image's."""
    rows = []
    for title, counts in result("few_images")["sets"].items():
        for count, found in counts.items():
            right = found["nearest_class_right"]
            cells = [f"{100 * right[n]:.1f} %" if n in right else "" for n in
                     ("0", "10", "zero-shot")]  # fmt: skip
            rows.append([f"{title}, {'all' if count == '160' else count}", *cells])
    return markdown(["images a class", "N = 0", "N = 10", "most similar label"], rows)


def thresholds() -> str:
    """False alarms observed over splits."""
    rows = []
    for title, found in result("thresholds")["thresholds"].items():
        for name, seen in found["rates"].items():
            rate, how = name.split(" ", 1)
            rows.append(
                [
                    f"{title} ({found['calibration_images']:.0f} images)",
                    f"{100 * float(rate):.0f} %",
                    how if how == "on average" else f"with {100 * float(how):.0f} %",
                    f"{100 * seen['mean']:.1f} % ± {100 * seen['std']:.1f}",
                    f"{100 * seen['largest']:.1f} %", f"{100 * seen['exceeded']:.1f} %",
                    f"{100 * seen['exceeded_expected']:.1f} %",
                ]
            )  # fmt: skip
    return markdown(
        ["data", "asked for", "promised", "observed", "largest", "splits above", "by chance"], rows
    )


def thresholds_summary() -> str:
    """In words: how far single splits go, and how often a promise with confidence fails."""
    seen = [
        (name, rate)
        for found in result("thresholds")["thresholds"].values()
        for name, rate in found["rates"].items()
    ]
    average = [(float(n.split()[0]), rate) for n, rate in seen if n.endswith("on average")]
    sure = [rate for n, rate in seen if not n.endswith("on average")]
    above = [rate for rate in sure if rate["exceeded"] > 0.05]
    return (
        "On average rates are kept everywhere: the mean is "
        f"{min(r['mean'] / n for n, r in average):.1f} to "
        f"{max(r['mean'] / n for n, r in average):.2f} times what was asked for. Single\n"
        f"splits flag up to {max(r['largest'] / n for n, r in average):.1f} times as much.\n"
        f"With confidence {100 * min(r['exceeded'] for r in sure):.1f} to "
        f"{100 * max(r['exceeded'] for r in sure):.1f} % of the splits flag more than asked for. "
        f"In {len(above)} of {len(sure)} rows that is\nmore than 5 %: "
        + " and ".join(f"{100 * r['exceeded']:.1f}" for r in above)
        + " %, where as few new images as there are would give "
        + " and ".join(f"{100 * r['exceeded_expected']:.1f}" for r in above)
        + " % by chance."
    )


def contamination() -> str:
    """Share of new normal images that predict() flags."""
    rows = [
        [title, f"{100 * seen['held_out']:.1f} % ± {100 * seen['held_out_std']:.1f}",
         f"{100 * seen['own_scores']:.1f} %"]
        for title, seen in result("thresholds")["contamination"].items()
    ]  # fmt: skip
    return markdown(["six classes, contamination 0.05", "`predict`", "images' own scores"], rows)


def names() -> str:
    """What exchanged names do, and how many of them are warned of."""
    titles = {
        "bliss": "BLISS", "bliss:shrinkage=10": "BLISS, shrinkage 10", "raw": "raw similarity",
        "neglabel:negatives=1": "NegLabel, all entries", "knn:neighbours=1": "nearest image",
    }  # fmt: skip
    rows = [
        [f"{title}, {found['exchanged']} of {found['classes']}",
         f"{found['exchanged_and_warned']} and {found['others_warned']} others",
         *(f"{100 * found['auroc'][name]['mean']:.1f}" for name in titles)]
        for title, shares in result("names")["sets"].items()
        for found in shares.values()
    ]  # fmt: skip
    return markdown(["names exchanged", "warned of", *titles.values()], rows)


def image_term() -> str:
    """AUROC without an image term, gains with fixed weights, and of the rule."""
    titles = {"6 normal": "six", "half": "half", "all-but-one": "all but one"}
    rows = []
    for found in result("image_term")["weights"]:
        images = "all" if found["images"] > 100 else found["images"]
        auroc, auto = found["auroc"], found["auto"]
        fixed = [auroc[w]["mean"] - auroc["0"]["mean"] for w in ("0.25", "0.5", "1", "2")]
        rows.append(
            [f"{found['data']}, {images} images, N = {found['shrinkage']:g}",
             titles[found["normal"]], percent(auroc["0"]),
             *(f"{100 * gain:+.1f}" for gain in fixed), points(auto["gain"]),
             f"{auto['better']}, {auto['worse']}, {100 * auto['worst']:+.1f}"]
        )  # fmt: skip
    return markdown(
        ["data", "normal classes", "W = 0", "0.25", "0.5", "1", "2", "auto",
         "auto better, worse (runs), worst"], rows,
    )  # fmt: skip


def image_term_names() -> str:
    """What the rule does where names are exchanged."""
    rows = []
    for found in result("image_term")["names"]:
        auroc, auto = found["auroc"], found["auto"]
        rows.append(
            [f"{found['data']}, {found['exchanged']} of {found['classes']}",
             f"{100 * auroc['0']['mean']:.1f}", f"{100 * auroc['auto']['mean']:.1f}",
             f"{auto['median_weight']:g}", f"{auto['median_lam']:g}"]
        )  # fmt: skip
    return markdown(
        ["names exchanged", "BLISS", "image weight auto", "W chosen, median",
         "lambda chosen, median"], rows,
    )  # fmt: skip


def float16() -> str:
    """What storing float16 changes."""
    rows = []
    for title, found in result("choosing")["float16"].items():
        shown = ("6 normal", "half")
        largest = max(found["largest_change_of_a_runs_auroc"][p] for p in shown)
        mean = max(abs(found["change_of_mean_auroc"][p]) for p in shown)
        rows.append(
            [title, f"{found['mean_change_of_a_score']:.4f}",
             f"{found['largest_change_of_a_score']:.2f}", f"{found['std_of_scores']:.2f}",
             f"{largest:.4f}", f"{mean:.1e}"]
        )  # fmt: skip
    return markdown(
        ["", "a score moves by, mean", "at most", "deviation of the scores",
         "AUROC of a run, at most", "mean AUROC, at most"], rows,
    )  # fmt: skip


def benchmarked(group: str) -> list[dict[str, Any]]:
    """What the whole run of benchmarks found in one of its groups."""
    return [b["extra_info"] for b in result("cpu")["benchmarks"] if b["group"] == group]


def named(test: str) -> dict[str, Any]:
    """What one benchmark of the whole run found."""
    found: dict[str, Any] = next(
        b["extra_info"] for b in result("cpu")["benchmarks"] if b["name"] == test
    )
    return found


def steps() -> str:
    """The steps around the search, in the whole run of benchmarks."""
    command = named("test_command[local]")
    few, many = command["few, local"], command["many, local"]
    scoring = {found["classes"]: found["added_to_search"] for found in benchmarked("scoring")}
    calibration = named("test_calibration[100-5000]")
    texts, images = named("test_texts[float32]")["ways"], named("test_images[float32]")["ways"]
    words = named("test_reading_words[disk]")
    shares = [f"{100 * share:.0f} %" for _, share in sorted(scoring.items())]
    classes = [f"{count:,}" for count in sorted(scoring)]
    rows = [
        [f"`score`, {many['images']:,} images, {command['entries']:,} entries, "
         f"{command['classes']} classes, from start to end",
         f"{many['images_per_second']:,} images/s, {many['peak_mib']:.0f} MiB at most "
         f"({few['peak_mib']:.0f} MiB for {few['images']:,} images)"],
        [f"whole scoring on top of the search, {', '.join(classes[:-1])} and {classes[-1]} classes",
         f"{', '.join(shares[:-1])} and {shares[-1]} more time"],
        [f"calibration, {calibration['classes']} classes x {calibration['images_a_class']:,} "
         f"images, {calibration['entries']:,} entries",
         f"{calibration['times_as_fast_as_the_direct_way']:.1f} times as fast as the direct way"],
        ["texts, ViT-B-32, equal to open_clip's call to 2e-7",
         f"{texts['bliss_index']['rows_per_second']:.0f} a second; open_clip "
         f"{texts['open_clip']['rows_per_second']:.0f}"],
        ["images, ViT-B-32",
         f"{images['bliss_index']['rows_per_second']:.1f} a second; a data loader and open_clip "
         f"{images['data loader']['rows_per_second']:.1f}"],
        [f"a list of {words['rows']:,} words checked and made unique on disk",
         f"{words['rows'] * words['ways']['disk']['median_seconds_a_row']:.1f} s"],
    ]  # fmt: skip
    return markdown(["on the EPYC, two cores", ""], rows)


def sizes() -> str:
    """The exact search from small to large, by kernel."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in result("sizes")["rows"]:
        groups.setdefault((row["entries"], row["dim"], row["kernel"]), []).append(row)
    rows = []
    for (entries, dim, kernel), found in sorted(groups.items(), key=lambda item: item[0][1::-1]):
        ten = next(row for row in found if row["k"] == 10)
        rows.append([
            f"{entries:,}", str(dim), kernel,
            ", ".join(f"{row['images_per_second']:,.0f}" for row in found),
            f"{100 * ten['share_of_kernel']:.0f} %",
            f"{100 * max(row['searched_in_full'] for row in found):.2g} %",
            ", ".join(
                f"{ms:,.0f}" if ms >= 10 else f"{ms:.2g}"
                for ms in (ten["one_image_milliseconds"], ten["worst_of_100_milliseconds"])
            ),
        ])  # fmt: skip
    header = ["entries", "d", "kernel", "images/s, k = 1, 10, 100", "of the kernel's own rate",
              "searched in full, at most", "one image, ms: median, worst of 100"]  # fmt: skip
    return markdown(header, rows)


def recall() -> str:
    """The near search and faiss's IVF-SQ8 at some recalls."""
    rows = []
    for found in result("recall")["searches"]:
        ways = found["ways"]
        exact = ways["exact"]["images_per_second"]
        for name, near in ways.items():
            if not name.startswith("near"):
                continue
            other = ways[name.replace("near", "faiss IVF-SQ8")]
            rate = near["images_per_second"]
            beside = (
                f"{other['images_per_second']:,} ({other['recall']:.3f})"
                if "recall" in other
                else f"reaches {other['reached']:.3f}"
            )
            rows.append([
                f"{found['entries']:,}", name.split()[-1], f"{exact:,}",
                f"{rate:,} ({near['recall']:.3f})", f"{rate / exact:.1f}", beside,
                f"{near['times_as_fast_as_faiss']:.1f}" if "recall" in other else "",
            ])  # fmt: skip
    header = ["entries", "recall asked for", "exact, images/s", "near, images/s (recall)",
              "times exact", "faiss IVF-SQ8, images/s (recall)", "times faiss"]  # fmt: skip
    return markdown(header, rows)


def recall_auroc() -> str:
    """What a recall does to AUROC."""
    rows = [
        [name, f"{100 * way['mean_auroc']:.2f}", f"{100 * way['largest_difference_to_exact']:.2f}",
         f"{way['one_image_moves_by_deviations']:.1f}"]
        for name, way in result("recall")["auroc"]["ways"].items()
    ]  # fmt: skip
    header = ["search", "mean AUROC, %", "a draw differs by at most",
              "an image's score moves by at most (deviations)"]  # fmt: skip
    return markdown(header, rows)


def gpu_near() -> str:
    """Near entries on a GPU: rates, candidates, and what is compared in full."""
    rows = []
    for row in result("gpu_h100_near")["rows"]:
        if row["group"] != "near":
            continue
        given, found = row["parameters"], row["result"]
        rates = found["images_per_second"]
        torch = max(rate for name, rate in rates.items() if name.startswith("torch"))
        shown = [f"{rates[name]:,.0f}" for name in ("exact, int8", "exact, triton")]
        rows.append([
            f"{given['entries']:,}", str(given["k"]), *shown, f"{torch:,.0f}",
            f"{found['candidates_per_query']:,.0f}",
            f"{100 * found['full_rows'] / given['queries']:.1f} %",
        ])  # fmt: skip
    header = ["entries", "k", "exact, Hopper's kernels", "exact, Triton's kernels",
              "torch bfloat16 product + topk", "candidates an image",
              "compared in full"]  # fmt: skip
    return markdown(header, sorted(rows, key=lambda row: (int(row[1]), len(row[0]), row[0])))


def searches() -> str:
    """Exact search beside faiss on two machines."""
    xeon = {
        found["entries"]: found["ways"]
        for found in result("search_cpu_xeon")["results"]
        if (found["dim"], found["k"]) == (512, 10)
    }
    epyc = {
        found["entries"]: found["ways"]
        for found in benchmarked("search")
        if (found["dim"], found["k"], found["data"]) == (512, 10, "clip")
    }

    def cell(ways: dict[str, Any], ratio: float, name: str = "", faiss: str = "") -> str:
        rate = f"{ways[name]['queries_per_second']:,.0f} images/s, " if name else ""
        return f"{rate}{ratio:.{0 if ratio >= 10 else 1}f} times{faiss}"

    rows = []
    for entries in sorted(epyc):
        ways, other = xeon[entries], epyc[entries]
        rates = {name: way["queries_per_second"] for name, way in ways.items()}
        rows.append(
            [
                f"{entries:,}",
                cell(ways, rates["native"] / rates["flat"], "native", "" if rows else " faiss"),
                cell(ways, rates["avx512-vnni"] / rates["flat"]),
                f"{other['native']['rows_per_second']:,.0f} images/s, "
                f"{other['flat']['times_slower']:.1f} times",
            ]
        )
    header = ["entries", "Xeon with AMX", "the same, AVX-512 VNNI only", "EPYC with AVX-512 VNNI"]
    return markdown(header, rows)


def accuracy() -> str:
    """AUROC of the whole chain on Caltech101."""
    titles = ("one", "six", "all but one")
    ways = {"BLISS": "**{}**", "raw similarity": "{}", "label term": "{}"}
    rows = []
    for title, found in zip(titles, result("caltech101_chain")["auroc"].values(), strict=True):
        cells = [
            f"{shown.format(format(found[way]['mean'], '.4f'))} ± {found[way]['std']:.4f}"
            for way, shown in ways.items()
        ]
        rows.append([title, str(found["BLISS"]["runs"]), *cells])
    return markdown(["normal classes", "runs", *ways], rows)


def two_sets() -> str:
    """AUROC of some detectors on both sets."""
    titles = {
        "bliss": "BLISS", "bliss:shrinkage=10": "shrinkage 10", "raw": "raw similarity",
        "neglabel:negatives=1": "NegLabel, all entries", "knn:neighbours=1": "nearest image",
    }  # fmt: skip
    data = result("choosing")["detectors"]
    rows = [
        [f"{title}, {PROTOCOLS[name]}", *(percent(data[title][name][one]) for one in titles)]
        for title in SETS
        for name in ("6 normal", "half")
    ]
    return markdown(["data, normal classes", *titles.values()], rows)


def clusters() -> str:
    """What a vocabulary of near entries costs, beside one of as many apart."""
    rows = []
    for found in benchmarked("search"):
        if (found["dim"], found["k"]) != (512, 10):
            continue
        lie = "340 around a text" if found["data"] == "clustered" else "apart"
        counted = found["candidates_per_query"], 100 * found["rows_searched_in_full"]
        times = found["ways"]["flat"]["times_slower"]
        shown = (f"{counted[0]:,.0f}", f"{counted[1]:.0f} %", f"{times:.2f} times")
        rows.append([f"{found['entries']:,}", lie, *shown])
    header = ["entries", "they lie", "candidates a query", "queries searched in full",
              "faiss's flat index takes"]  # fmt: skip
    return markdown(header, rows)


def kills() -> str:
    """How often what was killed."""
    found: Counter[tuple[str, ...]] = Counter()
    starting: Counter[tuple[str, ...]] = Counter()
    for run in result("kill_test")["runs"]:
        way = (run["work"], run["what_was_killed"], run["answers_lost"])
        found[way] += run["kills"]
        starting[way] += run.get("kills_while_starting", 0)
    header = ["work", "what was killed", "answers lost", "kills", "of them while it started"]
    return markdown(header, [[*way, str(found[way]), str(starting[way])] for way in found])


def parts() -> str:
    """What a part of a job costs."""
    rows = [
        [
            f"{job['parts']:,}", f"{job['ms_a_part']:.2f}", f"{job['bytes_written_a_part']:.0f}",
            f"{job['start_s']:.1f} s", f"{job['resume_half_done_s']:.1f} s",
            f"{job['finish_s']:.1f} s", f"{job['run_again_s']:.1f} s", str(max(job["peak_mib"])),
        ]
        for job in result("jobs_parts")["jobs"]
        if job["parts"] > 1
    ]  # fmt: skip
    header = ["parts", "ms a part", "bytes written a part", "start", "resume, half done", "finish",
              "run again, all done", "peak MiB"]  # fmt: skip
    return markdown(header, rows)


def near() -> str:
    """What counts as near-identical, in a sentence."""
    data = result("near")
    sets = {"img_caltech101_test": "Caltech-101", "img_imagenet_fewshot4": "ImageNet"}
    found = [data["different"][name] for name in sets]
    photos = " and ".join(
        f"{one['images']:,} photos of {title}"
        for one, title in zip(found, sets.values(), strict=True)
    )
    again = data["saved again"]
    shares = ", ".join(
        f"{100 * value:.0f} % ({name})" for name, value in again.items() if isinstance(value, float)
    )
    return (
        f"Of {photos} (ViT-B-32) {sum(one['pairs'] for one in found)} pairs are. Of "
        f"{again['photos']} photos saved again, these are near to what they were: {shares}; "
        f"{again['model']}."
    )


WAYS = {
    "found": "groups",
    "k-means, entries": "k-means of weighted entries, true number",
    "k-means, images": "k-means of images, true number",
    "most similar entry": "most similar entry",
}


def groups() -> str:
    """Groups of outliers, and what k-means makes of them that is told their number."""
    data = result("groups")
    header = ["data, normal classes", "way", "groups (kinds)", "NMI", "AMI", "images named right",
              "groups named right"]  # fmt: skip
    rows = []
    for title in ("Caltech101", "ImageNet"):
        for normal in ("one", "six", "half"):
            for way, name in WAYS.items():
                of = data[title][normal][name]
                rows.append([
                    f"{title}, {normal}", way, f"{of['found']:.0f} ({of['true']:.0f})",
                    f"{of['nmi']['mean']:.3f}", f"{of['ami']:.3f}", f"{100 * of['images']:.0f} %",
                    f"{100 * of['groups']:.0f} %",
                ])  # fmt: skip
    return markdown(header, rows)


def group_settings() -> str:
    """Means with other bounds of grouping."""
    data = result("groups")
    kinds = ("Caltech101", "ImageNet", "drawn")
    header = ["a name is worth", "apart", *(f"{k}: NMI, groups named right" for k in kinds)]
    rows = []
    for setting, found in data["by_setting"].items():
        worth, apart = re.fullmatch(r"NAME_WORTH (\S+), APART (\S+)", setting).groups()
        if float(apart) == data["apart"] or float(worth) == data["name_worth"]:
            of = (found[kind] for kind in kinds)
            rows.append([worth, apart, *(
                f"{one['nmi']['mean']:.3f}, {100 * one['groups']:.0f} %" for one in of)
            ])  # fmt: skip
    return markdown(header, rows)


def groups_scale() -> str:
    """Time and memory of groups over many rows."""
    data = result("groups_scale")
    header = [f"{data['rows']:,} rows", "groups", "seconds", "peak memory"]
    rows = [
        [f"{of['flagged']:,} flagged", str(of["groups"]), f"{of['seconds']:.0f}",
         f"{of['peak_mib']:,.0f} MiB"]
        for of in data["groups"].values()
    ]  # fmt: skip
    of = data["report"]
    rows.append(["report of the second", "", f"{of['seconds']:.0f}", f"{of['peak_mib']:,.0f} MiB"])
    return markdown(header, rows)


def review() -> str:
    """Seconds of the page over many rows."""
    data = result("review")

    def seconds(value: float) -> str:
        return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"

    header = [f"{data['rows']:,} images", "median", "95 % below"]
    rows = [
        [name, seconds(found["median"]), seconds(found["p95"])]
        for name, found in data["seconds"].items()
    ]
    for name, title in (("first start", "the first time"), ("later start", "later")):
        start = data[name]
        rows.append([f"start, {title}", seconds(start["seconds_until_it_listens"]), ""])
        opened = seconds(start["seconds_from_address_to_pictures"])
        rows.append([f"from the address to pictures, {title}", opened, ""])
        rows.append([f"memory at most, {title}", f"{start['peak_mib']:,.0f} MiB", ""])
    return markdown(header, rows)


TABLES: dict[str, Callable[[], str]] = {
    "near": near,
    "review": review,
    "groups": groups,
    "group-settings": group_settings,
    "groups-scale": groups_scale,
    "k": lambda: gains("k", "10"),
    "lambda": lambda: gains("lambda", "0.5"),
    "lambda-shrinkage": lambda: gains("lambda, shrinkage 10", "0.5"),
    "vocabulary": lambda: gains("vocabulary", "ImageNet"),
    "detectors": detectors,
    "shrinkage": shrinkage,
    "shrinkage-gains": shrinkage_gains,
    "nearest-class": nearest_class,
    "thresholds": thresholds,
    "thresholds-summary": thresholds_summary,
    "contamination": contamination,
    "names": names,
    "image-term": image_term,
    "image-term-names": image_term_names,
    "float16": float16,
    "searches": searches,
    "steps": steps,
    "gpu-near": gpu_near,
    "sizes": sizes,
    "recall": recall,
    "recall-auroc": recall_auroc,
    "accuracy": accuracy,
    "two-sets": two_sets,
    "kills": kills,
    "clusters": clusters,
    "parts": parts,
}


def main() -> None:
    """Rewrite the pages."""
    for page in PAGES:
        page.write_text(render(page.read_text()))


if __name__ == "__main__":
    main()
