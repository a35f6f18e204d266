"""A further normal class that is proposed: made in the background, looked at, then accepted."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import BlissError, InvalidInputError
from bliss_index.review.extension import ClassEffect, Extension
from bliss_index.review.inputs import ReviewInputs

NONE, WORKING, DONE, FAILED, ACCEPTED = "none", "working", "done", "failed", "accepted"


class ExtensionProposal:
    """At most one extension of a run, and what is known of it.

    Every method may be called from any thread.

    Parameters
    ----------
    inputs : ReviewInputs
        The run.
    """

    def __init__(self, inputs: ReviewInputs) -> None:
        self._inputs = inputs
        self._lock = threading.Lock()
        self._extension: Extension | None = None
        self._thread: threading.Thread | None = None
        self.state = NONE
        self.step = ""
        self.error = ""
        self.comparison: ClassEffect | None = None

    def begin(self, name: str, rows: npt.NDArray[np.int64]) -> None:
        """Begin to make one, in place of one that was not accepted.

        Raises
        ------
        InvalidInputError
            Another is being made, or it cannot be made.
        StoreError
            Something that it needs is gone.
        """
        with self._lock:
            if self.state == WORKING:
                raise InvalidInputError("another class is being tried; wait for it to end")
            self._extension = Extension.begin(self._inputs, name, np.sort(rows))
            self.state, self.step, self.error, self.comparison = WORKING, "beginning", "", None
            self._thread = threading.Thread(target=self._make, args=(self._extension,), daemon=True)
            self._thread.start()

    def _make(self, extension: Extension) -> None:
        try:
            self.comparison = extension.make(self._say)
            self.state = DONE
        except BlissError as error:
            self.state, self.error = FAILED, str(error)
        except Exception as error:  # a thread has nobody else to tell it to
            self.state, self.error = FAILED, repr(error)

    def _say(self, step: str) -> None:
        self.step = step

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it is made, or has failed."""
        if self._thread is not None:
            self._thread.join(seconds)

    def accept(self) -> Path:
        """Make what was compared a run of its own; return its directory.

        Raises
        ------
        InvalidInputError
            There is nothing to accept.
        OutputError
            It cannot be written.
        """
        with self._lock:
            if self.state != DONE or self._extension is None:
                raise InvalidInputError("there is no class to accept: try one, and compare first")
            self._extension.accept()
            self.state = ACCEPTED
            return self._extension.folder

    def to_json(self) -> dict[str, Any]:
        """Return its state and, when it is made, its numbers."""
        found: dict[str, Any] = {"state": self.state, "step": self.step, "error": self.error}
        if self.comparison is not None and self._extension is not None:
            of = self.comparison
            found.update(
                name=of.name, images=of.images, threshold=of.threshold, flagged=of.flagged,
                no_longer=int(of.no_longer.size), newly=int(of.newly.size), groups=of.groups,
                folder=str(self._extension.folder),
            )  # fmt: skip
        return found
