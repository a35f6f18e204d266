"""Keeps what the calling process did to torch, numpy and its processor out of searches and scores.

Results are promised to depend on nothing but the vectors. A caller may have switched on autocast,
another default device, inference mode, numpy's errors or flush-to-zero, and may have forked after a
search. :func:`isolated` puts all of that aside for the time of a call and puts it back afterwards,
also when the call fails. It is entered where callers enter: by the public methods of searches,
scorers and calibrations. Inside another isolated call it does nothing.

What belongs to the thread is set aside here:

==========================  =====================================================================
floating-point unit         default rounding, no flush-to-zero (FTZ, DAZ), no traps
numpy                       ``errstate(all="ignore")``
autocast                    off, for every device type
inference mode, grad        both off: prepared tensors can be used in any mode later
function, dispatch modes    off: ``set_default_device``, ``with torch.device(...)``, fake tensors
after a fork                one thread, for the threads of torch and faiss do not exist in the child
==========================  =====================================================================

What belongs to the process is never changed, since other threads would see it. The code below
public methods gets along with any value of it:

==========================  =====================================================================
default dtype               every tensor is made with its dtype
precision of float32        ``factor_unit`` of ``certificate/precision.py`` widens the bounds
deterministic algorithms    as asked for; where torch has none, the error is typed
warning filters             nothing that is called warns; what does is in :func:`without_warnings`
==========================  =====================================================================
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from bliss_index.errors import InvalidInputError

P = ParamSpec("P")
R = TypeVar("R")

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu")
_Environment = ctypes.c_char * 256  # fenv_t, of 32 bytes on x86-64, 8 to 16 on Arm
_Undo = list[tuple[Callable[..., object], tuple[Any, ...]]]
_DETERMINISTIC = "use_deterministic_algorithms"
_FORKED_CUDA = "CUDA in forked subprocess"
_WARNINGS_LOCK = threading.RLock()
_LOCAL = threading.local()
_FORKED_WITH: set[str] = set()  # libraries whose threads stayed behind in the parent


def isolated(function: Callable[P, R]) -> Callable[P, R]:
    """Let a public function or method run in :func:`isolation`."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if getattr(_LOCAL, "inside", False):
            return function(*args, **kwargs)
        with isolation():
            return function(*args, **kwargs)

    return run


class isolation:  # noqa: N801, a context as those of numpy and torch
    """Put the caller's settings aside, and put them back at the end.

    Written without an ExitStack: a search of one query takes a tenth of a millisecond.

    Raises
    ------
    InvalidInputError
        torch cannot do on a GPU what it is asked for, because of deterministic algorithms or a
        fork; the message says what to change.
    """

    __slots__ = ("_undo",)

    def __enter__(self) -> None:
        self._undo: _Undo = []
        if getattr(_LOCAL, "inside", False):
            return
        try:
            self._undo.append((setattr, (_LOCAL, "inside", False)))
            _LOCAL.inside = True
            _reset_floating_point(self._undo)
            _enter(np.errstate(all="ignore"), self._undo)
            torch = sys.modules.get("torch")
            if torch is not None and hasattr(torch, "set_autocast_enabled"):  # imported to its end
                _reset_torch(torch, self._undo)
        except BaseException:
            _put_back(self._undo)
            raise

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        _put_back(self._undo)
        if isinstance(error, RuntimeError):
            typed = _typed(error)
            if typed is not None:
                raise typed from error


def _enter(context: Any, undo: _Undo) -> None:
    context.__enter__()
    undo.append((context.__exit__, (None, None, None)))


def _put_back(undo: _Undo) -> None:
    """Undo in the opposite order, each step even where one before it fails."""
    while undo:
        function, arguments = undo.pop()
        try:
            function(*arguments)
        except BaseException:
            _put_back(undo)
            raise


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore warnings of other libraries that appear once, such as those of an import.

    Filters belong to the process, so this is for what happens once, never for a search.
    """
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def threads_after_fork(library: str, threads: int) -> int:
    """Return `threads`; 1 in a child of a process that had loaded this library.

    OpenMP's threads are not copied by a fork, and a parallel region waits for them for ever.
    """
    return 1 if library in _FORKED_WITH else threads


def _reset_torch(torch: Any, undo: _Undo) -> None:
    core = torch._C
    for device in _autocast_devices():
        if torch.is_autocast_enabled(device):
            undo.append((torch.set_autocast_enabled, (device, True)))
            torch.set_autocast_enabled(device, False)
    if torch.is_inference_mode_enabled():
        _enter(torch.inference_mode(False), undo)
    if torch.is_grad_enabled():
        undo.append((core._set_grad_enabled, (True,)))
        core._set_grad_enabled(False)
    _enter(core.DisableTorchFunction(), undo)
    if core._len_torch_dispatch_stack():
        from torch.utils._python_dispatch import _disable_current_modes

        _enter(_disable_current_modes(), undo)
    if "torch" in _FORKED_WITH and (threads := torch.get_num_threads()) > 1:
        undo.append((torch.set_num_threads, (threads,)))
        torch.set_num_threads(1)


@cache
def _autocast_devices() -> tuple[str, ...]:
    import torch

    known = []
    for device in _AUTOCAST_DEVICES:
        with suppress(RuntimeError):
            torch.is_autocast_enabled(device)
            known.append(device)
    return tuple(known)


def _typed(error: RuntimeError) -> InvalidInputError | None:
    """An error of torch's that a setting of the caller's causes, with the remedy."""
    text = str(error)
    if _DETERMINISTIC in text:
        return InvalidInputError(
            "torch.use_deterministic_algorithms(True) forbids an operation of the GPU search, "
            "whose results do not depend on any order anyway: set CUBLAS_WORKSPACE_CONFIG=:4096:8 "
            f"before torch is imported, or pass warn_only=True ({text})"
        )
    if _FORKED_CUDA in text:
        return InvalidInputError(
            "this process was forked from one that had used the GPU, and CUDA does not work in "
            "it; start processes with multiprocessing's 'spawn' method, or search on the CPU"
        )
    return None


def _reset_floating_point(undo: _Undo) -> None:
    """Set the thread's rounding and treatment of denormals to C's defaults."""
    library = _c_library()
    if library is None:
        return
    get, set_, default = library
    saved = _Environment()
    if get(saved) == 0:
        undo.append((set_, (saved,)))
        set_(default)


@cache
def _c_library() -> tuple[Callable[..., int], Callable[..., int], Any] | None:
    """Fegetenv, fesetenv and FE_DFL_ENV of this C library; None where they are not found."""
    try:
        if sys.platform == "linux":
            library = ctypes.CDLL("libm.so.6")
            default = ctypes.c_void_p(-1)
        elif sys.platform == "darwin":
            library = ctypes.CDLL("libSystem.dylib")
            default = ctypes.c_void_p(
                ctypes.addressof(ctypes.c_char.in_dll(library, "_FE_DFL_ENV"))
            )
        else:
            return None
        return library.fegetenv, library.fesetenv, default
    except (OSError, AttributeError, ValueError):
        return None


def _after_fork() -> None:
    _FORKED_WITH.update({"torch", "faiss"} & set(sys.modules))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
