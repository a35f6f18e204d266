"""Rows that go wrong in every way, for the tests of the suite's frame."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from gpu.protocol import UnavailableError


class Nothing:
    """What the rows are given."""

    def __init__(self, has_cuda: bool = False) -> None:
        self.has_cuda = has_cuda


def refuse(**_: Any) -> Nothing:
    raise RuntimeError("no bench today")


def good(bench: Nothing, number: int = 1) -> dict[str, int]:
    return {"number": number, "process": os.getpid()}


def wrong(bench: Nothing) -> dict[str, bool]:
    return {"exact": False}


def hang(bench: Nothing) -> None:
    print("going to sleep", file=sys.stderr, flush=True)
    time.sleep(600)


def leave(bench: Nothing, status: int) -> None:
    os.write(2, b"leaving now\n")
    os._exit(status)


def crash(bench: Nothing) -> None:
    os.write(2, b"about to crash\n")
    os.kill(os.getpid(), signal.SIGSEGV)


def raise_error(bench: Nothing) -> None:
    raise ValueError("a plain error")


def chatter(bench: Nothing) -> str:
    print('{"result": "not this"}', flush=True)
    os.write(1, b"nor this\n")
    return "x" * 300_000


def unavailable(bench: Nothing) -> None:
    raise UnavailableError("not on this card")


def poison(bench: Nothing) -> None:
    """Leave a device behind that raises whatever it is asked."""
    import types

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=broken)
    sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)  # type: ignore[assignment]
    os.write(2, b"Assertion `index out of bounds` failed\n")
