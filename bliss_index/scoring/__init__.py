"""BLISS scores: formulas and tables, thresholds, and scoring as a work.

Names are imported when first used, so that importing this package stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bliss_index.jobs import JobOptions, JobSummary
    from bliss_index.scoring.score_settings import ScoreSettings
    from bliss_index.scoring.score_verify import verify_scores
    from bliss_index.scoring.score_work import ScoreWork, run_job
    from bliss_index.scoring.scores_directory import ScoresDirectory

__all__ = [
    "JobOptions",
    "JobSummary",
    "ScoreSettings",
    "ScoreWork",
    "ScoresDirectory",
    "run_job",
    "verify_scores",
]

_HOMES = {
    "JobOptions": "bliss_index.jobs",
    "JobSummary": "bliss_index.jobs",
    "ScoreSettings": "bliss_index.scoring.score_settings",
    "ScoreWork": "bliss_index.scoring.score_work",
    "ScoresDirectory": "bliss_index.scoring.scores_directory",
    "run_job": "bliss_index.scoring.score_work",
    "verify_scores": "bliss_index.scoring.score_verify",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
