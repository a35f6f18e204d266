"""What all works that make an embedding store have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bliss_index.errors import InvalidInputError, listed
from bliss_index.jobs import Part, Plan, Record
from bliss_index.jobs.description import MANIFEST_NAME, library_versions
from bliss_index.jobs.part import Growth, grown
from bliss_index.jobs.work import Notify
from bliss_index.storage import Directory
from bliss_index.store.keys import MOST_NAMED, repeated_keys
from bliss_index.store.manifest import STORE_KIND, StoreManifest
from bliss_index.store.schema import open_batch


class StoreWork(ABC):
    """A work whose parts become the shards of a store; see :class:`bliss_index.jobs.Work`."""

    kind = STORE_KIND
    command = "this command"
    manifest_name = MANIFEST_NAME
    statistics_name = ""
    incidental: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        """Threads of one process."""
        return 1

    @abstractmethod
    def described(self) -> StoreManifest:
        """The store that is made, without its shards."""

    def settings(self) -> dict[str, Any]:
        return self.described().settings()

    def facts(self) -> dict[str, Any]:
        return {}

    def grown(self, kept: Plan, now: Plan) -> Growth:
        return grown(kept, now)

    def is_same(self, part: Part, record: Record) -> str:
        return f"{part.name} is not what it was: its size or time of modification has changed"

    def manifest(self, directory: Directory, records: Sequence[Record]) -> Mapping[str, Any]:
        """Describe the store; look for keys that occur in several shards.

        Raises
        ------
        InvalidInputError
            It is a text store, and some do.
        """
        described = self.described()

        def parts() -> Iterable[list[str]]:
            for record in records:
                batch = open_batch(directory.mapped(record.file), record.file)
                yield batch.column("key").to_pylist()

        count, first = repeated_keys(parts, MOST_NAMED)
        if count and described.kind == "text":
            raise InvalidInputError(
                f"{count} keys occur more than once, the first are {listed(first)}; keys of a text "
                "store must be unique"
            )
        repeated = {"count": count, "first": first}
        return replace(described, versions=library_versions(), repeated_keys=repeated).facts()

    def prepared(self, pending: Sequence[Part], rows: int, batch_rows: int, notify: Notify) -> Any:
        return self
