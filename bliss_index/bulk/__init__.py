"""Scoring as an offline job: its input, its output, its parts."""

from __future__ import annotations

from bliss_index.bulk.score_work import ScoreWork, run_job
from bliss_index.bulk.scores import ScoresDirectory
from bliss_index.bulk.settings import ScoreSettings
from bliss_index.bulk.verify import verify_scores
from bliss_index.jobs import JobOptions, JobSummary

__all__ = [
    "JobOptions",
    "JobSummary",
    "ScoreSettings",
    "ScoreWork",
    "ScoresDirectory",
    "run_job",
    "verify_scores",
]
