"""mkdocs' hook: pages of the site that are made of other files.

README is cut at its headings into the front page and others; CONTRIBUTING, CHANGELOG, SECURITY
and the notebook are pages; the command line's reference comes from its parser, Python's from
docstrings, and the list of measurements from benchmarks/results. Links between the files are set
to where things stand on the site.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# README's headings that do not stay on the front page.
ELSEWHERE = {
    "Your own images": "own-images.md",
    "What the output means": "own-images.md",
    "Limits": "own-images.md",
    "Python": "python.md",
    "How fast": "benchmarks.md",
    "How good": "benchmarks.md",
}
TITLES = {
    "own-images.md": "# Your own images",
    "python.md": "# Python",
    "benchmarks.md": "# Benchmarks",
}
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "security.md",
    "examples/first_look.ipynb": "notebook.md",
}
API = {
    "api/detector.md": ("The detector", ["BlissDetector"]),
    "api/steps.md": (
        "The steps of the command line",
        ["screen", "calibrate", "score", "read_scores", "groups", "evaluate"],
    ),
    "api/search.md": ("Exact search", ["exact_search", "ExactSearch"]),
    "api/store.md": (
        "Stores, calibrations and models",
        ["EmbeddingStore", "StoreWriter", "Calibration", "load_encoder", "load_vocabulary"],
    ),
}
FRONT = """
[Score your own photos](own-images.md){ .md-button .md-button--primary }
[Tutorial](tutorial.md){ .md-button }
[Recipes](howto.md){ .md-button }
[Commands](cli.md){ .md-button }
"""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    pages = {**readme_pages(), **api_pages(), "cli.md": command_page(), "notebook.md": notebook()}
    for source, page in PAGES.items():
        if page not in pages:
            pages[page] = (ROOT / source).read_text()
            pages[page] = moved_links(pages[page], source, page)
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Set the links of pages that lie in docs/."""
    if page.file.generated_by:
        return markdown
    return moved_links(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


def on_page_content(html: str, **_: Any) -> str:
    """Show docstrings' references without their roles."""
    html = html.replace("</code>::", "</code>:")
    return re.sub(r":(?:class|func|meth|mod|attr|data|exc):\s*<code>~?", "<code>", html)


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def moved_links(text: str, source: str, page: str) -> str:
    """Set links of a file of the repository to where their targets are on the site."""

    def moved(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        if re.match(r"\w+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not target:
            path = source
        if path == "README.md":
            headings = {slug(heading): there for heading, there in ELSEWHERE.items()}
            there = headings.get(anchor[1:], "index.md")
        else:
            there = PAGES.get(path, path.removeprefix("docs/"))
        if there == page and anchor:
            return f"]({anchor})"
        return f"]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{anchor})"

    return re.sub(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", moved, text)


def readme_pages() -> dict[str, str]:
    """README by pages; the front page keeps what has no other."""
    text = (ROOT / "README.md").read_text()
    intro, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    pages = {"index.md": intro}
    for section in sections:
        heading = section.split("\n", 1)[0].removeprefix("## ")
        page = ELSEWHERE.get(heading, "index.md")
        if page not in pages:
            pages[page] = TITLES[page] + "\n\n"
            if TITLES[page] == f"# {heading}":
                section = section.split("\n", 1)[1].lstrip("\n")
        pages[page] += section
    pages = {page: moved_links(made, "README.md", page) for page, made in pages.items()}
    title, rest = pages["index.md"].split("\n\n", 1)
    pages["index.md"] = f"{title}\n{FRONT}\n{rest}"
    pages["benchmarks.md"] += results()
    return pages


def results() -> str:
    """A table of the committed measurements: processor and command of each."""
    rows = ["\n## All measurements\n", "| file | machine | command |", "| --- | --- | --- |"]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        found = json.loads(path.read_text())
        machine = found.get("machine") or found.get("machine_info") or found
        if isinstance(machine, str):
            machine = {"processor": machine}
        processor = machine.get("gpu") or machine.get("processor") or machine.get("cpu") or ""
        if isinstance(processor, dict):
            processor = processor.get("brand_raw", "")
        named = (found.get("command"), machine.get("command"), found.get("benchmark"))
        command = next((name for name in named if isinstance(name, str)), "")
        rows.append(f"| `{path.name}` | {cell(str(processor))} | {code(command)} |")
    return "\n".join(rows) + "\n"


def notebook() -> str:
    """The notebook's texts and code."""
    cells = json.loads((ROOT / "examples" / "first_look.ipynb").read_text())["cells"]
    parts = []
    for part in cells:
        text = "".join(part["source"])
        parts.append(text if part["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def api_pages() -> dict[str, str]:
    """What ``bliss_index`` exports, by the docstrings where it is defined."""
    import bliss_index

    shown = [name for _, names in API.values() for name in names]
    missing = set(bliss_index.__all__) - {*shown, "__version__", "BlissError"}
    if missing:
        raise SystemExit(f"no page for {sorted(missing)}; name them in scripts/site_pages.py")
    pages = {}
    for page, (title, names) in API.items():
        entries = []
        for name in names:
            made = getattr(bliss_index, name)
            entries.append(f"::: {made.__module__}.{made.__qualname__}\n")
        note = f"`from bliss_index import {', '.join(names)}`"
        pages[page] = f"# {title}\n\n{note}\n\n" + "\n".join(entries)
    options = "    options:\n      show_root_toc_entry: false\n      show_root_heading: false\n"
    pages["api/errors.md"] = f"# Errors\n\n::: bliss_index.errors\n{options}"
    return pages


def command_page() -> str:
    """Every command with its arguments and options, as its parser knows them."""
    import typer

    from bliss_index.cli.app import app

    group = typer.main.get_command(app)
    parts = ["# Command line\n", paragraphs(group.help)]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        context = typer.Context(command, info_name=f"bliss-index {name}")
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        parts += [f"## {name}\n", paragraphs(command.help), f"    {usage}\n"]
        rows = ["| option | meaning |", "| --- | --- |"]
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None and "--help" not in parameter.opts:
                rows.append(f"| {code(record[0].strip())} | {cell(record[1])} |")
        if len(rows) > 2:
            parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def paragraphs(text: str | None) -> str:
    """Help of a command as Markdown."""
    return cell(text or "", lines=True) + "\n"


def cell(text: str, lines: bool = False) -> str:
    """A text within a table, or with its lines."""
    text = html.escape(text.replace("\f", "").replace("\\[", "["), quote=False)
    text = re.sub(r"([|*_`\[\]])", r"\\\1", text)
    return text if lines else " ".join(text.split())


def code(text: str) -> str:
    """Code within a table."""
    return f"<code>{html.escape(' '.join(text.split())).replace('|', '&#124;')}</code>"
