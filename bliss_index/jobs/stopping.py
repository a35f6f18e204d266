"""SIGTERM: what is under way is finished, nothing more is begun."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def sigterm_noted() -> Iterator[Callable[[], bool]]:
    """Let SIGTERM only be noted within the block; a second one ends the process at once.

    Where the signal is somebody else's to handle, or outside the main thread, nothing changes.

    Yields
    ------
    A function that says whether it came.
    """
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        came.append(number)

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if ours:
        signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: bool(came)
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
