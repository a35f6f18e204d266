"""Folders that Hugging Face's ``Dataset.save_to_disk`` and ``DatasetDict.save_to_disk`` write.

``state.json`` lists the files with the rows. Others may lie beside them, such as what ``map`` keeps
(``cache-*.arrow``), with rows that are not the data set's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePosixPath

from bliss_index.errors import InvalidInputError, listed
from bliss_index.store.source_file import SourceFile

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_KNOWN = (_STATE, _SPLITS, "dataset_info.json")
BESIDE = "beside the files of a saved data set"


def files_of(files: Sequence[SourceFile], skipped: dict[str, list[str]]) -> list[SourceFile]:
    """Leave out what lies beside the files of saved data sets, and note what else it is.

    Raises
    ------
    InvalidInputError
        A file that ``state.json`` lists is missing.
    """
    by_name = {file.name: file for file in files}
    states = {str(PurePosixPath(name).parent): _listed(file) for name, file in by_name.items()
              if PurePosixPath(name).name == _STATE}  # fmt: skip
    order = [split for file in files if file.name == _SPLITS for split in _splits(file)]
    states = {folder: names for folder, names in sorted(
        states.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)
    ) if names is not None}  # fmt: skip
    if not states:
        return list(files)
    used = {}
    for folder, names in states.items():
        prefix = "" if folder == "." else f"{folder}/"
        missing = [name for name in names or () if prefix + name not in by_name]
        if missing:
            raise InvalidInputError(
                f"{prefix}{_STATE} lists {listed(missing)}, which the folder has not; fetch the "
                "data set again"
            )
        used.update({prefix + name: by_name[prefix + name] for name in names or ()})
    kept = list(used.values())
    for name, file in by_name.items():
        own = any(folder in (".", str(PurePosixPath(name).parent)) for folder in states)
        if name in used or PurePosixPath(name).name in _KNOWN:
            continue
        if own:
            skipped.setdefault(BESIDE, []).append(name)
        else:
            kept.append(file)
    return kept


def _splits(file: SourceFile) -> list[str]:
    """Names of the data sets of a dictionary, in its order."""
    try:
        with file.open() as stream:
            return [str(name) for name in json.loads(stream.read())["splits"]]
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return []


def _listed(state: SourceFile) -> list[str] | None:
    """Names of the files with rows, in order; None where it is another kind of file."""
    try:
        with state.open() as stream:
            values = json.loads(stream.read())
        files = values.get("_data_files") if isinstance(values, dict) else None
        return None if files is None else [str(file["filename"]) for file in files]
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise InvalidInputError(
            f"{state.name} cannot be read as the list of a saved data set: {error}; fetch it "
            "again, or name the files themselves"
        ) from error
