"""Break the code in small ways, one at a time, and see whether its tests notice.

    python scripts/mutants.py --json benchmarks/results/mutants.json
    python scripts/mutants.py --only scoring/thresholds.py --each 20 --seed 1

Named mutants are faults that tests once let through. The others are generated: a comparison, an
operator, a number or a condition is changed, or a statement that only calls something is left out;
of each module some are drawn by a seed. A mutant is killed if a test of its module fails or does
not end in time. Files are changed in place and restored, so the checkout must be clean: use a clone
of its own, with its own .venv (bash scripts/test.sh makes it).
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bliss_index"
# The tests that are to notice, the fastest first.
TESTS = {
    "scoring/thresholds.py": ["evaluation_thresholds", "detector"],
    "scoring/formulas.py": ["scoring", "shrinkage"],
    "scoring/tables.py": ["kept_tables", "scoring", "shrinkage", "detector"],
    "scoring/kept_tables.py": ["kept_tables"],
    "search/sharded.py": ["sharded"],
    "storage/kept.py": ["kept_tables", "prepared", "faiss_index"],
    "scoring/scorer.py": ["scoring", "shrinkage", "detector"],
    "api/detector.py": ["bad_rows", "detector", "undisturbed"],
    "scoring/normal_scores.py": ["bad_rows", "evaluation_thresholds", "screening"],
    "scoring/score_inputs.py": ["bad_rows", "inputs", "bulk"],
    "calibration/moments.py": ["calibration", "shrinkage"],
    "calibration/from_store.py": [
        "names",
        "bad_rows",
        "calibration",
        "labels",
        "evaluation_thresholds",
        "screening",
    ],
    "calibration/image_term.py": ["image_term", "shrinkage"],
    "evaluation/weights.py": ["image_term"],
    "search/prepared.py": ["prepared"],
    "calibration/unlabelled.py": ["bad_rows", "calibration", "screening"],
    "jobs/record.py": ["jobs", "growth", "bulk"],
    "jobs/state.py": ["jobs", "growth", "bulk"],
    "jobs/part.py": ["jobs", "growth", "bulk"],
    "jobs/manifest.py": ["jobs", "growth", "bulk"],
    "storage/files.py": ["jobs", "store", "races"],
    "store/shards.py": ["store", "repeated_keys", "encode_store"],
    "search/certificate/ordering.py": ["rescoring", "exact_search"],
    "search/duplicates.py": ["duplicates", "exact_search"],
    "search/inputs.py": ["detector", "exact_search", "undisturbed"],
    "search/exact.py": ["exact_search", "registry"],
    "search/faiss/candidates.py": ["faiss_index"],
    "search/faiss/search.py": ["faiss_index"],
    "search/index.py": ["faiss_index", "near_search", "races"],
    "search/lists.py": ["near_search"],
    "search/near_index.py": ["near_search"],
    "search/torch/backend.py": ["torch_proposals", "rescoring", "exact_search"],
    "search/torch/proposals.py": ["torch_proposals", "exact_search"],
    "search/torch/rescoring.py": ["rescoring", "exact_search"],
    "store/formats/declared_bytes.py": ["declared_bytes"],
    "store/formats/parquet_footer.py": ["parquet_footer"],
}
_SWAPPED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or,
    ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.FloorDiv: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A change of a file.

    Attributes
    ----------
    module : str
        Path in the package.
    what : str
        The change, in words.
    text : str
        The file with it.
    """

    module: str
    what: str
    text: str


@dataclass(frozen=True)
class _Named:
    module: str
    what: str
    old: str
    new: str


NAMED = (
    _Named(
        "api/detector.py", "contamination's rank counts scores that are NaN",
        "scores = known[np.isfinite(known)]", "scores = known",
    ),
    _Named(
        "api/detector.py", "bad rows are held out like others",
        "used = good & (labels >= 0)", "used = labels >= 0",
    ),
    _Named(
        "scoring/normal_scores.py", "bad rows of a store are held out like others",
        "used[shard.start : shard.start + shard.rows] &= shard.good", "pass",
    ),
    _Named(
        "calibration/from_store.py", "bad rows count in what is trimmed",
        "numbers[shard.start : shard.start + shard.rows][~shard.good] = NO_CLASS", "pass",
    ),
    _Named(
        "storage/kept.py", "the file of an index that was built again stays",
        "folder.remove(one)", "pass",
    ),
    _Named(
        "search/faiss/search.py", "a flat index's bound forgets the rounding of what it stores",
        'unit = _UNIT_32 if self._placement.storage == "float32" else _UNIT_16', "unit = 0.0",
    ),
    _Named(
        "storage/files.py", "content is not synced before it gets its name",
        "os.fsync(self._raw.fileno())", "pass",
    ),
    _Named(
        "store/shards.py", "embeddings of repeated keys stay",
        "matrix[repeated] = 0", "pass",
    ),
    _Named(
        "scoring/score_inputs.py", "embeddings of quarantined rows stay",
        "unit[status != OK] = 0", "pass",
    ),
)  # fmt: skip


def named(module: str) -> Iterator[Mutant]:
    """Mutants of a module that are listed by hand; ValueError if one no longer fits the code."""
    text = (PACKAGE / module).read_text()
    for one in NAMED:
        if one.module != module:
            continue
        if text.count(one.old) != 1:
            raise ValueError(f"{module} has {text.count(one.old)} times: {one.old}")
        yield Mutant(module, f"named: {one.what}", text.replace(one.old, one.new))


def generated(module: str) -> list[Mutant]:
    """Every mutant of a module that the operators make."""
    text = (PACKAGE / module).read_text()
    tree = ast.parse(text)
    found = []
    for number, node in enumerate(ast.walk(tree)):
        for what, change in _changes(node):
            changed = copy.deepcopy(tree)
            twin = next(n for at, n in enumerate(ast.walk(changed)) if at == number)
            change(twin)
            found.append(Mutant(module, what, ast.unparse(ast.fix_missing_locations(changed))))
    return found


def _changes(node: ast.AST) -> Iterator[tuple[str, object]]:
    line = getattr(node, "lineno", 0)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPPED:
        new = _SWAPPED[type(node.ops[0])]
        yield (
            f"{line}: {ast.unparse(node)} with {new.__name__}",
            lambda n: n.ops.__setitem__(0, new()),
        )
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in _SWAPPED:
        if isinstance(node, ast.BinOp) and _is_type(node):
            return
        other = _SWAPPED[type(node.op)]
        yield (
            f"{line}: {ast.unparse(node)} with {other.__name__}",
            lambda n: setattr(n, "op", other()),
        )
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield f"{line}: {node.value} plus one", lambda n: setattr(n, "value", n.value + 1)
    if isinstance(node, ast.If | ast.IfExp) and ast.unparse(node.test) != "TYPE_CHECKING":
        yield f"{line}: never if {ast.unparse(node.test)}", _never
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield f"{line}: without {ast.unparse(node)}", _without


def _is_type(node: ast.BinOp) -> bool:
    """Whether it is a union in an annotation, as far as one can see."""
    names = ast.unparse(node).replace("|", " ").split()
    known = ("None", "str", "int", "float", "bytes", "Path")
    return isinstance(node.op, ast.BitOr) and any(name in known for name in names)


def _never(node: ast.If) -> None:
    node.test = ast.Constant(False)


def _without(node: ast.Expr) -> None:
    node.value = ast.Constant(None)


def survives(mutant: Mutant, timeout: float) -> bool:
    """Run the module's tests with the mutant in place."""
    path = PACKAGE / mutant.module
    original = path.read_text()
    tests = [f"tests/test_{name}.py" for name in TESTS[mutant.module]]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    try:
        path.write_text(mutant.text)
        done = subprocess.run(
            [*command, "-m", "not slow and not gpu", *tests],
            cwd=ROOT, timeout=timeout, capture_output=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    finally:
        path.write_text(original)
    return done.returncode == 0


def main() -> None:
    """Draw mutants, run them, say which survive."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=TESTS, default=list(TESTS), metavar="MODULE")
    parser.add_argument("--each", type=int, default=10, help="generated mutants of a module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=300, help="seconds")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    status = ["git", "status", "--porcelain", "--untracked-files=no"]
    if subprocess.run(status, cwd=ROOT, capture_output=True, text=True, check=True).stdout:
        parser.error(f"{ROOT} has changes that are not committed; run this in a clean clone")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    modules: dict[str, dict[str, int]] = {}
    survivors = []
    for module in given.only:
        every = generated(module)
        # A module's draw does not depend on which others are asked for.
        drawn = random.Random(f"{given.seed} {module}").sample(every, min(given.each, len(every)))
        tried = [*named(module), *drawn]
        alive = []
        for mutant in tried:
            began = time.monotonic()
            if survives(mutant, given.timeout):
                alive.append(mutant)
                print(
                    f"SURVIVES {module} {mutant.what} ({time.monotonic() - began:.0f} s)",
                    flush=True,
                )
        survivors += alive
        modules[module] = {
            "all": len(every),
            "tried": len(tried),
            "killed": len(tried) - len(alive),
        }
        print(f"{module}: {len(tried) - len(alive)} of {len(tried)} killed", flush=True)
        if given.json:
            report = {
                "command": f"python scripts/mutants.py --each {given.each} --seed {given.seed}",
                "commit": commit,
                "tried": sum(m["tried"] for m in modules.values()),
                "killed": sum(m["killed"] for m in modules.values()),
                "modules": modules,
                "survivors": [
                    {k: v for k, v in asdict(m).items() if k != "text"} for m in survivors
                ],
            }
            given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
