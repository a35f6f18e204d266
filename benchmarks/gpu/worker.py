"""Runs rows one after another, as a process that may die of one without harm to the others.

    python -m gpu.worker DESCRIPTOR

Requests come over the standard input, answers go to the file of that descriptor. The first request
names what makes the object that every row is given; see :mod:`gpu.protocol`.
"""

from __future__ import annotations

import gc
import importlib
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from gpu.protocol import UnavailableError, from_line, to_line

_FRAMES = 6
_MOST_TEXT = 4000


def main() -> None:
    answers = int(sys.argv[1])
    os.set_inheritable(answers, False)
    os.dup2(2, 1)  # what libraries print is no answer
    requests = _requests()
    opening = requests.get()
    bench = _named(opening["context"])(**opening["arguments"])
    os.write(answers, to_line({"ready": True, "cuda": bench.has_cuda}))
    while True:
        request = requests.get()
        answer = answer_row(bench, request["function"], request["parameters"])
        left = memoryview(to_line(answer))
        while left:
            left = left[os.write(answers, left) :]
        if answer.get("poisoned"):
            os._exit(1)


def answer_row(bench: Any, function: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Call a row's function; say what it returned, or what became of it."""
    answer: dict[str, Any] = {}
    try:
        answer["result"] = _named(function)(bench, **parameters)
        _synchronize()
    except UnavailableError as reason:
        answer = {"skipped": str(reason)}
    except BaseException as error:  # whatever it is, the suite has to be told
        answer = {"error": traceback.format_exc(limit=-_FRAMES)[-_MOST_TEXT:]}
        traceback.clear_frames(error.__traceback__)
    # Outside the except block, where no traceback keeps tensors alive any longer.
    try:
        _tidy()
    except Exception as error:
        answer.setdefault("error", f"the device is unusable after the row: {error}")
        answer["poisoned"] = True
    return answer


def _named(name: str) -> Callable[..., Any]:
    """Import "module:function"."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _requests() -> queue.Queue[dict[str, Any]]:
    """Read requests in a thread: when the suite is gone, this process ends within any row."""
    waiting: queue.Queue[dict[str, Any]] = queue.Queue()

    def read() -> None:
        for line in sys.stdin.buffer:
            waiting.put(from_line(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return waiting


def _synchronize() -> None:
    """Let an error of the device belong to the row that made it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _tidy() -> None:
    """Give memory back to the device; raises where an error has made its context unusable."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.ones(1, device="cuda").add_(1).item()


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc(limit=-_FRAMES)
        os._exit(1)  # the reading thread would disturb an orderly end
