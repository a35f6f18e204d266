"""The offline job: plan, stream, score, commit."""

from __future__ import annotations

from bliss_index.bulk.job import run_job
from bliss_index.bulk.options import JobOptions
from bliss_index.bulk.scores import ScoresDirectory
from bliss_index.bulk.settings import ScoreSettings
from bliss_index.bulk.state import JobSummary
from bliss_index.bulk.verify import verify_scores

__all__ = [
    "JobOptions",
    "JobSummary",
    "ScoreSettings",
    "ScoresDirectory",
    "run_job",
    "verify_scores",
]
