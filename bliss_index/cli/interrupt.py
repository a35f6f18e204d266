"""Ctrl-C ends every command within two seconds, whatever it computes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from bliss_index.cli.console import EXIT_INTERRUPTED

GRACE_SECONDS = 1.5
INTERRUPTED = "interrupted; what is done is kept, run the same command again to continue"


def end_when_interrupted() -> None:
    """Let an interrupt end this process soon, also while it is in a long call of a library.

    Python acts on a signal between two of its own instructions, which may take long to come: a
    product of large matrices knows no signals. A thread hears of the signal at once, and ends the
    process if that has not happened by itself in time. Nothing half-written has a name, so nothing
    is lost by it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # ignored, or somebody else's to handle
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(heard,), name="interrupt", daemon=True).start()


def _watch(heard: int) -> None:
    while os.read(heard, 1) != bytes([signal.SIGINT]):
        pass
    time.sleep(GRACE_SECONDS)
    if sys.stderr is not None:
        os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(EXIT_INTERRUPTED)
