"""Imports go one way: down the list in docs/architecture.md, and never in a circle."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bliss_index"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
FREE = {"bliss_index", "__main__"}  # the front doors, which name everything


def documented_floors() -> list[str]:
    """Modules and packages as the page lists them, top floor first."""
    page = (ROOT / "docs" / "architecture.md").read_text().split("## ", 1)[0]
    return re.findall(r"^    (\w+)(?:/|\.py) ", page, re.MULTILINE)


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, within functions too; not those for types only.

    ``from package import name`` counts for the module ``package.name`` where there is one.
    """
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bliss_index"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def floor_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def test_every_module_has_a_place_in_the_list():
    assert set(documented_floors()) == {floor_of(module) for module in MODULES} - FREE


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"bliss_index", "bliss_index.__main__"}))
def test_imports_go_down(module):
    floors = documented_floors()
    own = floor_of(module)
    for other in imports_of(MODULES[module]):
        if floor_of(other) not in (own, *FREE):
            assert floors.index(floor_of(other)) > floors.index(own), f"{module} imports {other}"


def test_no_two_modules_import_each_other():
    graph = {module: imports_of(path) for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")
