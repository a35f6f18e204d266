"""``export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bliss_index.cli.console import EXIT_QUARANTINED, print_facts, print_json, say
from bliss_index.cli.options import JsonOption, one_of, path, path_or_uri

if TYPE_CHECKING:
    from bliss_index.export import FileOutcome

_WHAT = ("drop", "keep", "unscored")
_FORMATS = ("csv", "parquet", "txt", "tars", "metadata")


def _formats(values: list[str] | None) -> list[str] | None:
    for value in values or ():
        one_of(_FORMATS)(value)
    return values


def local_folder(value: str) -> Path:
    """Read an option that is a folder of files; one in an object store is refused."""
    from bliss_index.storage.files import is_address

    if is_address(value):
        raise typer.BadParameter(
            f"{value} is an address; files are copied, linked and moved between folders of this "
            "machine only. --out takes addresses: write the lists, and let the store's own tools "
            "move what they name"
        )
    return Path(value)


def export(
    scores: Annotated[
        str | None,
        typer.Argument(help="Scores directory; local or a URI.", parser=path_or_uri),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            help="Directory for the lists keep, drop and unscored; local or a URI.",
            parser=path_or_uri,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            help="Drop the images from this anomaly score on.",
            show_default="those that the scores flag",
        ),
    ] = None,
    top: Annotated[
        int | None, typer.Option("--top", min=0, help="Drop so many with the highest scores.")
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            "--groups",
            help="File of 'bliss-index groups --out FILE': adds the column 'group'.",
            parser=path_or_uri,
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", help="Drop only images of this group; repeat for several."),
    ] = None,
    judgements: Annotated[
        Path | None,
        typer.Option(
            "--judgements",
            help="Folder of the logs of 'bliss-index review': what was judged is kept or dropped "
            "as it was judged, the others as without; --top 0 drops only what was judged.",
            parser=path,
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help=f"Of the lists: {', '.join(_FORMATS)} ('tars': one list for every webdataset tar; "
            "'metadata': metadata.csv of what is kept); repeat for several.",
            show_default="csv",
            callback=_formats,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images", help="The folder that was encoded, for its files.", parser=local_folder
        ),
    ] = None,
    copy: Annotated[
        Path | None,
        typer.Option("--copy", help="Copy files into this folder.", parser=local_folder),
    ] = None,
    link: Annotated[
        Path | None,
        typer.Option("--link", help="Link to files in this folder.", parser=local_folder),
    ] = None,
    move: Annotated[
        Path | None,
        typer.Option(
            "--move", help="Move files into this folder; see --undo.", parser=local_folder
        ),
    ] = None,
    what: Annotated[
        str,
        typer.Option("--what", help=f"Which files: {', '.join(_WHAT)}.", callback=one_of(_WHAT)),
    ] = "drop",
    undo: Annotated[
        Path | None,
        typer.Option(
            "--undo",
            help="Move the files in this folder back to their places.",
            parser=local_folder,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write lists of what to keep and what to drop, or copy, link or move the files.

    Nothing is deleted or replaced. Every dropped image is listed with its score and the reasons.
    """
    from bliss_index.export import Choice, FileAction, transfer_files, undo_moves
    from bliss_index.export import export as write_lists

    actions = {FileAction.COPY: copy, FileAction.LINK: link, FileAction.MOVE: move}
    asked = {action: folder for action, folder in actions.items() if folder is not None}
    if undo is not None:
        if scores is not None or out is not None or asked:
            raise typer.BadParameter("--undo FOLDER takes no SCORES, --out, --copy, --link, --move")
        _print_files(undo_moves(undo, dry_run=dry_run), undo, dry_run, as_json)
        return
    if scores is None:
        raise typer.BadParameter("SCORES is missing, or --undo FOLDER")
    if len(asked) > 1:
        raise typer.BadParameter("give one of --copy, --link and --move")
    if not asked and out is None and not dry_run:
        raise typer.BadParameter("say where to: --out DIR for lists, or --copy, --link or --move")
    if asked and images is None:
        raise typer.BadParameter("--copy, --link and --move need --images FOLDER")
    judged = None if judgements is None else str(judgements)
    choice = Choice(threshold, top, tuple(group or ()), groups, judged)
    summary = write_lists(
        scores, out or ".", choice, formats=tuple(formats or ("csv",)),
        dry_run=dry_run or out is None,
    )  # fmt: skip
    outcome = None
    for action, folder in asked.items():
        outcome = transfer_files(
            scores, images or Path(), folder, action, choice, what=what, dry_run=dry_run
        )
    if as_json:
        files = None if outcome is None else outcome.to_json()
        print_json({**summary.to_json(), "dry_run": dry_run, "transfer": files})
    else:
        lists = {} if out is None else {"would write" if dry_run else "lists": summary.files}
        people = {} if judgements is None else {
            "as judged": summary.judged, "disputed": summary.disputed,
        }  # fmt: skip
        print_facts(
            scores,
            {"images": summary.rows, "keep": summary.kept, "drop": summary.dropped,
             "without a score": summary.unscored, **people, **lists},
        )  # fmt: skip
    if outcome is not None:
        folder = next(iter(asked.values()))
        _print_files(outcome, folder, dry_run, as_json=False, quiet=as_json)


def _print_files(
    found: FileOutcome, folder: Path, dry_run: bool, as_json: bool, quiet: bool = False
) -> None:
    if as_json:
        print_json(found.to_json())
    elif not quiet:
        past = {"copy": "copied", "link": "linked", "move": "moved", "undo": "moved back"}
        verb = f"would be {past[found.action]}" if dry_run else past[found.action]
        facts = {verb: f"{found.done} files", "the first": found.first}
        if found.journal is not None and not dry_run:
            facts["undo with"] = f"bliss-index export --undo {folder}"
        print_facts(str(folder), facts)
    if found.missing:
        say(f"{found.missing} files are not there, the first: {', '.join(found.first_missing)}")
        raise typer.Exit(EXIT_QUARANTINED)
