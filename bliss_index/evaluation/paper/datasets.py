"""The paper's data sets, read from the folders that torchvision (or their authors' archives) leave.

CIFAR's own files are pickles; :mod:`bliss_index.evaluation.paper.plain_pickle` reads them without
unpickling.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.calibration.labels import Labels
from bliss_index.encode.image_rows import ImageRow, ImageSource, SourceBase
from bliss_index.encode.images import FolderSource
from bliss_index.errors import CorruptStoreError, InvalidInputError
from bliss_index.evaluation.paper.plain_pickle import read_plain_pickle

_SIDE, _CHANNELS = 32, 3
_TINY_CLASSES = 200


@dataclass(frozen=True, eq=False)
class DatasetSplit:
    """Images, and the class number of each in their order."""

    source: ImageSource
    labels: Labels


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """A data set on disk.

    Attributes
    ----------
    name
        "cifar10", "cifar100" or "tinyimagenet".
    classes
        Names, in the order of the class numbers; words are separated by spaces.
    train, test
        What calibrates, and what is scored.
    named
        The names as the data set's files have them, such as "aquarium_fish".
    """

    name: str
    classes: tuple[str, ...]
    train: DatasetSplit
    test: DatasetSplit
    named: tuple[str, ...]


@dataclass(frozen=True)
class _Cifar:
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    names: str
    labels: str


_CIFARS = {
    "cifar10": _Cifar(
        "cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",),
        "batches.meta", "label_names", "labels",
    ),
    "cifar100": _Cifar(
        "cifar-100-python", ("train",), ("test",), "meta", "fine_label_names", "fine_labels",
    ),
}  # fmt: skip
_TINY_FOLDER = "tiny-imagenet-200"
DATASETS = (*_CIFARS, "tinyimagenet")


def open_dataset(folder: str | Path, name: str) -> ImageDataset:
    """Open a data set below a folder, or in it.

    Parameters
    ----------
    folder
        torchvision's ``root``, which holds ``cifar-10-batches-py``, ``cifar-100-python`` or
        ``tiny-imagenet-200``; or that directory itself.
    name
        "cifar10", "cifar100" or "tinyimagenet".

    Raises
    ------
    InvalidInputError
        The data set is not known or not there.
    CorruptStoreError
        A file is damaged, or holds something else than arrays, numbers and texts.
    """
    if name not in DATASETS:
        raise InvalidInputError(f"unknown data set {name!r}; known are {', '.join(DATASETS)}")
    own = _CIFARS[name].folder if name in _CIFARS else _TINY_FOLDER
    place = Path(folder)
    directory = place if place.name == own else place / own
    if not directory.is_dir():
        raise InvalidInputError(
            f"{place} holds no {own}; download {name} there, for CIFAR with "
            f"torchvision.datasets.{name.upper()}(root={str(place)!r}, download=True)"
        )
    if name in _CIFARS:
        return _open_cifar(name, directory, _CIFARS[name])
    return _open_tiny(directory)


def dataset_of_protocol(protocol: str) -> str:
    """Return the data set that one of the paper's protocols is about.

    Raises
    ------
    InvalidInputError
        It is about none in particular.
    """
    name = protocol.partition("-")[0]
    if name not in DATASETS:
        raise InvalidInputError(
            f"protocol {protocol!r} does not name a data set; those of {', '.join(DATASETS)} do"
        )
    return name


def _open_cifar(name: str, directory: Path, layout: _Cifar) -> ImageDataset:
    names = read_plain_pickle(directory / layout.meta).get(layout.names)
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise CorruptStoreError(f"{directory / layout.meta} has no list {layout.names!r}")
    splits = []
    for files in (layout.train, layout.test):
        paths = [directory / file for file in files]
        labels = tuple(label for path in paths for label in _cifar_labels(path, layout, len(names)))
        splits.append(DatasetSplit(_CifarSource(directory, paths), Labels(str(directory), labels)))
    train, test = splits
    return ImageDataset(name, tuple(n.replace("_", " ") for n in names), train, test, tuple(names))


def _cifar_labels(path: Path, layout: _Cifar, classes: int) -> list[int]:
    values = read_plain_pickle(path)
    labels = values.get(layout.labels)
    rows = _pixels(path, values).shape[0]
    if not isinstance(labels, list) or len(labels) != rows:
        raise CorruptStoreError(f"{path} has no list {layout.labels!r} of {rows} labels")
    if not all(type(label) is int and 0 <= label < classes for label in labels):
        raise CorruptStoreError(f"{path} has labels that are not 0 to {classes - 1}")
    return labels


class _CifarSource(SourceBase):
    """Pictures of CIFAR's files, as PNG; keys are the file's name and the row in it."""

    def __init__(self, directory: Path, paths: list[Path]) -> None:
        super().__init__(f"{directory.name}: {', '.join(path.name for path in paths)}")
        self._paths = paths

    def iter(self, start: int = 0) -> Iterator[ImageRow]:
        from PIL import Image

        self.skipped = {}
        number = 0
        for path in self._paths:
            pixels = _pixels(path, read_plain_pickle(path))
            first, number = max(0, start - number), number + pixels.shape[0]
            for row in range(first, pixels.shape[0]):
                planes = pixels[row].reshape(_CHANNELS, _SIDE, _SIDE)
                buffer = io.BytesIO()
                picture = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
                picture.save(buffer, format="PNG", compress_level=1)
                yield ImageRow(f"{path.name}/{row:05}", buffer.getvalue())

    def rows(self) -> int:
        return sum(_pixels(path, read_plain_pickle(path)).shape[0] for path in self._paths)


def _pixels(path: Path, values: dict[str, Any]) -> npt.NDArray[np.uint8]:
    pixels = values.get("data")
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape[1:] != (_CHANNELS * _SIDE * _SIDE,)
    ):
        raise CorruptStoreError(
            f"{path} has no array 'data' of bytes, (images, {_CHANNELS * _SIDE * _SIDE})"
        )
    return pixels


def _open_tiny(directory: Path) -> ImageDataset:
    wnids = sorted(_lines(directory / "wnids.txt"))
    if len(set(wnids)) != _TINY_CLASSES:
        raise CorruptStoreError(
            f"{directory / 'wnids.txt'} lists {len(set(wnids))} classes, expected {_TINY_CLASSES}"
        )
    words = dict(line.split("\t", 1) for line in _lines(directory / "words.txt") if "\t" in line)
    unnamed = [wnid for wnid in wnids if wnid not in words]
    if unnamed:
        raise CorruptStoreError(f"{directory / 'words.txt'} does not name {unnamed[0]}")
    # The first of several synonyms names the class.
    classes = tuple(words[wnid].split(",")[0].strip() for wnid in wnids)
    number = {wnid: c for c, wnid in enumerate(wnids)}
    train, test = FolderSource(directory / "train"), FolderSource(directory / "val")
    # What the images are does not depend on where they are.
    train.name, test.name = f"{_TINY_FOLDER}: train", f"{_TINY_FOLDER}: val"
    annotations = directory / "val" / "val_annotations.txt"
    of_file: dict[str, str] = {}
    if annotations.is_file():
        for line in _lines(annotations):
            file, _, rest = line.partition("\t")
            of_file[file] = rest.partition("\t")[0]
    return ImageDataset(
        "tinyimagenet",
        classes,
        DatasetSplit(train, _labels_of_paths(directory / "train", train, {}, number)),
        DatasetSplit(test, _labels_of_paths(directory / "val", test, of_file, number)),
        classes,
    )


def _labels_of_paths(
    directory: Path, source: FolderSource, of_file: dict[str, str], number: dict[str, int]
) -> Labels:
    """Classes by the file's annotation, else by the directory below `directory`."""
    labels = []
    for row in source.iter():
        parts = row.key.split("/")
        wnid = of_file.get(parts[-1], parts[0])
        if wnid not in number:
            raise CorruptStoreError(f"{directory / row.key} belongs to none of the classes")
        labels.append(number[wnid])
    return Labels(str(directory), tuple(labels))


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptStoreError(f"{path} cannot be read: {error}") from error
