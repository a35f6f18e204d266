"""A key that occurs in several parts: whoever looks it up is told, and where it is."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bliss_index.calibration.labels import Labels, class_numbers
from bliss_index.errors import InvalidInputError
from bliss_index.evaluation.from_scores import evaluate_directory
from bliss_index.report.explanation import explain_image
from bliss_index.scoring import run_job
from bliss_index.store import EmbeddingStore, ModelIdentity
from bliss_index.store.import_work import import_embeddings


@pytest.fixture(scope="module")
def repeated(job, tmp_path_factory):
    """Two files with a key in common, and in the first one key twice; scored, and as a store."""
    folder = tmp_path_factory.mktemp("repeated")
    (folder / "in").mkdir()
    rows = EmbeddingStore.open(job.images).embeddings()
    keys = [*(f"a{i}" for i in range(8)), "a0", "both"], [*(f"b{i}" for i in range(9)), "both"]
    for number, names in enumerate(keys):
        vectors = rows[10 * number : 10 * number + 10].astype(np.float32)
        table = pa.table({"key": names, "embedding": list(vectors)})
        pq.write_table(table, folder / "in" / f"{number}.parquet")
    run_job(folder / "in", folder / "scores", job.settings())
    import_embeddings(
        folder / "in", folder / "store", kind="image", model=ModelIdentity("ViT-B-32", "openai")
    )
    return folder, [*keys[0], *keys[1]]


def write_labels(path, keys, value=lambda key: "cat"):
    path.write_text("key,label\n" + "".join(f"{key},{value(key)}\n" for key in keys))
    return path


def test_explain(repeated):
    folder, _ = repeated
    with pytest.raises(InvalidInputError, match=r"2 parts of .* 'both': row 9 of 0.parquet, row 9"):
        explain_image(folder / "scores", "both")
    assert explain_image(folder / "scores", "a0").anomaly_score is not None  # the other has none
    assert explain_image(folder / "scores", "b3").key == "b3"


def test_labels_by_key(repeated, tmp_path):
    folder, keys = repeated
    store = EmbeddingStore.open(folder / "store")
    ambiguous = write_labels(tmp_path / "l.csv", ["a0", "a1", "both"])
    with pytest.raises(InvalidInputError, match="label for 'both', of which shards 0 and 1"):
        class_numbers(Labels.read(ambiguous), store, ["cat"])
    clear = write_labels(tmp_path / "clear.csv", ["a0", "a1"])
    found = class_numbers(Labels.read(clear), store, ["cat"])
    assert np.flatnonzero(found.numbers == 0).tolist() == [0, 1]
    by_row = tmp_path / "rows.txt"
    by_row.write_text("cat\n" * len(keys))
    assert class_numbers(Labels.read(by_row), store, ["cat"]).unlabelled == 0


def test_known_anomalies_by_key(repeated, tmp_path):
    folder, _ = repeated
    known = write_labels(tmp_path / "l.csv", ["a1", "both"], lambda key: int(key == "both"))
    with pytest.raises(InvalidInputError, match="shards 0 and 1 both have a row"):
        evaluate_directory(folder / "scores", known)
