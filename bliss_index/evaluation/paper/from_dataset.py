"""The paper's protocols on its own data sets: encode what is on disk, then evaluate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bliss_index.calibration.class_texts import ClassTexts
from bliss_index.encode import Encoder, load_encoder
from bliss_index.encode.encode_work import DEFAULT_MODEL, EncoderSpec
from bliss_index.encode.image_work import encode_image_store
from bliss_index.errors import StoreError
from bliss_index.evaluation.from_stores import evaluate_stores
from bliss_index.evaluation.paper.datasets import dataset_of_protocol, open_dataset
from bliss_index.evaluation.paper.protocol_run import ProtocolReport
from bliss_index.jobs.description import MANIFEST_NAME
from bliss_index.jobs.listener import RowsListener
from bliss_index.storage import open_directory
from bliss_index.store import EmbeddingStore, StoreWriter, require_same_model
from bliss_index.vocabulary import DEFAULT_TEMPLATE, iter_rows, load_vocabulary, render_prompts

Progress = Callable[[int], None]

DICTIONARY = "imagenet-synonyms"
"""The built-in vocabulary that is the authors' dictionary."""


def evaluate_dataset(
    folder: str | Path,
    protocol: str,
    corpus: str | Path | None,
    encoded: str | Path,
    *,
    model: str = DEFAULT_MODEL,
    pretrained: str | None = None,
    preprocess: str = "model",
    device: str = "auto",
    detectors: str = "bliss,label,raw",
    k: int = 10,
    threads: int | None = None,
    notify: Callable[[str], None] = lambda text: None,
    progress: Progress | None = None,
) -> ProtocolReport:
    """Encode a data set with the vocabulary's model, once, and evaluate a protocol on it.

    Parameters
    ----------
    folder
        Where torchvision keeps its data sets.
    protocol
        One of the paper's; it names the data set.
    corpus
        Text store of the vocabulary; None for the paper's dictionary, which goes to ``corpus`` in
        `encoded`.
    encoded
        Directory for the stores ``train`` and ``test``. What is there already is used; what was
        interrupted is continued.
    model, pretrained
        Where there is no corpus, the model to encode with; by default the paper's.
    preprocess, device
        As for :func:`bliss_index.encode.load_encoder`. With "authors" all is as in the paper: class
        names are those of the files, with their underscores, and the dictionary keeps its blanks
        and the strings that repeat others.
    detectors, k, threads
        As for :func:`bliss_index.evaluation.from_stores.evaluate_stores`.
    notify, progress
        Called with what is being done, and with the number of images just encoded.

    Raises
    ------
    InvalidInputError, CorruptStoreError
        The data set is not there, or is damaged.
    EncoderError, ModelMismatchError
        The vocabulary's model cannot be loaded, or what was loaded is another.
    StoreError
        ``encoded`` holds stores of other images, of another model or of another preprocessing.
    """
    dataset = open_dataset(folder, dataset_of_protocol(protocol))
    authors = preprocess == "authors"
    if corpus is None:
        spec = EncoderSpec.of(model, pretrained)
        encoder = load_encoder(spec.name, spec.pretrained, device=device, preprocess=preprocess)
        corpus = f"{encoded}/corpus"
        notify(f"the paper's dictionary, {DICTIONARY}")
        _encode_dictionary(encoder, corpus, as_it_is=authors)
    else:
        own = EmbeddingStore.open(corpus, kind="text").model
        encoder = load_encoder(own.name, own.pretrained, device=device, preprocess=preprocess)
        require_same_model(own, encoder.identity, f"corpus {corpus}", "the model of that name here")
    splits = {"train": dataset.train, "test": dataset.test}
    for name, split in splits.items():
        notify(f"{dataset.name}: {len(split.labels.values)} images, {name}")
        # What is encoded already stays; a store of anything else is refused.
        listener = None if progress is None else RowsListener(progress)
        encode_image_store(encoder, split.source, f"{encoded}/{name}", listener=listener)
    names = dataset.named if authors else dataset.classes
    texts = encoder.encode_text(render_prompts(names, DEFAULT_TEMPLATE))
    classes = ClassTexts(
        dataset.classes, texts, encoder.identity, f"the classes of {dataset.name}", DEFAULT_TEMPLATE
    )
    return evaluate_stores(
        f"{encoded}/test", dataset.test.labels, f"{encoded}/train", dataset.train.labels,
        classes, corpus, protocol, detectors=detectors, k=k, threads=threads,
    )  # fmt: skip


def _encode_dictionary(encoder: Encoder, place: str, *, as_it_is: bool) -> None:
    """Write the paper's dictionary as a corpus, unless it is there already.

    Raises
    ------
    StoreError
        A corpus of other entries is there.
    """
    cleaned = load_vocabulary([DICTIONARY]).entries
    entries = list(iter_rows(DICTIONARY)) if as_it_is else list(cleaned)
    if MANIFEST_NAME in open_directory(place).names():
        there = EmbeddingStore.open(place, kind="text")
        require_same_model(there.model, encoder.identity, f"corpus {place}", "the model")
        if there.texts() != entries:
            raise StoreError(
                f"{place} holds {there.rows} entries, the dictionary has {len(entries)} with this "
                "preprocessing: choose another directory for --encoded"
            )
        return
    with StoreWriter(
        place, kind="text", model=encoder.identity, dim=encoder.dim, prompt=DEFAULT_TEMPLATE
    ) as writer:
        rows = encoder.encode_text(render_prompts(entries, DEFAULT_TEMPLATE))
        keys = [f"{row:04} {entry}" for row, entry in enumerate(entries)]  # some entries repeat
        writer.append(keys, rows, texts=entries)
