"""One BLAS thread for numpy while a job runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let numpy's BLAS use one thread within the block.

    OpenBLAS's threads wait by spinning for some time after every product. In a job that takes
    the processors from the search, and costs a quarter of its speed. faiss brings a BLAS of its
    own, which keeps its threads. Without threadpoolctl, only that speed is lost.
    """
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        yield
        return
    with contextlib.ExitStack() as stack:
        controller = ThreadpoolController()
        for library in controller.lib_controllers:
            if library.user_api == "blas" and "numpy" in library.filepath:
                stack.enter_context(controller.select(prefix=library.prefix).limit(limits=1))
        yield
