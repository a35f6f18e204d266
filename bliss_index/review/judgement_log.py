"""What people decided about images: a log for each person, to which lines are only added.

A log is ``NAME.jsonl`` in one folder. Its first line names the format and the person, every other
one an action: a verdict on some keys, an undo of an earlier verdict, or a random draw of images to
judge. A line carries a hash of itself and is on disk before the action counts. So of a process
that is killed at most the last line is torn; it was never shown as saved, and is passed over by
name. Nothing that counted is ever rewritten: an undo is a line, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bliss_index.errors import CorruptStoreError, InvalidInputError, OutputError
from bliss_index.jobs.description import FORMAT_VERSION, require_format
from bliss_index.storage.files import NewFile, make_directory, output_error
from bliss_index.storage.locks import DirectoryLock

BELONGS, DOES_NOT_BELONG, SKIP = "belongs", "does_not_belong", "skip"
VERDICTS = (BELONGS, DOES_NOT_BELONG, SKIP)
SCORED, UNFLAGGED = "scored", "unflagged"
DRAWN_FROM = (SCORED, UNFLAGGED)
"""What a draw is from: all images with a score, or those that nobody judged and nothing flagged."""

_FORMAT = "bliss_index.judgements"
LOG_SUFFIX = ".jsonl"
_KEYS_PER_LINE = 10_000
NO_VERDICT = len(VERDICTS)
_LONGEST_NAME = 64


@dataclass(frozen=True)
class Draw:
    """Images drawn at random to be judged in their order.

    Attributes
    ----------
    name : str
        Person and number of the action, such as ``ann:12``.
    of : str
        One of :data:`DRAWN_FROM`.
    threshold : float or None
        From which on images were flagged, of a draw from those that were not.
    population : int
        Images that it was drawn from, each with the same probability.
    keys : tuple of str
        The images, in random order.
    time : str
        When, in UTC.
    """

    name: str
    of: str
    threshold: float | None
    population: int
    keys: tuple[str, ...]
    time: str


@dataclass(eq=False)
class _Action:
    """A verdict, and what its keys had before it."""

    verdict: int
    keys: list[str]
    before: bytes


@dataclass(eq=False)
class PersonalLog:
    """What one log says.

    Attributes
    ----------
    person : str
    verdicts : dict of str to int
        Position in :data:`VERDICTS` of the last verdict on every key that was not undone.
    draws : list of Draw
    notes : list of str
        What was passed over, and why.
    actions : int
        Number of the last action.
    """

    person: str
    verdicts: dict[str, int] = field(default_factory=dict)
    draws: list[Draw] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    actions: int = 0
    _standing: dict[int, _Action] = field(default_factory=dict)

    @property
    def undoable(self) -> int | None:
        """Number of the last verdict that stands; None without one."""
        return next(reversed(self._standing), None)

    def judge(self, number: int, verdict: int, keys: list[str]) -> None:
        """Let a verdict count."""
        before = bytes(self.verdicts.get(key, NO_VERDICT) for key in keys)
        self.verdicts.update(dict.fromkeys(keys, verdict))
        self._standing[number] = _Action(verdict, keys, before)
        self.actions = number

    def undo(self, number: int, undone: int) -> tuple[str, list[str]]:
        """Take back the last verdict that stands; return it and its keys.

        Raises
        ------
        InvalidInputError
            Another verdict came after it.
        """
        if undone != self.undoable:
            raise InvalidInputError(f"action {undone} is not the last that stands: {self.undoable}")
        action = self._standing.pop(undone)
        for key, code in zip(action.keys, action.before, strict=True):
            if code == NO_VERDICT:
                del self.verdicts[key]
            else:
                self.verdicts[key] = code
        self.actions = number
        return VERDICTS[action.verdict], action.keys


class JudgementLog:
    """The log of one person, open for more; a context manager.

    Parameters
    ----------
    folder : Path
        Of all logs; made if it is not there.
    person : str
        Letters, digits, ``.``, ``_`` and ``-``, at most 64.

    Attributes
    ----------
    log : PersonalLog
        What it says now.

    Raises
    ------
    InvalidInputError
        The name is of another form.
    OutputError
        The folder cannot be written, or another process has this log open.
    CorruptStoreError
        The log is damaged.
    """

    def __init__(self, folder: Path, person: str) -> None:
        self.path = folder / f"{require_person(person)}{LOG_SUFFIX}"
        make_directory(folder)
        self._lock = DirectoryLock(folder, f".lock-{person}")
        self._file: Any = None
        self.log = PersonalLog(person)

    def __enter__(self) -> JudgementLog:
        try:
            self._lock.acquire()
        except OutputError as error:
            raise OutputError(
                f"the judgements of {self.log.person} are being written by another process: "
                f"{error} Several people judge together under their own names: --person NAME"
            ) from error
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def _open(self) -> None:
        if not self.path.exists():
            header = {"format": _FORMAT, "format_version": FORMAT_VERSION}
            content = NewFile(self.path.parent)
            content.sink.write(_line({**header, "person": self.log.person}))
            content.commit(self.path.name)
        self.log, torn = _read(self.path)
        try:
            self._file = self.path.open("ab", buffering=0)
            if torn is not None:
                self._append([{"kind": "recovered", "bytes": torn}], before=b"\n")
        except OSError as error:
            raise output_error(self.path, error) from error

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        self._lock.release()

    def judge(self, verdict: str, keys: Sequence[str], why: dict[str, Any] | None = None) -> int:
        """Append a verdict on some images, and let it count; return the action's number.

        Parameters
        ----------
        verdict : str
            One of :data:`VERDICTS`.
        keys : sequence of str
            At least one image.
        why : dict, default=None
            How the images were chosen, JSON-ready.

        Raises
        ------
        InvalidInputError
            There is no such verdict, or no key.
        OutputError
            The log cannot be written; nothing counts then.
        """
        if verdict not in VERDICTS:
            raise InvalidInputError(f"verdict {verdict!r} is not one of {', '.join(VERDICTS)}")
        keys = list(dict.fromkeys(keys))
        if not keys:
            raise InvalidInputError("a verdict needs at least one image, got none")
        number = self.log.actions + 1
        parts = range(0, len(keys), _KEYS_PER_LINE)
        self._append_action(
            number, "verdict",
            [
                {"verdict": verdict, "keys": keys[at : at + _KEYS_PER_LINE], "why": why or {},
                 "part": part, "parts": len(parts)}
                for part, at in enumerate(parts)
            ],
        )  # fmt: skip
        self.log.judge(number, VERDICTS.index(verdict), keys)
        return number

    def undo(self) -> tuple[str, list[str]] | None:
        """Append that the last verdict that stands is taken back; return it and its keys.

        Returns None where no verdict is left. OutputError as of :meth:`judge`.
        """
        undone = self.log.undoable
        if undone is None:
            return None
        number = self.log.actions + 1
        self._append_action(number, "undo", [{"undoes": undone}])
        return self.log.undo(number, undone)

    def draw(
        self, of: str, population: int, keys: Sequence[str], threshold: float | None = None
    ) -> Draw:
        """Append a random draw; errors as of :meth:`judge`."""
        number = self.log.actions + 1
        values = {"of": of, "threshold": threshold, "population": population, "keys": list(keys)}
        self._append_action(number, "draw", [values])
        made = _draw(self.log.person, number, {**values, "time": _now()})
        self.log.actions = number
        self.log.draws.append(made)
        return made

    def _append_action(self, number: int, kind: str, lines: list[dict[str, Any]]) -> None:
        when = {"action": number, "kind": kind, "time": _now()}
        try:
            self._append([{**when, **line} for line in lines])
        except OSError as error:
            raise output_error(self.path, error) from error

    def _append(self, lines: list[dict[str, Any]], before: bytes = b"") -> None:
        """Write lines and bring them to disk; what a failure leaves is cut off by name."""
        data = before + b"".join(map(_line, lines))
        start = os.fstat(self._file.fileno()).st_size
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
            os.fsync(self._file.fileno())
        except OSError:
            # Of this process and of no action that counted: a line that is half there goes.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), start)
            raise


def require_person(name: str) -> str:
    """Return a name that may be that of a file.

    Raises
    ------
    InvalidInputError
        It may not.
    """
    fine = 0 < len(name) <= _LONGEST_NAME and all(c.isalnum() or c in "._-" for c in name)
    if not fine or name.startswith("."):
        raise InvalidInputError(
            f"{name!r} is no name for a log: take letters, digits, '.', '_' and '-', at most "
            f"{_LONGEST_NAME}, as in --person ann"
        )
    return name


def read_log(path: Path) -> PersonalLog:
    """Read one log; CorruptStoreError where it is damaged."""
    return _read(path)[0]


def _read(path: Path) -> tuple[PersonalLog, int | None]:
    """Read a log; return it and how many bytes are torn at its end, None where a line ends it."""
    lines = enumerate(_lines(path), 1)
    _, first = next(lines, (1, b""))
    header = _values(first)
    if header is None:
        raise _damaged(path, 1, "it is no line of a log")
    require_format(path, header, _FORMAT)
    log = PersonalLog(path.name.removesuffix(LOG_SUFFIX))
    if header.get("person") != log.person:
        raise _damaged(path, 1, f"it is the log of {header.get('person')!r}")
    pending: list[dict[str, Any]] = []
    torn: int | None = None
    torn_line, line = 0, first
    for number, line in lines:
        values = _values(line)
        if values is None:
            torn_line = number if torn is None else torn_line
            torn = (torn or 0) + len(line.rstrip(b"\n"))
            continue
        if torn is not None:
            if values.get("kind") != "recovered" or values.get("bytes") != torn:
                raise _damaged(path, torn_line, "its hash does not fit")
            log.notes.append(_torn(path, torn_line, torn))
            torn = None
            continue
        if values.get("kind") == "recovered" and values.get("bytes") == 0:
            continue  # the line before had everything but its end
        try:
            pending = _replay(log, values, pending, path, number)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise _damaged(path, number, repr(error)) from error
    if pending:
        log.notes.append(_unfinished(path, pending))
    if torn is not None:
        log.notes.append(_torn(path, torn_line, torn))
    elif not line.endswith(b"\n"):
        torn = 0
    return log, torn


def _replay(
    log: PersonalLog, values: dict[str, Any], pending: list[dict[str, Any]], path: Path, line: int
) -> list[dict[str, Any]]:
    """Let one line count; return the lines of an action that goes on."""
    number, kind = int(values["action"]), values["kind"]
    if pending and (kind != "verdict" or number != pending[0]["action"] or not values["part"]):
        log.notes.append(_unfinished(path, pending))
        pending = []
    if number <= log.actions or len(pending) != values.get("part", 0):
        raise _damaged(path, line, f"action {number} comes after {log.actions}")
    if kind == "verdict":
        pending = [*pending, values]
        if len(pending) < values["parts"]:
            return pending
        keys = [key for part in pending for key in part["keys"]]
        log.judge(number, VERDICTS.index(values["verdict"]), keys)
    elif kind == "undo":
        log.undo(number, values["undoes"])
    elif kind == "draw":
        log.draws.append(_draw(log.person, number, values))
        log.actions = number
    else:
        raise _damaged(path, line, f"{kind!r} is no kind of action; written by a newer version?")
    return []


def _draw(person: str, number: int, values: dict[str, Any]) -> Draw:
    return Draw(
        f"{person}:{number}", values["of"], values["threshold"], int(values["population"]),
        tuple(values["keys"]), values["time"],
    )  # fmt: skip


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise CorruptStoreError(f"{path} cannot be read: {error.strerror}") from error


def _line(values: dict[str, Any]) -> bytes:
    """An action as a line, with a hash of itself."""
    text = _canonical(values)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f'{text[:-1]},"check":"{digest}"}}\n'.encode()


def _canonical(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def _values(line: bytes) -> dict[str, Any] | None:
    """What a line says; None where it is torn or altered."""
    try:
        values = json.loads(line)
        digest = values.pop("check")
        fits = hashlib.sha256(_canonical(values).encode()).hexdigest()[:16] == digest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return values if fits else None


def _damaged(path: Path, line: int, reason: str) -> CorruptStoreError:
    return CorruptStoreError(
        f"{path} is damaged in line {line}: {reason}. Restore it from a copy; its other lines are "
        "whole"
    )


def _torn(path: Path, line: int, size: int) -> str:
    return f"{path}: line {line} is torn ({size} bytes); that action was never shown as saved"


def _unfinished(path: Path, pending: list[dict[str, Any]]) -> str:
    first = pending[0]
    return (
        f"{path}: action {first['action']} has {len(pending)} of {first['parts']} lines; it was "
        "never shown as saved"
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
