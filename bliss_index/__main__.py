"""``python -m bliss_index``."""

from __future__ import annotations

from bliss_index.cli import main

main()
