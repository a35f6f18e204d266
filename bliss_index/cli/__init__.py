"""The command line ``bliss-index``: parses, calls, prints.

Results go to stdout, everything else to stderr. Exit codes: 0 ok, 1 error, 2 usage, 3 finished
with quarantined rows.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from bliss_index.cli.app import run

    run()
