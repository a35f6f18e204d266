"""Scores whose every step runs on a torch device, against those of the processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bulk_fixtures import make_job

from bliss_index.bench.synthetic import clip_like
from bliss_index.calibration import calibrate
from bliss_index.errors import InvalidInputError, JobError
from bliss_index.scoring import JobOptions, ScoreSettings, run_job
from bliss_index.scoring.device_scorer import DeviceScorer, DeviceTables
from bliss_index.scoring.score_settings import ScoringInputs
from bliss_index.scoring.scorer import BlissScorer
from bliss_index.search import TensorSearch, exact_search
from bliss_index.search.device.backend import DeviceBackend
from bliss_index.search.device.engine import torch_engine


class OnTensors:
    """A search on CPU tensors: what ExactSearch is on a GPU."""

    name = "exact"
    device = "cpu"

    def __init__(self, vocabulary: Any, k: int) -> None:
        self.size, self.dim = vocabulary.shape
        self.k = k
        self._backend = DeviceBackend(vocabulary, k, device="cpu", engine=torch_engine())

    def search(self, queries: Any, /) -> Any:
        values, ids, _ = self._backend.search(queries, 0)
        return values.astype(np.float32), ids

    def search_tensors(self, queries: Any) -> Any:
        values, ids, _ = self._backend.search_tensors(queries)
        return values.float(), ids


@pytest.fixture(scope="module")
def chain() -> Any:
    """Vocabulary, images, and a calibration of a large class, a class of few images, and more."""
    dim = 24
    vocabulary = clip_like(900, dim, "text", 1, np.float16)
    images = clip_like(700, dim, "image", 2, np.float16)
    labels = np.repeat([0, 1, 2, 3], [400, 10, 100, 190])
    texts = clip_like(4, dim, "text", 3, np.float64)
    return vocabulary, clip_like(333, dim, "image", 4, np.float16), calibrate(
        [(images, labels)], texts
    )  # fmt: skip


def test_scores_are_those_of_the_processor(chain: Any) -> None:
    vocabulary, images, calibration = chain
    search = OnTensors(vocabulary, 7)
    assert isinstance(search, TensorSearch)
    on_device = DeviceScorer(search, vocabulary, calibration, lam=0.3)
    expected = BlissScorer(
        exact_search(vocabulary, 7), vocabulary, calibration, lam=0.3
    ).score(images)  # fmt: skip
    found = on_device.score(images)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.similarities, expected.similarities)
    np.testing.assert_array_equal(found.nearest_class, expected.nearest_class)
    for name in ("anomaly", "internal", "external"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-6
        )
    contributions = on_device.contributions(found)
    np.testing.assert_allclose(contributions.sum(1), 0.3 * found.external, rtol=1e-9, atol=1e-12)
    assert on_device.k == 7


def test_tables_are_those_of_the_calibration(chain: Any) -> None:
    vocabulary, _, calibration = chain
    tables = DeviceTables(vocabulary, calibration, torch.device("cpu"))
    tables.require(torch.tensor([[5, 17], [5, 899]]))
    assert tables.known == 3
    mu, sigma = calibration.statistics(vocabulary[[5, 17, 899]])
    np.testing.assert_allclose(tables.scale[[5, 17, 899]], 1 / sigma, rtol=1e-6)
    np.testing.assert_allclose(tables.shift[[5, 17, 899]], mu / sigma, rtol=1e-6)


def test_pieces_join(chain: Any) -> None:
    vocabulary, images, calibration = chain
    scorer = DeviceScorer(OnTensors(vocabulary, 3), vocabulary, calibration)
    staged = scorer.stage(images)
    pieces = [scorer.find(staged[:100]), scorer.find(staged[100:])]
    joined = scorer.combine(staged, *scorer.join(pieces))
    np.testing.assert_array_equal(joined.anomaly, scorer.score(images).anomaly)
    nothing = scorer.score(images[:0])
    assert nothing.anomaly.shape == (0,) and nothing.ids.shape == (0, 3)


def test_what_does_not_fit_is_refused(chain: Any) -> None:
    vocabulary, _, calibration = chain
    with pytest.raises(InvalidInputError, match="search is over 900 x 24 entries, .* 899 x 24"):
        DeviceScorer(OnTensors(vocabulary, 3), vocabulary[1:], calibration)
    with pytest.raises(InvalidInputError, match="lam must be a finite number"):
        DeviceScorer(OnTensors(vocabulary, 3), vocabulary, calibration, lam=-1)


def test_a_job_with_a_device_scorer(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bulk job with everything on tensors: same rows, keys, status; scores alike."""
    job = make_job(tmp_path)
    run_job(job.images, tmp_path / "processor", job.settings())

    def job_scorer(self: ScoringInputs) -> DeviceScorer:
        entries = self.corpus.embeddings()
        return DeviceScorer(OnTensors(entries, self.settings.k), entries, self.calibration)

    monkeypatch.setattr(ScoringInputs, "job_scorer", job_scorer)
    run_job(job.images, tmp_path / "device", job.settings(explain=True))
    expected = pq.read_table(tmp_path / "processor").to_pandas()
    found = pq.read_table(tmp_path / "device").to_pandas()
    for name in ("key", "nearest_class", "status", "error"):
        assert found[name].equals(expected[name])
    for name in ("anomaly_score", "internal_score", "external_score"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5)
    assert found["entries"].str.len().eq(5).all()


def test_a_job_continues_only_where_its_scores_were_computed(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path)
    run_job(job.images, tmp_path / "scores", job.settings())
    monkeypatch.setattr(ScoreSettings, "on_gpu", True)
    with pytest.raises(JobError, match="processor.*GPU|GPU.*processor"):
        run_job(job.images, tmp_path / "scores", job.settings())


def test_every_process_of_a_job_takes_the_same_device(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "auto" is decided where the job starts: Ray's actors see only the GPUs they ask for."""
    job = make_job(tmp_path)
    given: list[Any] = []
    devices: list[str] = []

    def run_on_ray(run: Any) -> Any:
        given.append(run.task.work.scoring)
        devices.extend(run.devices)
        return iter(())

    monkeypatch.setattr("bliss_index.jobs.ray_engine.run_on_ray", run_on_ray)
    options = JobOptions(engine="ray", devices=("auto",))
    for number, device in enumerate(("cuda", None)):
        monkeypatch.setattr(
            "bliss_index.devices.find_gpu", lambda device=device: (device, "a card")
        )
        out = tmp_path / f"scores {number}"
        run_job(job.images, out, job.settings(device="auto", search="auto"), options)
    assert [settings.device for settings in given] == ["cuda", "cpu"]
    assert devices == ["cuda", "cpu"]
    assert [settings.on_gpu for settings in given] == [True, False]
