"""What a file is that is not read as it is named, and a line that writes it in a layout that is."""

from __future__ import annotations

from pathlib import PurePosixPath

from bliss_index.errors import InvalidInputError
from bliss_index.store.source_file import SourceFile

_BEGIN_BYTES = 512
_TABLE = "import pandas; t = pandas.{reader}; {column}t.to_parquet('new.parquet')"
_JOINED = (
    "x = t.select_dtypes('float'); t = t.drop(columns=x.columns)"
    ".assign(embedding=list(x.to_numpy('float32'))); "
)
_PARSED = "t['embedding'] = t['embedding'].map(lambda x: numpy.asarray(x, 'float32')); "
_FAISS = (
    "import faiss, numpy; i = faiss.read_index('{name}'); "
    "numpy.save('new.npy', i.reconstruct_n(0, i.ntotal))"
)
CONVERSIONS: dict[str, tuple[str, str]] = {
    ".csv": ("a table of text", _TABLE.format(reader="read_csv('{name}')", column=_JOINED)),
    ".tsv": ("a table of text",
             _TABLE.format(reader="read_csv('{name}', sep='\\t')", column=_JOINED)),
    ".txt": ("text", "import numpy; numpy.save('new.npy', numpy.loadtxt('{name}', 'float32'))"),
    ".jsonl": ("lines of JSON",
               "import numpy; " + _TABLE.format(reader="read_json('{name}', lines=True)",
                                                column=_PARSED)),
    ".json": ("JSON",
              "import numpy; " + _TABLE.format(reader="read_json('{name}')", column=_PARSED)),
    ".pkl": ("a pickle, which can run programs and is not loaded; where you trust it, write its "
             "array", "import numpy, pathlib, pickle; numpy.save('new.npy', numpy.asarray("
             "pickle.loads(pathlib.Path('{name}').read_bytes())))"),
    ".orc": ("ORC", "import pyarrow.orc, pyarrow.parquet; pyarrow.parquet.write_table("
             "pyarrow.orc.read_table('{name}'), 'new.parquet')"),
    ".h5": ("HDF5, whose library may wait without end on a damaged file",
            "import h5py, pandas; f = h5py.File('{name}'); pandas.DataFrame({'embedding': "
            "list(f['embeddings'][:])}).to_parquet('new.parquet')"),
    ".mat": ("a file of Matlab", "import numpy, scipy.io; numpy.save('new.npy', "
             "scipy.io.loadmat('{name}')['embeddings'])"),
    ".faiss": ("an index of FAISS", _FAISS),
    ".index": ("an index of FAISS", _FAISS),
    ".bin": ("numbers without a header", "import numpy; numpy.save('new.npy', numpy.fromfile("
             "'{name}', 'float32').reshape(-1, 512))  # 512: the dimension"),
    ".zarr": ("a Zarr array", "import numpy, zarr; numpy.save('new.npy', zarr.open('{name}')[:])"),
    ".tfrecord": ("TFRecord", "read it with tensorflow, then numpy.save('new.npy', array)"),
    ".avro": ("Avro", "import polars; polars.read_avro('{name}').write_parquet('new.parquet')"),
    ".db": ("a database", "import duckdb; duckdb.connect('{name}').sql('from embeddings')"
            ".write_parquet('new.parquet')"),
}  # fmt: skip
"""What files of other kinds are, by the end of their names, and a line of Python that converts one:
``{{name}}`` stands for it."""

_SAME = {
    ".hdf5": ".h5", ".hdf": ".h5",
    ".ndjson": ".jsonl", ".pickle": ".pkl", ".p": ".pkl", ".raw": ".bin", ".dat": ".bin",
    ".duckdb": ".db", ".sqlite": ".db", ".sqlite3": ".db", ".faissindex": ".faiss",
}  # fmt: skip
_PACKED = {".gz": "gunzip", ".zst": "zstd -d", ".xz": "unxz", ".bz2": "bunzip2", ".zip": "unzip"}
_BEGINS: tuple[tuple[bytes, str, tuple[str, ...]], ...] = (
    (b"\x93NUMPY", "a numpy array", (".npy",)),
    (b"PAR1", "Parquet", (".parquet", ".pq")),
    (b"ARROW1", "an Arrow file", (".arrow", ".feather", ".ipc", ".arrows")),
    (b"\xff\xff\xff\xff", "an Arrow stream", (".arrow", ".arrows", ".feather", ".ipc")),
    (b"PK\x03\x04", "a zip, as numpy.savez and torch.save write", (".npz", ".pt", ".pth")),
)
_FETCHED = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file; run: git lfs pull"),
    (b"<!DOCTYPE", "a page of HTML, as servers send with an error; fetch it again"),
    (b"<html", "a page of HTML, as servers send with an error; fetch it again"),
    (b"<?xml", "XML, as servers send with an error; fetch it again"),
)


def what_is(file: SourceFile) -> str:
    """Say what a file is that no layout's name fits, and how to convert it."""
    if found := is_otherwise(file, ""):
        return found
    name = PurePosixPath(file.name).name
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in _PACKED:
        return f"{name} is compressed; unpack it: {_PACKED[suffix]} {name}"
    what, line = CONVERSIONS.get(_SAME.get(suffix, suffix), ("of no kind that is known", ""))
    if not line:
        return (
            f"{name} is {what}; read it into an array of (rows, dimension), then: "
            "numpy.save('new.npy', array)"
        )
    return f"{name} is {what}; convert it: {line.replace('{name}', name)}"


def is_otherwise(file: SourceFile, suffix: str) -> str:
    """Say what a file is by its content where its name says something else; '' if it does not."""
    try:
        with file.open() as stream:
            begin = stream.read(_BEGIN_BYTES)
    except (InvalidInputError, OSError):
        return ""
    for start, what in _FETCHED:
        if begin.lstrip().lower().startswith(start.lower()):
            return f"{file.name} is {what}"
    for start, what, suffixes in _BEGINS:
        if begin.startswith(start) and suffix not in suffixes:
            return f"{file.name} is {what} by its content; rename it to end in {suffixes[0]}"
    return "" if begin else f"{file.name} is empty"


def in_front(name: str, size: int) -> str:
    """Say that a file is two, of which readers see the last, and how to separate them."""
    return (
        f"{name} is two files, one after the other: {size} bytes are in front of the last, and "
        f"would be left out. Separate them: head -c {size} both > first; tail -c +{size + 1} both "
        "> second"
    )
