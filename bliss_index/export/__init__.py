"""A decision and its lists: what to keep and what to drop, and the files themselves.

Nothing is deleted. Lists are written beside the scores; files are copied, linked, or moved by a
journal that undoes it.
"""

from bliss_index.export.choice import Choice
from bliss_index.export.files import FileAction, FileOutcome, transfer_files, undo_moves
from bliss_index.export.lists import FORMATS, ExportSummary, export

__all__ = [
    "FORMATS",
    "Choice",
    "ExportSummary",
    "FileAction",
    "FileOutcome",
    "export",
    "transfer_files",
    "undo_moves",
]
