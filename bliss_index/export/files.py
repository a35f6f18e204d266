"""Copies, links or moves the files of a list; a move is journalled and can be undone.

The journal is written before the first file is moved: every move that is meant, relative to both
folders. A file then is in its old place, in its new one, or, when the process died between two
steps, in both as one file with two names. So the same call goes on where it stopped, and
:func:`undo_moves` brings everything back. No file is replaced, and none is removed while it has not
got its other name.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pyarrow as pa

from bliss_index.errors import CorruptStoreError, InvalidInputError, OutputError, listed
from bliss_index.export.choice import DECISIONS, Choice, decide
from bliss_index.scoring.scores_directory import ScoresDirectory
from bliss_index.storage.files import (
    NewFile,
    atomic_file,
    is_address,
    make_directory,
    output_error,
    sync_directory,
)

JOURNAL = "_moves.jsonl"
_FORMAT = "bliss_index.moves"
_FORMAT_VERSION = 1
_COPY_BYTES = 1 << 20
_FIRST = 10


class FileAction(str, Enum):
    """What is done with the files."""

    COPY = "copy"
    LINK = "link"
    MOVE = "move"


@dataclass(frozen=True)
class FileOutcome:
    """What was done with the files of a list.

    Attributes
    ----------
    action : str
    done : int
        Files that are at their new place now (of an undo: at their old one); that includes those
        of an earlier call.
    missing : int
        Files that are not below the folder of images: they were passed over.
    first_missing, first : tuple of str
        Keys of the first of these, and of the first files.
    journal : str or None
        What undoes a move.
    """

    action: str
    done: int
    missing: int
    first_missing: tuple[str, ...]
    first: tuple[str, ...]
    journal: str | None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def transfer_files(
    scores: str | Path,
    images: str | Path,
    target: str | Path,
    action: FileAction,
    choice: Choice | None = None,
    *,
    what: str = "drop",
    dry_run: bool = False,
) -> FileOutcome:
    """Copy, link or move the files of a list into a folder, in the sub-folders that they are in.

    Parameters
    ----------
    scores : str or Path
        Directory of a complete job.
    images : str or Path
        The folder that was encoded; keys are paths below it.
    target : str or Path
        Where to; it may hold what an earlier call brought there, and nothing is replaced.
    action : FileAction
        Copy, link (by symbolic links) or move.
    choice : Choice, optional
        As for :func:`bliss_index.export.export`.
    what : str, default="drop"
        The list: "drop", "keep" or "unscored".
    dry_run : bool, default=False
        Look at every file and change nothing.

    Returns
    -------
    FileOutcome

    Raises
    ------
    InvalidInputError
        A folder is an address; a key leads out of the folder, or keys are not unique, so that a
        file may be in two lists.
    OutputError
        A file of another content has the place of one; or the folder is in another file system,
        or holds a journal of other moves (move only). Nothing was changed then.
    """
    if what not in DECISIONS:
        raise InvalidInputError(f"{what!r} is not one of {', '.join(DECISIONS)}")
    for folder in (images, target):
        if is_address(folder):
            raise InvalidInputError(
                f"{folder} is an address; files are copied, linked and moved between folders of "
                "this machine only: write lists there with export(), and let the store's own tools "
                "move what they name"
            )
    source, goal, action = Path(images), Path(target), FileAction(action)
    if not source.is_dir():
        raise InvalidInputError(f"{images} is not a folder of images")
    source, goal = source.resolve(), goal.resolve()
    if goal == source or goal in source.parents:
        raise InvalidInputError(f"{target} is or holds the folder of images {images}")
    moving = action is FileAction.MOVE
    journal, before = goal / JOURNAL, set[str]()
    if moving:
        _require_one_system(source, goal)
        before = _moved_before(journal, source)
    listed_keys = _listed_keys(ScoresDirectory.open(scores), choice or Choice(), what)
    keys: list[str] = []
    missing: list[str] = []
    for key in listed_keys:
        _require_inside(source, key)
        there = _is_file(source / key) or (key in before if moving else _there(goal / key))
        (keys if there else missing).append(key)
    _check_places(keys, source, goal, action)
    if not dry_run:
        make_directory(goal)
        if moving:
            _write_journal(journal, source, list(dict.fromkeys([*sorted(before), *keys])))
        _each(keys, lambda key: _transfer(action, source / key, goal / key))
    return FileOutcome(
        action.value, len(keys), len(missing), tuple(missing[:_FIRST]), tuple(keys[:_FIRST]),
        str(journal) if moving else None,
    )  # fmt: skip


def undo_moves(target: str | Path, *, dry_run: bool = False) -> FileOutcome:
    """Move files back to where they came from.

    Parameters
    ----------
    target : str or Path
        The folder that they were moved to.
    dry_run : bool, default=False
        Look at every file and change nothing.

    Returns
    -------
    FileOutcome
        Files that are in neither place count as missing: somebody else moved them.

    Raises
    ------
    InvalidInputError
        The folder has no journal.
    CorruptStoreError
        Its journal is damaged.
    OutputError
        Another file has the old place of one; nothing was changed then.
    """
    goal = Path(target).resolve()
    journal = goal / JOURNAL
    if not journal.is_file():
        raise InvalidInputError(
            f"{target} has no {JOURNAL}: nothing was moved there. Copies and links can be removed, "
            "their originals are where they were"
        )
    source, keys = _read_journal(journal)
    missing = [k for k in keys if not _there(goal / k) and not _there(source / k)]
    gone = set(missing)
    keys = [key for key in keys if key not in gone]
    taken = [
        key for key in keys
        if _there(goal / key) and _there(source / key) and not _same(goal / key, source / key)
    ]  # fmt: skip
    if taken:
        raise OutputError(
            f"{len(taken)} files are in the old place and are others now: {listed(taken)}, below "
            f"{source}; move one of the two away, then undo again"
        )
    if not dry_run:
        _each(keys, lambda key: _move(goal / key, source / key))
        if not missing:
            journal.unlink(missing_ok=True)
    return FileOutcome("undo", len(keys), len(missing), tuple(missing[:_FIRST]),
                       tuple(keys[:_FIRST]), None)  # fmt: skip


def _listed_keys(directory: ScoresDirectory, choice: Choice, what: str) -> list[str]:
    """The keys of a list, each of which must be in no other and only once."""
    chosen = dict[str, None]()
    for decided in (True, False):  # the list first, then the others are compared with it
        for rows in decide(directory, choice):
            keys = rows.table.column("key").filter(pa.array((rows.decision == what) == decided))
            for key in keys.to_pylist():
                if key in chosen:
                    raise InvalidInputError(
                        f"key {key!r} is that of several rows, so it is not clear in which list "
                        "its file is; encode images under different keys"
                    )
                if decided:
                    chosen[key] = None
    return list(chosen)


def _require_inside(folder: Path, key: str) -> None:
    parts = key.split("/")
    if key.startswith("/") or "\0" in key or not {"", ".", ".."}.isdisjoint(parts):
        raise InvalidInputError(f"key {key!r} is not the path of a file below {folder}")
    if key == JOURNAL:
        raise InvalidInputError(f"an image is called {JOURNAL}, as the journal of moves is")
    if not (folder / key).parent.resolve().is_relative_to(folder):
        raise InvalidInputError(f"key {key!r} leads through a link out of {folder}")


def _check_places(keys: list[str], source: Path, goal: Path, action: FileAction) -> None:
    """Refuse what cannot be done, before anything is."""
    taken, links = [], []
    for key in keys:
        old, new = source / key, goal / key
        if action is FileAction.MOVE and old.is_symlink():
            links.append(key)
        if _there(new) and _there(old) and not _is_result(action, old, new):
            taken.append(key)
    if links:
        raise InvalidInputError(
            f"{len(links)} files are links, which may lead nowhere from another place: "
            f"{listed(links)}; copy or link them instead"
        )
    if taken:
        raise OutputError(
            f"{goal} has other files in the place of {len(taken)}: {listed(taken)}; nothing is "
            "replaced: choose another folder"
        )


def _is_result(action: FileAction, old: Path, new: Path) -> bool:
    """Whether what has the new place is what this action brings there."""
    if action is FileAction.LINK:
        return new.is_symlink() and os.readlink(new) == str(old)
    if action is FileAction.MOVE:
        return _same(old, new)
    return not new.is_symlink() and _equal(old, new)


def _each(keys: list[str], do: Callable[[str], None]) -> None:
    for key in keys:
        try:
            do(key)
        except OSError as error:
            raise output_error(key, error) from error


def _transfer(action: FileAction, old: Path, new: Path) -> None:
    if action is FileAction.MOVE:
        _move(old, new)
    elif not _there(new):
        make_directory(new.parent)
        if action is FileAction.LINK:
            new.symlink_to(old)
        else:
            _copy(old, new)


def _copy(old: Path, new: Path) -> None:
    file = NewFile(new.parent)
    try:
        with old.open("rb") as content:
            while block := content.read(_COPY_BYTES):
                file.sink.write(block)
        if not file.commit(new.name):
            raise OutputError(f"{new} came into being meanwhile; run the same command again")
    finally:
        file.discard()
    found = old.stat()
    os.utime(new, ns=(found.st_atime_ns, found.st_mtime_ns))


def _move(old: Path, new: Path) -> None:
    """Give a file its new name, then take the old one from it; never a file's only name."""
    if not _there(old):
        return  # moved by an earlier call
    make_directory(new.parent)
    if not _there(new):
        try:
            os.link(old, new, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise
            os.rename(old, new)  # a file system without second names
            sync_directory(new.parent)
            return
        sync_directory(new.parent)
    if not _same(old, new):
        raise OutputError(f"{new} came into being meanwhile and is another file than {old}")
    old.unlink()


def _require_one_system(source: Path, goal: Path) -> None:
    at = goal
    while not at.exists():
        at = at.parent
    if source.stat().st_dev != at.stat().st_dev:
        raise OutputError(
            f"{goal} is in another file system than {source}, into which files can only be "
            "copied: move into a folder beside the images, or copy"
        )


def _moved_before(journal: Path, source: Path) -> set[str]:
    """Keys of the moves that an earlier call began."""
    if not journal.is_file():
        return set()
    folder, keys = _read_journal(journal)
    if folder != source:
        raise OutputError(
            f"{journal.parent} holds files moved from {folder}, these are from {source}; choose "
            "another folder"
        )
    return set(keys)


def _write_journal(journal: Path, source: Path, keys: list[str]) -> None:
    """Write down all moves before the first."""
    head = {"format": _FORMAT, "format_version": _FORMAT_VERSION, "from": str(source),
            "files": len(keys)}  # fmt: skip
    with atomic_file(journal) as sink:
        for value in (head, *keys):
            sink.write(f"{json.dumps(value)}\n".encode())


def _read_journal(journal: Path) -> tuple[Path, list[str]]:
    try:
        with journal.open(encoding="utf-8") as lines:
            head = json.loads(next(lines, "null"))
            keys = list(_parsed(lines))
        ours = isinstance(head, dict) and head.get("format") == _FORMAT
        if not ours or head.get("format_version") != _FORMAT_VERSION:
            raise ValueError("it is not a journal of this version")
        if head["files"] != len(keys) or not all(isinstance(key, str) for key in keys):
            raise ValueError(f"it says {head['files']} files and names {len(keys)}")
        source = Path(head["from"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptStoreError(f"{journal} cannot be read: {error}") from error
    for key in keys:
        _require_inside(source, key)
    return source, keys


def _parsed(lines: Iterator[str]) -> Iterator[Any]:
    for line in lines:
        yield json.loads(line)


def _there(path: Path) -> bool:
    """Whether something has this name, be it a link that leads nowhere."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _same(one: Path, other: Path) -> bool:
    """Whether two names are those of one file."""
    first, second = one.lstat(), other.lstat()
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def _equal(one: Path, other: Path) -> bool:
    """Whether two files have the same bytes."""
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while block := first.read(_COPY_BYTES):
            if second.read(_COPY_BYTES) != block:
                return False
    return True
