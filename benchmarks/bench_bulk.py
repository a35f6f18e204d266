"""The scoring job beside its search alone, its memory as images grow, and Ray beside processes.

The first benchmark prepares once and scores a store of some shards, all of it up to the committed
Parquet files; its yardstick maps the same shards and finds the top k. The others run
``bliss-index score`` as a person does, in a process of its own.
"""

from __future__ import annotations

import shutil

import pytest
from conftest import THREADS
from machine import score
from make_embeddings import make_missing

DIM, ENTRIES, CLASSES = 512, 20_000, 10


@pytest.fixture(scope="session")
def stores(request, tmp_path_factory):
    """A corpus, a calibration, and image stores of two sizes; about 1 GB."""
    share = request.config.getoption("scale")
    folder = tmp_path_factory.mktemp("bulk")
    images = {"few": max(500, int(65_536 * share)), "many": max(1000, int(655_360 * share))}
    make_missing(folder, max(200, int(ENTRIES * share)), CLASSES, DIM, images)
    yield folder, images
    shutil.rmtree(folder)


@pytest.mark.benchmark(group="bulk")
def test_job(paired, stores):
    from bliss_index.jobs.blas import one_blas_thread
    from bliss_index.scoring.score_inputs import open_input
    from bliss_index.scoring.score_part import PartScorer
    from bliss_index.scoring.score_settings import ScoreSettings, ScoringInputs
    from bliss_index.storage import open_directory

    folder, _ = stores
    settings = ScoreSettings(
        str(folder / "corpus"), str(folder / "calibration"), search="native", threads=THREADS
    )
    scorer = ScoringInputs.open(settings).make_scorer()
    parts = [(part.planned(at), part) for at, part in enumerate(open_input(folder / "few").parts)]
    out = open_directory(folder / "paired-scores")

    def job() -> None:
        shutil.rmtree(folder / "paired-scores", ignore_errors=True)  # or all is done already
        out.make()
        with one_blas_thread():
            for outcome in PartScorer(scorer, out, batch_rows=8192).score_parts(parts):
                if outcome.error is not None:
                    raise outcome.error

    def search_alone() -> None:
        for _, part in parts:
            for rows in part.read(8192, checked=False):
                scorer.search.search(rows.embeddings)

    def check() -> None:
        for _, part in parts:
            part.check()

    job()  # pays for the tables
    ways = {"job": job, "search": search_alone, "hashes": check}
    images = sum(part.rows for _, part in parts)
    paired(ways, count=images, entries=ENTRIES, classes=CLASSES, k=10)


@pytest.mark.benchmark(group="bulk")
@pytest.mark.parametrize(
    "engine", ["local", pytest.param("ray", marks=pytest.mark.slow)]
)  # fmt: skip
def test_command(paired, benchmark, stores, engine):
    """Of ten times the images: more time, the same memory. With Ray: beside the same without."""
    folder, images = stores
    found = {}

    def run(name: str, how: str) -> None:
        found[name, how] = score(folder, name, f"{how}-scores", THREADS, "--engine", how)

    if engine == "local":
        ways = {"many": lambda: run("many", "local"), "few": lambda: run("few", "local")}
    else:
        ways = {"ray": lambda: run("few", "ray"), "local": lambda: run("few", "local")}
    paired(ways, rounds=3, images=images, entries=ENTRIES, classes=CLASSES)
    for (name, how), one in found.items():
        benchmark.extra_info[f"{name}, {how}"] = {
            "images": images[name], "peak_mib": one["peak_mib"],
            "images_per_second": round(one["rows_per_second"]),
            "while_scoring": round(one["scoring_rows_per_second"]),
        }  # fmt: skip
