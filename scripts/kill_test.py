"""Kill every long work with SIGKILL over its whole life until it has survived enough, then compare.

    python scripts/kill_test.py --kills 30 --json benchmarks/results/kill_test.json
    python scripts/kill_test.py --kills 30 --works score --workers 2
    python scripts/kill_test.py --kills 10 --works score --s3 10
    python scripts/kill_test.py --kills 4 --works score import --nodes

A fifth of the kills come at random moments of the start, the others from the first part to near the
last, at random moments within a part; an uninterrupted run says how long both take. With --s3 the
output is in an object store that loses one of so many answers; with --nodes, a Ray cluster loses
random nodes, with all that runs there, and gets new ones.

Ends with exit code 0 if the same command continued after every kill, and its final files are those
of a run that nobody interrupted, byte for byte, with nothing left over. With --json, results are
added to those that the file holds already.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from bulk_fixtures import Kill, kill_over_its_life, parts_done, wait_for
from fault_test import prepared
from job_fixtures import result
from machine import describe_machine
from object_store import s3_server

SIZES = {"rows": 2000, "words": 6_400, "pictures": 4_480}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="of each work")
    parser.add_argument("--works", nargs="+", help="by default all")
    parser.add_argument("--parts", type=int, default=400, help="of import and score")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--engine", default="local", choices=["local", "ray"])
    parser.add_argument("--s3", type=int, default=0, help="lose one of so many answers")
    parser.add_argument("--nodes", action="store_true", help="kill Ray's nodes, not the command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    well = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = prepared(folder, shards=given.parts, files=given.parts, **SIZES)
        for work, command in inputs.items():
            if given.works and work not in given.works:
                continue
            more = ["--engine", given.engine, "--workers", str(given.workers)]
            full = [sys.executable, "-m", "bliss_index", *command, *more, "--out"]
            start, part, parts = time_whole(full, folder / f"{work}-whole")
            whole = result(folder / f"{work}-whole")
            began = time.perf_counter()
            if given.nodes:
                found, same = lose_nodes(full, folder / f"{work}-nodes", whole, parts, given)
            else:
                found, same = kill_lives(full, folder / work, whole, (start, part, parts), given)
            found = {
                "work": work,
                "engine": "ray" if given.nodes else given.engine,
                "workers": given.workers,
                "answers_lost": f"one of {given.s3}" if given.s3 else "none",
                "what_was_killed": "nodes of a Ray cluster" if given.nodes else "the command",
                "seed": given.seed,
                "parts": parts,
                "seconds_to_first_part_uninterrupted": round(start, 2),
                "seconds_of_all_parts_uninterrupted": round(part * parts, 2),
                **found,
                "byte_identical_and_nothing_left_over": same,
                "seconds": round(time.perf_counter() - began, 1),
            }
            print(json.dumps(found), flush=True)
            if given.json is not None:
                add_to(given.json, found)
            well = well and same and found["kills"] == given.kills
    sys.exit(0 if well else 1)


def kill_lives(
    command: list[str], folder: Path, whole: dict[str, bytes], timed: tuple[float, float, int],
    given: argparse.Namespace,
) -> tuple[dict[str, Any], bool]:  # fmt: skip
    """Kill a job over its life, and another one if it ended too soon, until that was often enough.

    Returns
    -------
    The facts, and whether all of them ended with the files of the whole.
    """
    start, part, parts = timed
    rng = np.random.default_rng(given.seed)
    kills: list[Kill] = []
    lives, same = 0, True
    while len(kills) < given.kills and lives < given.kills:
        with contextlib.ExitStack() as stack:
            out, done_in, files_of = output(
                folder.with_name(f"{folder.name}-{lives}"), given, stack
            )
            kills += kill_over_its_life(
                [*command, str(out)], out, rng, parts=parts, kills=given.kills - len(kills),
                start_seconds=start, part_seconds=part, done_in=done_in,
            )  # fmt: skip
            same = same and files_of() == whole
            lives += 1
    facts = {
        "kills": len(kills),
        "kills_while_starting": sum(kill.while_starting for kill in kills),
        "lives": lives,
        "parts_done_at_each_kill": [kill.parts_done for kill in kills],
        "seconds_to_each_kill": [kill.seconds for kill in kills],
    }
    return facts, same


def time_whole(command: list[str], out: Path) -> tuple[float, float, int]:
    """Run without interruption; return seconds to the first part, seconds a part, and parts."""
    began = time.perf_counter()
    process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL)
    wait_for(lambda: parts_done(out) or process.poll() is not None, 300)
    start = time.perf_counter() - began
    if process.wait():
        sys.exit(f"the uninterrupted run ended with exit code {process.returncode}")
    parts = parts_done(out)
    return start, (time.perf_counter() - began - start) / parts, parts


def output(
    out: Path, given: argparse.Namespace, stack: contextlib.ExitStack
) -> tuple[Path | str, Callable[[Any], int], Callable[[], dict[str, bytes]]]:
    """Where to write; how to count the parts that are done there, and to read what is there."""
    if not given.s3:
        return out, parts_done, lambda: result(out)
    environment, uri = stack.enter_context(s3_server("bucket", given.s3))
    os.environ.update(environment)

    prefix = f"{out.name}/"

    def stored() -> dict[str, Any]:
        from moto.s3.models import s3_backends

        (backend,) = (regions["aws"] for regions in s3_backends.values())
        # One backend serves all servers of this process.
        return {
            name.removeprefix(prefix): key
            for name, key in list(backend.buckets["bucket"].keys.items())
            if name.startswith(prefix)
        }

    def files() -> dict[str, bytes]:
        return {
            name: key.value
            for name, key in sorted(stored().items())
            if not name.startswith(("_records/", "_deaths/", "_job", "_statistics", "_manifest"))
        }

    return (
        f"{uri}/{out.name}",
        lambda _: sum(name.startswith("_records/") for name in stored()),
        files,
    )


def lose_nodes(
    command: list[str], out: Path, whole: dict[str, bytes], parts: int, given: argparse.Namespace
) -> tuple[dict[str, Any], bool]:
    """Run on a cluster whose nodes are killed one after another; new ones take their place."""
    rng = np.random.default_rng(given.seed)
    killed, runs = [], 0
    with cluster() as (nodes, address):
        environment = {**os.environ, "RAY_ADDRESS": address}
        while runs == 0 or parts_done(out) < parts or not list(out.glob("*manifest.json")):
            runs += 1
            process = subprocess.Popen(
                [*command, str(out), "--engine", "ray", "--workers", "2"], env=environment,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            while process.poll() is None and len(killed) < given.kills:
                target = parts * (len(killed) + 1) // (given.kills + 2)
                wait_for(lambda: process.poll() is not None or parts_done(out) >= target, 300)  # noqa: B023
                if process.poll() is None:
                    nodes.remove_node(list(nodes.worker_nodes)[rng.integers(2)])
                    killed.append(parts_done(out))
                    nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
            _, errors = process.communicate(timeout=600)
            if process.returncode not in (0, 1) or runs > given.kills + 2:
                sys.exit(errors)
    deaths = len(list(out.glob("_deaths/*")))
    facts = {"kills": len(killed), "parts_done_at_each_kill": killed, "runs": runs}
    return {**facts, "deaths_of_parts": deaths}, result(out) == whole


@contextlib.contextmanager
def cluster() -> Iterator[tuple[Any, str]]:
    """A head without processors and two nodes with one each."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
        yield nodes, nodes.address
    finally:
        nodes.shutdown()


def add_to(path: Path, result: dict[str, object]) -> None:
    """Append a run to those of a result file."""
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    machine = describe_machine(1)
    runs.append({**result, "command": machine.pop("command"), "commit": machine.pop("commit")})
    path.write_text(json.dumps({"machine": machine, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
