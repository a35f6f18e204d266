"""The command line ``bliss-index``: parses, calls, prints.

Results go to stdout, everything else to stderr. Exit codes: 0 ok, 1 error, 2 usage, 3 finished
with quarantined rows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def main() -> None:
    """Run the command line."""
    from bliss_index.cli.app import run

    sys.meta_path.insert(0, _NoPandasForArrow())
    run()


class _NoPandasForArrow:
    """Keeps Arrow from importing pandas, which it then takes for missing.

    Arrow looks for pandas when it is given a list or an array, for data frames, which no command
    has; importing it would be a fifth of a short command. Other libraries get it.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:
        """See :class:`importlib.abc.MetaPathFinder`."""
        if name != "pandas":
            return
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_globals["__name__"].startswith("importlib."):
            frame = frame.f_back  # the first one that is not of the import system
        if frame.f_globals["__name__"].partition(".")[0] in ("bliss_index", "pyarrow"):
            raise ModuleNotFoundError("pandas is not needed here", name=name)
