"""CUDA kernels without a toolkit: compiled by the NVRTC that torch brings, run by the driver."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bliss_index.errors import BlissError, MissingDependencyError

SOURCE = Path(__file__).with_name("hopper.cu")
TARGET = "sm_90a"
_MOST_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_LOCK = threading.Lock()


class KernelError(BlissError):
    """A kernel could not be compiled, loaded or launched."""


@functools.cache
def find_compiler() -> tuple[ctypes.CDLL | None, str]:
    """Return NVRTC, or None and why there is none.

    Torch's CUDA builds bring it as a package of its own; a toolkit on the library path serves too.
    """
    major = (torch.version.cuda or "13").split(".")[0]
    for library in [*_bundled(), f"libnvrtc.so.{major}"]:
        try:
            if isinstance(library, Path):
                for beside in library.parent.glob("libnvrtc-builtins.so.*"):
                    ctypes.CDLL(str(beside))  # it looks for them by name alone
            return ctypes.CDLL(str(library)), ""
        except OSError:
            continue
    package = "nvidia-cuda-nvrtc" if int(major) >= 13 else f"nvidia-cuda-nvrtc-cu{major}"
    return None, f"CUDA's run-time compiler is not installed: pip install {package}"


def _bundled() -> list[Path]:
    """Libraries in NVIDIA's packages, the newest first."""
    found = importlib.util.find_spec("nvidia")
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    return sorted(
        (path for folder in folders for path in Path(folder).glob("*/lib/libnvrtc.so.*")),
        reverse=True,
    )


@functools.cache
def compile_kernels(macros: tuple[tuple[str, int], ...]) -> bytes:
    """Return the machine code of hopper.cu with these macros; no GPU is needed.

    Raises
    ------
    MissingDependencyError
        There is no compiler.
    KernelError
        The compiler refuses the source; its log is the message.
    """
    compiler, why = find_compiler()
    if compiler is None:
        raise MissingDependencyError(why)
    options = [f"--gpu-architecture={TARGET}", "--std=c++17"]
    options += [f"-D{name}={value}" for name, value in macros]
    program = ctypes.c_void_p()
    created = compiler.nvrtcCreateProgram(
        ctypes.byref(program), SOURCE.read_bytes(), SOURCE.name.encode(), 0, None, None
    )
    if created:
        raise KernelError(f"NVRTC cannot start: error {created}")
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = compiler.nvrtcCompileProgram(program, len(options), given)
        if failed:
            log = _output(compiler, program, "ProgramLog").decode(errors="replace").strip("\0\n")
            raise KernelError(f"{SOURCE.name} does not compile with {' '.join(options)}:\n{log}")
        return _output(compiler, program, "CUBIN")
    finally:
        compiler.nvrtcDestroyProgram(ctypes.byref(program))


def _output(compiler: ctypes.CDLL, program: ctypes.c_void_p, kind: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(compiler, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(compiler, f"nvrtcGet{kind}")(program, text)
    return text.raw


class Module:
    """The kernels of one set of macros on one GPU.

    Parameters
    ----------
    macros
        Names and values.
    device
        Where they run.
    """

    def __init__(self, macros: tuple[tuple[str, int], ...], device: torch.device) -> None:
        self._code = compile_kernels(macros)
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._module = ctypes.c_void_p()
        self._functions: dict[str, tuple[ctypes.c_void_p, int]] = {}
        with torch.cuda.device(device):
            torch.cuda.current_stream()  # there is a context from here on
            self._check("cuModuleLoadData", ctypes.byref(self._module), self._code)

    def launch(
        self, name: str, programs: int, threads: int, shared: int, arguments: Sequence[Any]
    ) -> None:
        """Start a kernel on the current stream of the current device.

        Parameters
        ----------
        name
            Of the kernel.
        programs, threads
            Programs, and threads of each.
        shared
            Bytes of shared memory of a program.
        arguments
            Contiguous tensors and integers, in the kernel's order.
        """
        values = [
            ctypes.c_void_p(value.data_ptr())
            if isinstance(value, torch.Tensor)
            else ctypes.c_int(value)
            for value in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(
            *(ctypes.cast(ctypes.pointer(value), ctypes.c_void_p) for value in values)
        )
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self._check(
            "cuLaunchKernel", self._function(name, shared), programs, 1, 1, threads, 1, 1,
            shared, stream, pointers, None,
        )  # fmt: skip

    def _function(self, name: str, shared: int) -> ctypes.c_void_p:
        """Return a kernel that may have so much shared memory, or more."""
        function, allowed = self._functions.get(name, (None, 0))
        if function is None:
            function = ctypes.c_void_p()
            self._check("cuModuleGetFunction", ctypes.byref(function), self._module, name.encode())
            self._functions[name] = function, allowed
        if shared > allowed:
            self._check("cuFuncSetAttribute", function, _MOST_SHARED_BYTES, shared)
            self._functions[name] = function, shared
        return function

    def _check(self, call: str, *arguments: Any) -> None:
        failed = getattr(self._driver, call)(*arguments)
        if failed:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(failed, ctypes.byref(text))
            why = (text.value or b"unknown error").decode()
            raise KernelError(f"{call} failed with error {failed}: {why}")


_MODULES: dict[tuple[tuple[tuple[str, int], ...], torch.device], Module] = {}


def module_of(macros: dict[str, int], device: torch.device) -> Module:
    """Compile and load once for a process what these macros make of the kernels."""
    key = (tuple(sorted(macros.items())), device)
    with _LOCK:
        if key not in _MODULES:
            _MODULES[key] = Module(*key)
        return _MODULES[key]
