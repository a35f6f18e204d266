"""What an earlier run completed already, so that running the same command again is harmless."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bliss_index.errors import StoreError
from bliss_index.jobs.description import MANIFEST_NAME
from bliss_index.store.identity import ModelIdentity, require_same_model
from bliss_index.store.manifest import StoreManifest

_INCIDENTAL = ("device", "text_positions")  # they change the last digits at most


def find_complete(
    output: str | Path,
    *,
    kind: str,
    model: ModelIdentity,
    dim: int,
    dtype: str,
    prompt: str | None,
    attributes: dict[str, Any],
) -> StoreManifest | None:
    """Return the manifest of a complete store of exactly these settings, None if there is none.

    Parameters
    ----------
    output
        Directory of the store.
    kind, model, dim, dtype, prompt, attributes
        As :class:`~bliss_index.store.StoreWriter` takes them.

    Raises
    ------
    StoreError
        A complete store of other settings is already there; both values are named.
    ModelMismatchError
        It is of another model.
    """
    if not (Path(output) / MANIFEST_NAME).is_file():
        return None
    manifest = StoreManifest.read(Path(output))
    if not manifest.complete:
        return None
    require_same_model(manifest.model, model, f"the complete store {output}", "what is asked for")
    before = {**manifest.settings(), **manifest.attributes}
    before["preprocess"] = manifest.model.preprocess
    now = {"kind": kind, "dim": dim, "dtype": dtype, "prompt": prompt, **attributes}
    now["preprocess"] = model.preprocess
    for name, value in now.items():
        if name not in _INCIDENTAL and before.get(name) != value:
            raise StoreError(
                f"{output} already holds a complete store with {name} {before.get(name)!r}, asked "
                f"for is {value!r}; choose another output, or remove it first"
            )
    return manifest
