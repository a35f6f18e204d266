"""What every benchmark shares: fair settings, the machine's description, paired rounds, comparing.

    pytest benchmarks --benchmark-json=FILE                        # everything; -k search, -m "not slow"
    pytest benchmarks --benchmark-compare=benchmarks/results/cpu.json

A benchmark times our way and others in turn, A B A B. The first other way is its yardstick: it does
not change with our code, so how many times as long ours takes is compared between runs, and what
takes longer than the rounds' noise explains is named at the end. On a machine that others use, one
thread's processor time tells more than the clock (start, bulk and images have processes of their
own, whose time it does not hold):

    pytest benchmarks -k "search or scoring" --threads 1 --benchmark-timer=time.process_time
"""  # noqa: E501

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from machine import describe_machine, peak_memory_mib, set_fast_blas

# Before any benchmark is imported: they take it from here.
THREADS = int(next((b for a, b in pairwise(sys.argv) if a == "--threads"), 0)) or len(
    os.sched_getaffinity(0)
)
ROUNDS = 15
_CALL_SECONDS = 0.2
_SURE = 3.0  # standard errors
_LEAST = 0.05  # a smaller change is none


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--scale", type=float, default=1.0, help="share of the sizes: 0.01 shows that all runs"
    )
    parser.addoption("--threads", type=int, help="of every way; all processors by default")


def pytest_configure(config: pytest.Config) -> None:
    # OpenBLAS reads its settings when it is loaded.
    if "numpy" in sys.modules:
        raise pytest.UsageError("numpy is loaded already: run `pytest benchmarks` by itself")
    set_fast_blas(THREADS)


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    found = describe_machine(THREADS)
    for name in ("date", "command", "commit"):
        del found[name]
    machine_info.clear()
    machine_info.update(found)


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    words = [word for word in sys.argv[1:] if not word.startswith("-p")]
    output_json["command"] = " ".join(["pytest", *words])
    output_json["date"] = date.today().isoformat()
    output_json["peak_memory_mib"] = round(peak_memory_mib())
    for one in output_json["benchmarks"]:
        del one["stats"]["data"]  # extra_info has the rounds


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """A size as asked for by --scale; 16 at least."""
    share = request.config.getoption("scale")
    return lambda size: max(16, round(size * share))


@pytest.fixture
def paired(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Time ways in turn: ours first, then others, of which the first is the yardstick.

    Ways are functions of rows, of which each is given as many as it does in 0.2 s; or, without
    rows, functions of nothing that do `count` of them. Facts are kept beside the times.
    """
    from bliss_index.bench.paired import Paired, Way

    def measure(
        ways: Mapping[str, Callable[..., Any]], rows: Any = None, *, count: int = 1,
        rounds: int = ROUNDS, **facts: Any,
    ) -> Paired:  # fmt: skip
        seconds = _CALL_SECONDS * request.config.getoption("scale")
        if rows is None:
            fitted = {name: Way(way, count) for name, way in ways.items()}
        else:
            fitted = {name: Way.on_rows(way, rows, seconds) for name, way in ways.items()}
        clock = request.config._benchmarksession.options["timer"]  # type: ignore[attr-defined]
        turns, (ours, *others) = Paired(fitted, clock=clock.target), ways

        def time_others() -> None:
            for name in others:
                turns.time(name)

        benchmark.pedantic(turns.time, args=(ours,), setup=time_others, rounds=rounds)
        benchmark.extra_info |= facts | {"rows": fitted[ours].rows, "ways": {}}
        for name, took in turns.medians().items():
            found = {"median_seconds_a_row": took, "rows_per_second": round(1 / took, 1)}
            if name != ours:
                found["times_slower"] = round(median(turns.ratios(name, ours)), 3)
            benchmark.extra_info["ways"][name] = found
        if others:
            benchmark.extra_info["yardstick"] = others[0]
            ratios = turns.ratios(ours, others[0])
            benchmark.extra_info["over_yardstick"] = [round(one, 5) for one in ratios]
        return turns

    return measure


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name what got slower than a committed result says, by more than both runs' noise."""
    from compare import compared

    session = config._benchmarksession  # type: ignore[attr-defined]
    for path, before in session.compared_mapping.items():
        now = {one.fullname: one.as_dict(include_data=True) for one in session.benchmarks}
        terminalreporter.section(f"beside {Path(path).name}")
        for line in _lines(compared(before, now, sure=_SURE, least=_LEAST)):
            terminalreporter.write_line(line)


def _lines(found: list[Any]) -> Iterator[str]:
    for one in found:
        yield f"{'SLOWER ' if one.slower else ''}{one}"
    yield f"{sum(one.slower for one in found)} of {len(found)} are slower beyond their noise"
