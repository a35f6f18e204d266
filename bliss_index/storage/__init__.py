"""Where files are: directories, files that are whole or absent, hashes, locks."""

from __future__ import annotations

from bliss_index.storage.directory import Directory, open_directory

__all__ = ["Directory", "open_directory"]
