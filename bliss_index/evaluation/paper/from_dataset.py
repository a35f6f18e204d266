"""The paper's protocols on its own data sets: encode what is on disk, then evaluate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bliss_index.calibration.class_texts import ClassTexts
from bliss_index.encode import load_encoder
from bliss_index.encode.image_work import encode_image_store
from bliss_index.evaluation.from_stores import evaluate_stores
from bliss_index.evaluation.paper.datasets import dataset_of_protocol, open_dataset
from bliss_index.evaluation.paper.protocol_run import ProtocolReport
from bliss_index.jobs.listener import RowsListener
from bliss_index.store import EmbeddingStore, require_same_model
from bliss_index.vocabulary import DEFAULT_TEMPLATE, render_prompts

Progress = Callable[[int], None]


def evaluate_dataset(
    folder: str | Path,
    protocol: str,
    corpus: str | Path,
    encoded: str | Path,
    *,
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
        Text store of the vocabulary.
    encoded
        Directory for the stores ``train`` and ``test``. What is there already is used; what was
        interrupted is continued.
    preprocess, device
        As for :func:`bliss_index.encode.load_encoder`.
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
    model = EmbeddingStore.open(corpus, kind="text").model
    encoder = load_encoder(model.name, model.pretrained, device=device, preprocess=preprocess)
    require_same_model(model, encoder.identity, f"corpus {corpus}", "the model of that name here")
    splits = {"train": dataset.train, "test": dataset.test}
    for name, split in splits.items():
        notify(f"{dataset.name}: {len(split.labels.values)} images, {name}")
        # What is encoded already stays; a store of anything else is refused.
        listener = None if progress is None else RowsListener(progress)
        encode_image_store(encoder, split.source, f"{encoded}/{name}", listener=listener)
    texts = encoder.encode_text(render_prompts(dataset.classes, DEFAULT_TEMPLATE))
    classes = ClassTexts(
        dataset.classes, texts, encoder.identity, f"the classes of {dataset.name}", DEFAULT_TEMPLATE
    )
    return evaluate_stores(
        f"{encoded}/test", dataset.test.labels, f"{encoded}/train", dataset.train.labels,
        classes, corpus, protocol, detectors=detectors, k=k, threads=threads,
    )  # fmt: skip
