"""Reads a Lance data set and writes its rows to standard output as an Arrow stream.

Run as a program, with one argument, JSON: path, version, columns, start, limit, and rows at once.
"""

from __future__ import annotations

import json
import sys

FACTS = (b"version", b"rows")
"""Keys of the schema's metadata: the version that is read, and rows of all of it."""


def main() -> None:
    import lance
    import pyarrow as pa

    asked = json.loads(sys.argv[1])
    opened = lance.dataset(asked["path"], version=asked.get("version"))
    scanner = opened.scanner(
        columns=asked.get("columns"), offset=asked.get("start") or None, limit=asked.get("limit"),
        batch_size=asked["rows"], scan_in_order=True, batch_readahead=2, fragment_readahead=1,
    )  # fmt: skip
    facts = dict(zip(FACTS, (str(opened.version), str(opened.count_rows())), strict=True))
    schema = scanner.projected_schema.with_metadata(facts)
    with pa.ipc.new_stream(sys.stdout.buffer, schema) as writer:
        for batch in scanner.to_batches():
            writer.write_batch(batch.replace_schema_metadata(facts))


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, where 'lance' is another module
    try:
        main()
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
