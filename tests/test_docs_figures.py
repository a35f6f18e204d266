"""Figures in the pages are those of the committed results."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from bliss_index.report import grouping

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def caltech():
    path = ROOT / "benchmarks" / "results" / "sensitivity_caltech101.json"
    return json.loads(path.read_text())


def section(heading: str) -> str:
    """The text below a heading of docs/choosing.md, up to the next."""
    text = (ROOT / "docs" / "choosing.md").read_text().split(f"## {heading}\n", 1)[1]
    return text.split("\n## ")[0]


def table_after(heading: str, words: str = "") -> dict[str, list[str]]:
    """First cells and the others of the first table below a heading and some words after it."""
    text = section(heading)
    text = text[text.index(words) :]
    lines = text[text.index("| ") :].split("\n\n")[0].splitlines()[2:]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_the_table_of_simpler_scores(caltech):
    images = caltech["calibration_images"]
    simpler = table_after("Calibration images", "Against simpler scores")
    for row, name in zip(simpler.values(), ("bliss", "label", "knn:neighbours=1"), strict=True):
        values = dict(zip(images[name]["values"], images[name]["auroc"]["6 normal"], strict=True))
        for cell, count in zip(row, (2, 3, 5, 10, 20, 160), strict=True):
            assert cell == f"{100 * values[count]['mean']:.1f}"


@pytest.fixture(scope="module")
def render():
    spec = spec_from_file_location("render", ROOT / "benchmarks" / "render.py")
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_tables_that_a_script_writes(render):
    """`python benchmarks/render.py` would change nothing, and every table has its place."""
    placed = Counter()
    for page in render.PAGES:
        text = page.read_text()
        placed.update(re.findall(r"<!-- table (\S+) -->", text))
        assert text.count("<!-- table ") == text.count("<!-- end -->"), page.name
        assert render.render(text) == text, page.name
    assert placed == Counter(list(render.TABLES))


def test_a_table_follows_its_result(render, monkeypatch):
    page = (ROOT / "README.md").read_text()
    changed = json.loads(json.dumps(render.result("cpu")))
    for found in changed["benchmarks"]:
        if found["group"] == "search":
            found["extra_info"]["ways"]["native"]["rows_per_second"] = 123456
    monkeypatch.setattr(render, "result", lambda name, old=render.result: (
        changed if name == "cpu" else old(name)))  # fmt: skip
    assert render.render(page).count("123,456 images/s") == 4


def result(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def test_the_default_has_not_changed(caltech):
    """AUROC before there was a shrinkage, and by the commands, to four decimals."""
    before, chain = caltech["detectors"], result("caltech101_chain")["auroc"]
    now = result("choosing")["detectors"]["Caltech101"]
    for old, protocol in zip(chain, ("one-class", "6 normal", "all-but-one"), strict=True):
        found = f"{now[protocol]['bliss']['mean']:.4f}"
        assert found == f"{before[protocol]['bliss']['auroc']['mean']:.4f}"
        assert found == f"{chain[old]['BLISS']['mean']:.4f}"


def test_what_wrong_names_do():
    right, wrong, *_ = result("names")["sets"]["Caltech101"].values()
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert (
        f"the names of {wrong['exchanged']} of Caltech101's {wrong['classes']} classes exchanged "
        f"AUROC falls from {100 * right['auroc']['bliss']['mean']:.1f} to "
        f"{100 * wrong['auroc']['bliss']['mean']:.1f}, half"
    ) in readme
    for data in result("names")["sets"].values():
        assert all(found["exchanged"] == found["exchanged_and_warned"] for found in data.values())


def test_what_the_page_says_of_lambda():
    page = " ".join(section("lambda").split())
    data = result("choosing")["lambda"]

    def extremes(title: str, value: str) -> tuple[float, float]:
        gains = [100 * data[title][p][value]["gain"]["mean"] for p in data[title]
                 if p != "one-class"]  # fmt: skip
        return min(gains), max(gains)

    assert (
        f"0.75 costs at most {-extremes('Caltech101', '0.75')[0]:.1f} on Caltech101 and gains up "
        f"to {extremes('ImageNet', '0.75')[1]:.1f} points on ImageNet, 1 costs up to "
        f"{-extremes('Caltech101', '1')[0]:.1f} and gains up to {extremes('ImageNet', '1')[1]:.1f};"
    ) in page


def test_the_readmes_other_machine():
    readme = " ".join((ROOT / "README.md").read_text().split())
    rate = result("bulk_cpu_xeon")["whole_run_images_per_second"]
    assert f"`score` on the Xeon with AMX does {rate:,.0f} images/s" in readme


def test_the_page_about_bulk_jobs():
    page = " ".join((ROOT / "docs" / "bulk.md").read_text().split())
    found, ray = result("bulk_cpu_xeon"), result("bulk_ray_xeon")
    alone, checked, job, whole = (
        f"{found[f'{name}_images_per_second']:,.0f}"
        for name in ("search_alone", "check_and_search", "job", "whole_run")
    )
    assert f"does {alone} images/s" in page
    assert f"then searching it {checked}, the job {job}:" in page
    ratios = (found["job_over_search"], found["job_over_check_and_search"])
    assert "{:.2f} and {:.2f} of them".format(*ratios) in page
    assert f"and {found['job_over_search_in_all']:.2f} of the search over everything" in page
    assert f"The whole command does {whole} images/s" in page
    rate = ray["images_per_second_while_scoring"]
    assert f"{rate['ray']:,} instead of {rate['local']:,} images/s" in page
    seconds = (median(ray[f"{engine}_seconds"]) for engine in ("ray", "local"))
    assert "took {:.1f} s instead of {:.1f} s".format(*seconds) in page


def test_the_table_of_candidates_on_a_gpu():
    cases = result("gpu_kernels_interpreted")["cases"]
    assert all(case["same_ids"] and case["same_similarities"] for case in cases)
    found = {
        (case["entries"], case["k"], case["codes"]): case
        for case in cases
        if case["data"] == "clip" and case["dim"] == 512
    }
    text = (ROOT / "docs" / "gpu.md").read_text()
    rows = text.split("| int8: candidates |", 1)[1].split("\n\n")[0].splitlines()[2:]
    assert len(rows) == 5
    for row in rows:
        entries, k, *cells = (cell.strip().replace(",", "") for cell in row.strip("|").split("|"))
        expected = [
            found[int(entries), int(k), codes][name]
            for codes in ("int8", "bfloat16")
            for name in ("candidates_per_query", "rescored_per_query")
        ]
        assert [float(cell) for cell in cells] == expected
    assert f"on a processor, {len(cases)} cases" in text


def test_the_figures_of_a_gpu():
    """Three digits of what the suite measured, in docs/gpu.md and README.md."""
    rows = {(row["group"], row["name"]): row.get("result") for row in result("gpu_h100")["rows"]}
    text = (ROOT / "docs" / "gpu.md").read_text()
    main, faiss = rows["main", "rate"], rows["faiss", "flat"]
    assert main["exact"]
    assert faiss["exact"]
    ours, theirs = main["images_per_second"], faiss["images_per_second"]
    bfloat16 = max(rate for name, rate in ours.items() if name.startswith("torch"))
    for title, rate, fastest in (
        ("exact, Hopper's kernels", ours["exact, int8"], None),
        ("exact, Triton's kernels", ours["exact, triton"], ours["exact, int8"]),
        ("torch bfloat16 product + topk (not exact)", bfloat16, ours["exact, int8"]),
        ("faiss flat, float32", theirs["faiss flat float32"], theirs["exact, int8"]),
        ("faiss flat, float16", theirs["faiss flat float16"], theirs["exact, int8"]),
    ):
        times = "" if fastest is None else f"{fastest / rate:.1f} "
        assert f"| {title} | {_thousands(rate)} | {times}|" in text
    assert f"Hopper's kernels did {_digits(theirs['exact, int8'])} a second" in text
    tera = main["equivalent_tera_operations_per_second"]["exact, int8"]
    rates = main["matrix_tera_operations_per_second"]
    plain, best = rates["bfloat16, shape of the search"], rates["bfloat16, 8192 cubed"]
    assert f"{tera:.0f} tera-operations" in text
    assert f"{tera / plain:.2f} times the {plain:.0f}" in text
    assert f"{tera / best:.2f} times the {best:.0f}" in text
    grown = [r for (group, name), r in rows.items() if group == "growth" and "vocab" in name]
    cells = [_digits(row["images_per_second"]) for row in grown]
    assert f"| images per second | {' | '.join(cells)} |" in text
    shares = [f"{100 * rows['scoring', f'{c} classes']['added_to_search']:.0f} %"
              for c in (10, 100, 1000)]  # fmt: skip
    assert f"Whole scoring adds {shares[0]}, {shares[1]} and {shares[2]}" in text
    job = rows["job", "end to end"]
    assert f"does {_thousands(job['images_per_second'])} images a second" in text
    stages = rows["stages", "int8"]
    assert f"Of the {stages['kernel_microseconds'] / 1000:.1f} ms of a batch" in text
    assert f"a batch is {stages['launches']} launches" in text
    right = [row for (group, _), row in rows.items() if group == "exactness" and row is not None]
    assert all(row["exact"] for row in right)
    assert f"{len(right)} exactness cases" in text
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"{ours['exact, int8'] / 1e6:.1f} million images a second" in readme
    assert f"{theirs['exact, int8'] / theirs['faiss flat float32']:.1f} times as many as" in readme


def _digits(number: float) -> str:
    """Three digits."""
    return f"{float(f'{number:.3g}'):,.0f}"


def _thousands(number: float) -> str:
    return f"{1000 * round(number / 1000):,}"


def test_the_searches_of_a_gpu():
    found = {row["name"]: row["result"] for row in result("gpu_h100_searches")["rows"]}
    found["W=100000, d=512, k=10"] = found["rate"]
    text = (ROOT / "docs" / "gpu.md").read_text()
    rows = text.split("| entries | d | k = 1 |", 1)[1].split("\n\n")[0].splitlines()[2:]
    assert len(rows) == 10
    for row in rows:
        entries, dim, *cells = (cell.strip().replace(",", "") for cell in row.strip("|").split("|"))
        for k, cell in zip((1, 10, 100), cells, strict=True):
            rates = found[f"W={entries}, d={dim}, k={k}"]
            assert rates["exact"]
            rates = rates["images_per_second"]
            best = max(rate for name, rate in rates.items() if name.startswith("torch"))
            ours = rates["exact, int8"]
            assert cell == f"{_digits(ours)} ({ours / best:.1f})".replace(",", "")
    cases = [row for row in result("gpu_h100_searches")["rows"] if row["group"] == "exactness"]
    assert all(case["result"]["exact"] for case in cases)
    assert f"all {len(cases)}, through" in text


def test_the_encoders_on_a_gpu():
    text = (ROOT / "docs" / "gpu.md").read_text()
    for row in result("gpu_encoding_h100")["rows"]:
        if row["group"] != "encoding":
            continue
        found = row["result"]
        tower, job = found["tower_rows_per_second"], found["job_rows_per_second_with_start"]
        assert (
            f"| {row['name']} | {tower['images']:,.0f} | {job['images']:,.0f} | "
            f"{tower['texts']:,.0f} | {job['texts']:,.0f} | "
            f"{min(found['least_cosine_with_processor'].values()):.5f} |"
        ) in text
        if "images, 4 workers" in job:
            assert f"{job['images, 4 workers']:,.0f} images a second" in text


def test_the_rates_of_encoding_beside_an_earlier_commit():
    ratios = result("encode_commits")["after_over_before"]
    text = " ".join((ROOT / "docs" / "encoding.md").read_text().split())
    images, texts = (
        1 / ratios[name]["rows_per_second_of_the_command"]
        for name in ("encode-images", "encode-text")
    )
    assert f"takes {images:.2f} times as long for images and {texts:.2f} times for texts" in text


def test_where_the_time_of_a_job_on_a_gpu_goes():
    text = " ".join((ROOT / "docs" / "gpu.md").read_text().split())
    runs = [run for run in result("gpu_encoding_h200_decoders")["runs"] if run["call"] == 1]
    pipes, shared, again = (run["job_s"] for run in runs)
    assert [run["pixels_through"] for run in runs] == ["pipes", "shared memory", "pipes"]
    assert f"took {shared:.1f} s, between two runs of {pipes:.1f} and {again:.1f} s" in text
    alone = [run["decode_ms_alone"] for run in runs]
    assert f"{min(alone):.1f} to {max(alone):.1f} ms" in text
    started = [run["before_first_batch_s"] for run in runs]
    assert f"after {min(started):.0f} to {max(started):.0f} s" in text


def test_what_a_part_of_a_job_costs():
    jobs = [job for job in result("jobs_parts")["jobs"] if job["parts"] > 1]
    assert [job["parts"] for job in jobs] == [1_000, 10_000, 100_000, 1_000_000]
    assert jobs[-1]["ms_a_part"] < 1.2 * jobs[0]["ms_a_part"]


def test_the_bounds_of_grouping_are_those_that_were_measured():
    found = result("groups")
    bounds = (grouping.NAME_WORTH, grouping.APART)
    assert (found["name_worth"], found["apart"]) == bounds
    text = " ".join(section("Outliers by name").split())
    assert f"until all are worth {bounds[0]:g}:" in text
    assert f"less than {bounds[1]:g} more similar" in text
    assert f"found on {grouping.MOST_IMAGES:,} images at most" in text

    def mean(setting, metric):
        return np.mean([metric(of) for of in found["by_setting"][setting].values()])

    chosen = f"NAME_WORTH {bounds[0]:g}, APART {bounds[1]:g}"
    nmi = {name: mean(name, lambda of: of["nmi"]["mean"]) for name in found["by_setting"]}
    right = {name: mean(name, lambda of: of["groups"]) for name in nmi}
    assert nmi[chosen] > max(nmi.values()) - 0.005  # and of those that are as good
    assert right[chosen] > max(right[n] for n in nmi if nmi[n] > max(nmi.values()) - 0.005) - 0.01


def test_the_pictures_of_the_score():
    """Figures of docs/bliss.md, whose pictures are drawn of the same values."""
    root = ROOT / "benchmarks" / "results"
    found = json.loads((root / "bliss_pictures.json").read_text())
    page = " ".join((ROOT / "docs" / "bliss.md").read_text().split())
    gap, entries, scores = found["gap"], found["entries"], found["scores"]
    external = {name: kind["external"] for name, kind in found["nearest"].items()}
    car = entries["car"]
    for sentence in (
        f"has {gap['image and image of one class']:.2f} with another cat on average, "
        f"{gap['image and image of the other class']:.2f} with a bicycle, and "
        f'{gap["image and its label"]:.2f} with the text "cat"; over all pairs an image and a text '
        f"have {gap['image and text']:.2f}, and two texts {gap['text and text']:.2f}.",
        f'"castle" in every cat, with {entries["castle"]["mean"]:.2f} on average',
        f'For "car" {car["mean"]:.2f} ± {car["deviation"]:.2f} is usual. The new image, a car, has '
        f"{car['car']:.2f} with it.",
        f'this is {car["z"]:+.1f}: far more than cats ever have. With "cat" it has '
        f"{entries['cat']['z']:.1f}.",
        f"{external['cat']:.2f} for the cat, {external['car']:.2f} for the car",
        f"Of the {scores['normal']} new cats and bicycles it flags {scores['flagged normal']}, of "
        f"the {scores['others']} other images {scores['flagged others']}.",
        f"The AUROC is {scores['auroc']:.4f}. In this small world the similarity with the nearest "
        f"label alone does as well ({scores['auroc of the raw similarity']:.4f})",
    ):
        assert sentence in page
    assert "castle" in found["nearest"]["cat"]["entries"]
    for name in ("gap", "entries", "nearest", "scores"):
        assert (ROOT / "docs" / "images" / f"bliss_{name}.png").exists()
