"""Tables of images: Parquet with image bytes (Hugging Face layout), and tables of paths."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bliss_index.encode.image_rows import ImagePiece, ImageRow, SourceBase
from bliss_index.encode.places import Place, contents_of, file_stamp, place_of
from bliss_index.errors import InvalidInputError, listed
from bliss_index.store.columns import csv_reader, is_text_or_bytes, texts_of
from bliss_index.store.formats.parquet_footer import require_one_file

if TYPE_CHECKING:
    import pyarrow as pa

KEY_COLUMNS = ("key", "__key__")
IMAGE_COLUMNS = ("image", "img", "jpg", "png", "bytes", "content")
PATH_COLUMNS = ("path", "file", "file_name", "filename", "image_path", "filepath", "image")
_NO_IMAGES = {*KEY_COLUMNS, *PATH_COLUMNS} - {*IMAGE_COLUMNS}
_OF_IMAGES = {*IMAGE_COLUMNS, "images", "pixels", "pixel_values", "picture", "photo"}
_DESCRIPTIONS = ("text", "caption", "captions", "label", "class", "word", "description", "prompt")
_BATCH_ROWS = 256


def table_source(path: Place) -> SourceBase:
    """The source for a Parquet, CSV or TSV file, by its columns."""
    if path.suffix.lower() == ".parquet":
        return ParquetSource(path)
    return CsvSource(path)


class ParquetSource(SourceBase):
    """Rows of a Parquet file with image bytes, or with paths of images.

    The image column is a ``struct<bytes, path>`` as Hugging Face writes it, a binary column, or
    else a string column of paths relative to the file. The key is column 'key' where there is
    one, else the path, else the file's name and the row. Other columns are metadata.
    """

    def __init__(self, path: str | Place) -> None:
        super().__init__(str(path))
        self._path = place_of(path)
        with self._open() as file:
            with contextlib.closing(self._stream()) as stream:
                require_one_file(str(path), stream, file.metadata.serialized_size)
            schema = file.schema_arrow
            self._rows = file.metadata.num_rows
        self._column, self._kind = _image_column(self._path, schema)
        self._key = next((name for name in KEY_COLUMNS if name in schema.names), None)
        if self._key is not None and not _is_key(schema.field(self._key).type):
            self._key = None
        own = {self._column, self._key}
        for name in schema.names:
            if schema.names.count(name) > 1:
                raise InvalidInputError(f"{path} has two columns {name!r}; rename one")
        self._schema = _plain_schema([field for field in schema if field.name not in own])
        plain = [] if self._schema is None else self._schema.names
        self._columns = [*plain, self._column, *([] if self._key is None else [self._key])]

    @property
    def metadata_schema(self) -> pa.Schema | None:
        return self._schema

    def rows(self) -> int:
        return int(self._rows)

    def pieces(self, rows: int) -> Iterator[ImagePiece]:
        stamp = file_stamp(self._path)
        with self._open() as file:
            groups = [
                file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)
            ]
        for start, end in itertools.pairwise(_cuts(groups, rows)):
            name = f"{self.path.name}[{start}:{end}]"
            yield ImagePiece(name, end - start, stamp, {"start": start, "rows": end - start})

    def iter(self, start: int = 0) -> Iterator[ImageRow]:
        import pyarrow as pa

        self._forget_skipped()
        number = 0
        try:
            with self._open() as file:
                for group in range(file.metadata.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    if number + rows <= start:
                        number += rows
                        continue
                    for batch in file.iter_batches(
                        batch_size=_BATCH_ROWS, row_groups=[group], columns=self._columns
                    ):
                        first = min(max(0, start - number), batch.num_rows)
                        yield from self._rows_of(batch.slice(first), number + first)
                        number += batch.num_rows
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(
                f"{self._path} cannot be read after row {number}: {error}"
            ) from error

    def _rows_of(self, batch: pa.RecordBatch, number: int) -> Iterator[ImageRow]:
        """The rows of a batch, the first of which has a number."""
        import pyarrow as pa

        columns = {}
        for field in self._schema or ():
            column = batch.column(field.name)
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            columns[field.name] = column
        cells, keys = self._texts(batch, self._column, number), [None] * batch.num_rows
        if self._key is not None:
            keys = self._texts(batch, self._key, number)
        for row, (cell, key) in enumerate(zip(cells, keys, strict=True)):
            metadata = {name: column.slice(row, 1) for name, column in columns.items()}
            yield self._row(number + row, cell, key, metadata)

    def _texts(self, batch: pa.RecordBatch, name: str, number: int) -> list[Any]:
        column = batch.column(name)
        if name == self._column and self._kind != "path":
            return list(column.to_pylist())
        return list(texts_of(column, f"{self._path}: column {name!r}", number))

    def _row(self, number: int, cell: Any, own: str | None, values: dict[str, Any]) -> ImageRow:
        content: bytes | str | None = None
        reason: str | None = None
        if self._kind == "struct":
            named = (cell or {}).get("path")
            named = named.decode("utf-8", "backslashreplace") if isinstance(named, bytes) else named
            content = (cell or {}).get("bytes")
            if content is None and named:
                content, reason = _content(self._path.parent / named)
        elif self._kind == "binary":
            named, content = None, cell
        else:
            named = cell
            if cell:
                content, reason = _content(self._path.parent / cell)
        by_path = named if self._kind == "path" else None
        key = own or by_path or f"{self._path.name}:{number}"
        if content is None:
            return ImageRow(key, b"", values, "empty: the row has neither bytes nor a path")
        return ImageRow(key, content, values, reason)

    def _stream(self) -> Any:
        import pyarrow as pa

        path = self._path
        return pa.OSFile(str(path)) if isinstance(path, Path) else path.open()

    def _open(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self._path if isinstance(self._path, Path) else self._path.open())
        except (pa.ArrowException, OSError) as error:
            raise InvalidInputError(
                f"{self._path} is not a readable Parquet file: {error}"
            ) from error


class CsvSource(SourceBase):
    """Rows of a CSV or TSV file with a header and a column of paths, relative to the file.

    The key is column 'key' where there is one, else the path as written; other columns are
    metadata, as strings.
    """

    def __init__(self, path: str | Place) -> None:
        super().__init__(str(path))
        self._path = place_of(path)
        header = next(self._records(), None)
        if not header:
            raise InvalidInputError(f"{path} is empty; it needs a header with a column of paths")
        self._header = header
        if len(set(header)) < len(header):
            raise InvalidInputError(f"{path} has columns of the same name: {header}")
        self._column = _path_column(self._path, header)
        self._key = next((name for name in KEY_COLUMNS if name in header), None)

    @property
    def metadata_schema(self) -> pa.Schema | None:
        import pyarrow as pa

        names = [name for name in self._header if name not in (self._column, self._key)]
        return pa.schema([(name, pa.string()) for name in names]) if names else None

    def iter(self, start: int = 0) -> Iterator[ImageRow]:
        self._forget_skipped()
        records = self._records()
        next(records)
        for number, record in enumerate(record for record in records if record):
            if number >= start:
                yield self._row(number, record)

    def _row(self, number: int, record: list[str]) -> ImageRow:
        if len(record) != len(self._header):
            raise InvalidInputError(
                f"{self._path}, row {number}: {len(record)} fields, the header has "
                f"{len(self._header)}"
            )
        values: dict[str, Any] = dict(zip(self._header, record, strict=True))
        named = values.pop(self._column)
        own = values.pop(self._key, None) if self._key is not None else None
        key = own or named or f"{self._path.name}:{number}"
        if not named:
            return ImageRow(key, b"", values, "empty: the row has no path")
        content, reason = _content(self._path.parent / named)
        return ImageRow(key, content, values, reason)

    def rows(self) -> int:
        return sum(1 for record in self._records() if record) - 1

    def pieces(self, rows: int) -> Iterator[ImagePiece]:
        records = filter(None, self._records())
        next(records, None)
        number = 0
        while listed := list(itertools.islice(records, rows)):
            digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
            name = f"{self.path.name}[{number}:{number + len(listed)}]"
            yield ImagePiece(name, len(listed), digest, {"records": listed, "start": number})
            number += len(listed)

    def read(self, detail: dict[str, Any]) -> Iterator[ImageRow]:
        for number, record in enumerate(detail["records"], detail["start"]):
            yield self._row(number, record)

    def _records(self) -> Iterator[list[str]]:
        try:
            with io.TextIOWrapper(self._path.open("rb"), "utf-8-sig", newline="") as stream:
                yield from csv_reader(stream, Path(self._path.name))
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"{self._path} is not UTF-8: {error}") from error
        except (csv.Error, OSError) as error:
            raise InvalidInputError(f"{self._path} cannot be read: {error}") from error


def _content(place: Place) -> tuple[bytes | str, str | None]:
    """Content of an object or the path of a file, and a reason where it cannot be read."""
    (content,) = contents_of([place])
    if isinstance(content, OSError):
        return b"", f"unreadable_file: {place}: {content}"
    return content, None


def _cuts(groups: Sequence[int], rows: int) -> list[int]:
    """Cut rows at row groups where these are not too large."""
    cuts, at = [0], 0
    for size in groups:
        if at + size - cuts[-1] > rows and at > cuts[-1]:
            cuts.append(at)
        cuts.extend(range(cuts[-1] + rows, at + size, rows) if size > rows else ())
        at += size
    return [*cuts, at] if at > cuts[-1] else cuts


def _image_column(path: Place, schema: pa.Schema) -> tuple[str, str]:
    """The column with the images, and whether it is a 'struct', 'binary' or a 'path'."""
    import pyarrow as pa

    def is_struct(kind: pa.DataType) -> bool:
        return bool(pa.types.is_struct(kind)) and int(kind.get_field_index("bytes")) >= 0

    def is_binary(kind: pa.DataType) -> bool:
        test = pa.types
        return bool(test.is_binary(kind) or test.is_large_binary(kind) or test.is_binary_view(kind))

    for name, test in (("struct", is_struct), ("binary", is_binary)):
        found = [field.name for field in schema if test(field.type)]
        # Spark writes texts as bytes: a key, or a path.
        paths = name == "binary" and len(found) == 1 and found[0].lower() in _NO_IMAGES
        if found and not paths:
            return _choose(path, found, IMAGE_COLUMNS), name
    columns = listed([f"{field.name} ({field.type})" for field in schema])
    for field in schema:
        if pa.types.is_nested(field.type) and field.name.lower() in _OF_IMAGES:
            raise InvalidInputError(
                f"{path}: column {field.name!r} is of type {field.type}, expected the bytes of an "
                "encoded image (a struct with 'bytes', or binary) or a path; write one image a row"
            )
    texts = [field.name for field in schema if is_text_or_bytes(field.type)]
    named = [name for name in texts if name.lower() in PATH_COLUMNS]
    others = [name for name in texts if name not in KEY_COLUMNS]
    if not named and (not others or any(name.lower() in _DESCRIPTIONS for name in others)):
        raise InvalidInputError(
            f"{path} has no column of image bytes or paths; its columns are {columns}. A column of "
            f"paths is called one of {', '.join(PATH_COLUMNS)}"
        )
    return _path_column(path, texts), "path"


def _path_column(path: Place, names: Sequence[str]) -> str:
    return _choose(path, [name for name in names if name not in KEY_COLUMNS], PATH_COLUMNS)


def _choose(path: Place, names: Sequence[str], preferred: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    lowered = {name.lower(): name for name in names}
    for name in preferred:
        if name in lowered:
            return lowered[name]
    raise InvalidInputError(
        f"{path}: the images may be in any of the columns {', '.join(map(repr, names))}; name the "
        f"right one one of {', '.join(preferred)}"
    )


def _is_key(kind: pa.DataType) -> bool:
    import pyarrow as pa

    test = pa.types
    return is_text_or_bytes(kind) or bool(test.is_integer(kind) or test.is_floating(kind))


def _plain_schema(fields: Sequence[pa.Field]) -> pa.Schema | None:
    import pyarrow as pa

    def value_type(kind: pa.DataType) -> pa.DataType:
        return kind.value_type if pa.types.is_dictionary(kind) else kind

    plain = [(field.name, value_type(field.type)) for field in fields]
    return pa.schema(plain) if plain else None
