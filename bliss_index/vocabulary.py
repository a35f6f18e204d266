"""Vocabularies: text sources to clean, deduplicated entries, and prompts made of them."""

from __future__ import annotations

import ast
import csv
import gzip
import itertools
import string
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from bliss_index.errors import InvalidInputError, MissingDependencyError, install_line, listed
from bliss_index.storage.cache import local_file
from bliss_index.storage.files import is_address

DEFAULT_TEMPLATE = "This is a photo of a {}"
TEXT_COLUMNS = ("text", "word", "name", "label")
BUILT_IN = ("imagenet", "imagenet-synonyms", "imagenet-21k")

PROMPT_ENSEMBLE = "clip-ensemble"
"""Stands for the 80 templates with which CLIP's authors encode ImageNet's names."""

_CLASS_NAMES = "IMAGENET_CLASSNAMES"
_TEMPLATES = "OPENAI_IMAGENET_TEMPLATES"
_LINES_LOOKED_AT = 1000
_SUFFIXES = (".txt", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Vocabulary:
    """Entries in the order they were first read, and what became of the others.

    Attributes
    ----------
    entries : tuple of str
        Unicode NFC, trimmed, inner whitespace collapsed to single spaces; no empties, no
        duplicates. Case is kept: 'Turkey' and 'turkey' are two entries.
    read : int
        Rows found in the sources; ``read == len(entries) + empty + duplicate + excluded``.
    empty, duplicate, excluded : int
        Rows left out, by reason.
    sources : tuple of str
        As they were given.
    """

    entries: tuple[str, ...]
    read: int
    empty: int
    duplicate: int
    excluded: int
    sources: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def describe(self) -> str:
        """One line for a summary."""
        return describe_counts(len(self), self.read, self.empty, self.duplicate, self.excluded)


def load_vocabulary(
    sources: Sequence[str | Path] | str | Path, *, exclude: Iterable[str] = ()
) -> Vocabulary:
    """Read and clean a vocabulary that fits into memory.

    ``spool_vocabulary`` (``encode/``) does the same for one that does not.

    Parameters
    ----------
    sources : sequence of str or Path
        Files: ``.txt`` (an entry a line), ``.csv`` and ``.tsv`` with a header, ``.parquet``;
        the first three also as ``.gz``. A table's entries are in its column 'text', 'word', 'name'
        or 'label', or in its only column. Or a built-in: 'imagenet', the 1000 class names of
        open_clip; 'imagenet-synonyms', the same classes with all their WordNet synonyms (1,860
        names, the authors' dictionary; 1,842 different ones are kept); 'imagenet-21k', the
        synonyms of the 21,843 synsets of ImageNet-21k (40,742 names, 37,009 different). The last
        two are read from the files of timm, which comes with open_clip.
    exclude : iterable of str
        Entries to leave out, such as the names of the normal classes; compared without regard to
        case. The authors of BLISS leave none out.

    Raises
    ------
    InvalidInputError
        A source is missing, of unknown type or not UTF-8; it is unclear which of its columns holds
        the entries; or no entry is left.
    """
    listed = list_sources(sources)
    unwanted = excluded_names(exclude)
    seen: dict[str, None] = {}
    read = empty = duplicate = excluded = 0
    for source in listed:
        for raw in iter_rows(source):
            read += 1
            entry = clean_entry(raw)
            if not entry:
                empty += 1
            elif entry in seen:
                duplicate += 1
            elif entry.casefold() in unwanted:
                excluded += 1
            else:
                seen[entry] = None
    require_entries(listed, len(seen), read, empty, excluded)
    return Vocabulary(
        tuple(seen), read, empty, duplicate, excluded, tuple(str(source) for source in listed)
    )


def list_sources(sources: Sequence[str | Path] | str | Path) -> list[str | Path]:
    """One source or several as a list; at least one, each of a known kind."""
    listed = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if not listed:
        raise InvalidInputError("no vocabulary source given; name a file, or 'imagenet'")
    for source in listed:
        _kind(source)
    return listed


def excluded_names(exclude: Iterable[str]) -> set[str]:
    """Entries to leave out, cleaned, without regard to case."""
    if isinstance(exclude, str):
        raise InvalidInputError(f"exclude must be a list of entries, got one string {exclude!r}")
    return {clean_entry(name).casefold() for name in exclude}


def require_entries(
    sources: Sequence[str | Path], kept: int, read: int, empty: int, excluded: int
) -> None:
    """Refuse a vocabulary of which nothing is left."""
    if not kept:
        raise InvalidInputError(
            f"no vocabulary entries in {', '.join(map(str, sources))}: {read} rows read, {empty} "
            f"empty, {excluded} excluded"
        )


def describe_counts(kept: int, read: int, empty: int, duplicate: int, excluded: int) -> str:
    """One line on what became of the rows."""
    return (
        f"{kept} entries of {read} read ({empty} empty, {duplicate} duplicate, {excluded} excluded)"
    )


def clean_entry(text: str) -> str:
    """Unicode NFC, no whitespace at the ends, single spaces inside."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def render_prompts(entries: Iterable[str], template: str = DEFAULT_TEMPLATE) -> list[str]:
    """Put each entry into a template.

    Parameters
    ----------
    entries : iterable of str
        What takes the place of ``{}``.
    template : str
        Holds one ``{}``; a literal brace is written twice.

    Raises
    ------
    InvalidInputError
        As for :func:`require_template`.

    Examples
    --------
    >>> render_prompts(["cat"])
    ['This is a photo of a cat']
    """
    require_template(template)
    return [template.format(entry) for entry in entries]


def prompt_templates(template: str | None = None) -> tuple[str, ...]:
    """Return the templates that a word for them stands for; their embeddings are averaged.

    Parameters
    ----------
    template : str, default=None
        A template; PROMPT_ENSEMBLE for those of CLIP's authors, which come with open_clip; None for
        DEFAULT_TEMPLATE.

    Raises
    ------
    InvalidInputError
        As for :func:`require_template`, or open_clip's list cannot be read.
    MissingDependencyError
        open_clip is not installed.
    """
    if template == PROMPT_ENSEMBLE:
        return _ensemble()
    require_template(template or DEFAULT_TEMPLATE)
    return (template or DEFAULT_TEMPLATE,)


def require_template(template: str) -> None:
    """Refuse a prompt template that does not have exactly one ``{}``.

    Raises
    ------
    InvalidInputError
        The template has no ``{}``, several, or another replacement field; it is named.
    """
    try:
        fields = [parts[1:] for parts in string.Formatter().parse(template) if parts[1] is not None]
    except (ValueError, TypeError) as error:
        raise InvalidInputError(
            f"template {template!r} is malformed ({error}); write one {{}} for the entry, such as "
            f"{DEFAULT_TEMPLATE!r}"
        ) from error
    names = [name for name, _, _ in fields]
    if names != [""] or any(spec or conversion for _, spec, conversion in fields):
        raise InvalidInputError(
            f"template {template!r} has {len(names)} replacement fields {names}, it must have "
            f"exactly one, written {{}}, such as {DEFAULT_TEMPLATE!r}"
        )


def iter_rows(source: str | Path) -> Iterator[str]:
    """Raw rows of one source, as :func:`load_vocabulary` takes it, read as they are asked for."""
    kind, packed = _kind(source)
    if kind in BUILT_IN:
        yield from _BUILT_IN_NAMES[kind]()
        return
    path = local_file(source)
    if kind == ".parquet":
        yield from _parquet(path)
    elif kind == ".txt":
        from bliss_index.store.columns import require_no_table

        lines = _lines(path, packed)
        begin = list(itertools.islice(lines, _LINES_LOOKED_AT))
        require_no_table([line.rstrip("\r\n") for line in begin], path)
        for line in itertools.chain(begin, lines):
            # Old files end their lines with a carriage return alone.
            yield from line.rstrip("\r\n").split("\r") if "\r" in line else (line,)
    else:
        yield from _table(path, packed)


def _kind(source: str | Path) -> tuple[str, bool]:
    """The name of a built-in or the suffix of a file, and whether it is gzipped."""
    path = Path(source)
    if isinstance(source, str) and source in BUILT_IN and not path.exists():
        return source, False
    if not is_address(source) and not path.is_file():
        raise InvalidInputError(
            f"vocabulary source '{source}' is neither a file nor built in ({', '.join(BUILT_IN)})"
        )
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = "".join(suffixes[-2:-1] if packed else suffixes[-1:])
    if kind not in _SUFFIXES or (packed and kind == ".parquet"):
        raise InvalidInputError(
            f"vocabulary file '{source}' has suffix '{''.join(suffixes[-2:])}'; known are "
            f"{', '.join(_SUFFIXES)}, and .gz of all but the last"
        )
    return kind, packed


def _lines(path: Path, packed: bool) -> Iterator[str]:
    """Lines of a UTF-8 file, decoded one by one so that an error can name its byte."""
    offset = 0
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            for line in stream:
                try:
                    # A mark at the start of a file is not a part of its first entry.
                    yield line.decode("utf-8-sig" if offset == 0 else "utf-8")
                except UnicodeDecodeError as error:
                    raise InvalidInputError(
                        f"{path}: byte {offset + error.start} (0x{line[error.start]:02x}) is not "
                        "UTF-8; convert the file to UTF-8"
                    ) from error
                offset += len(line)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InvalidInputError(f"{path} is not a complete gzip file: {error}") from error
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error


def _table(path: Path, packed: bool) -> Iterator[str]:
    from bliss_index.store.columns import csv_reader

    reader = csv_reader(_lines(path, packed), path)
    try:
        header = next(reader, None)
        if header is None:
            return
        column = _choose_column(path, [clean_entry(name) for name in header])
        for row in reader:
            if row:
                if len(row) <= column or len(row) > len(header):
                    raise InvalidInputError(
                        f"{path}, line {reader.line_num}: {len(row)} fields, the header has "
                        f"{len(header)}"
                    )
                yield row[column]
    except csv.Error as error:
        raise InvalidInputError(f"{path}, line {reader.line_num}: {error}") from error


def _choose_column(path: Path, header: Sequence[str]) -> int:
    lowered = [name.lower() for name in header]
    found = [lowered.index(name) for name in TEXT_COLUMNS if lowered.count(name) == 1]
    if found:
        return found[0]
    if len(header) == 1:
        return 0
    raise InvalidInputError(
        f"{path} has columns {', '.join(map(repr, header))}; name the one with the entries one of "
        f"{', '.join(TEXT_COLUMNS)}, or keep that column alone"
    )


def _parquet(path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from bliss_index.store.columns import is_text_or_bytes, texts_of
    from bliss_index.store.formats.parquet_footer import require_one_file

    try:
        with pq.ParquetFile(path) as file:
            with pa.OSFile(str(path)) as stream:
                require_one_file(str(path), stream, file.metadata.serialized_size)
            schema = file.schema_arrow
            texts = [field.name for field in schema if is_text_or_bytes(field.type)]
            if not texts:
                raise InvalidInputError(
                    f"{path} has no string column; its columns are "
                    f"{listed([f'{field.name} ({field.type})' for field in schema])}"
                )
            column = texts[_choose_column(path, texts)]
            if texts.count(column) > 1:
                raise InvalidInputError(f"{path} has two columns {column!r}; rename one")
            row = 0
            for batch in file.iter_batches(columns=[column]):
                values = texts_of(batch.column(0), f"{path}: column {column!r}", row)
                row += len(values)
                yield from ("" if value is None else value for value in values)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is not a readable Parquet file: {error}") from error


def _folder_of(package: str, names: str) -> Path:
    """Where a package's files lie, which are read without importing it: that would take seconds."""
    found = find_spec(package)
    if found is None or found.origin is None:
        raise MissingDependencyError(
            f"built-in vocabularies ({names}) are read from {package}, which is not installed; "
            f"run: {install_line('clip')}"
        )
    return Path(found.origin).parent


def _imagenet() -> tuple[str, ...]:
    """CLIP's names of ImageNet's 1,000 classes, as open_clip lists them."""
    value = _assigned("'imagenet'", _CLASS_NAMES, "name a file of entries instead")
    return tuple(ast.literal_eval(value))


def _ensemble() -> tuple[str, ...]:
    """Templates that open_clip lists as functions of the name, "a photo of a {c}." in each."""
    remedy = "name templates with --template, which may be repeated"
    value = _assigned("the prompt ensemble", _TEMPLATES, remedy)
    templates = []
    for function in getattr(value, "elts", ()):
        parts = getattr(getattr(function, "body", None), "values", ())
        texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
        templates.append("".join("{}" if text is None else str(text) for text in texts))
        require_template(templates[-1])
    if not templates:
        raise InvalidInputError(f"open_clip's {_TEMPLATES} is no list of templates; {remedy}")
    return tuple(templates)


def _assigned(what: str, name: str, remedy: str) -> ast.expr:
    """Return what open_clip's lists assign to a name, unevaluated; importing it takes seconds."""
    path = _folder_of("open_clip", what) / "zero_shot_metadata.py"
    try:
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                return node.value
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error!r}; {remedy}") from error
    raise InvalidInputError(f"{path} has no {name}; {remedy}")


def _synonyms(synsets: str) -> tuple[str, ...]:
    """Names of the synsets that a file of timm lists, in its order, synonyms one by one."""
    folder = _folder_of("timm", "'imagenet-synonyms', 'imagenet-21k'") / "data" / "_info"
    try:
        lines = (folder / "imagenet_synset_to_lemma.txt").read_text("utf-8").splitlines()
        wanted = (folder / synsets).read_text("utf-8").split()
        lemmas = dict(line.split("\t", 1) for line in lines)
        return tuple(name for synset in wanted for name in lemmas[synset].split(","))
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInputError(
            f"{folder} does not hold ImageNet's synsets as this version reads them: {error!r}; "
            "name a file of entries instead"
        ) from error


_BUILT_IN_NAMES: dict[str, Callable[[], tuple[str, ...]]] = {
    "imagenet": _imagenet,
    "imagenet-synonyms": partial(_synonyms, "imagenet_synsets.txt"),
    "imagenet-21k": partial(_synonyms, "imagenet21k_goog_synsets.txt"),
}
