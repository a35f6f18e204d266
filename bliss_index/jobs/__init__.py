"""One engine for every long work: plan, do, commit, record, finish; it knows no kind of work."""

from __future__ import annotations

from bliss_index.jobs.job import run
from bliss_index.jobs.listener import JobListener
from bliss_index.jobs.options import JobOptions
from bliss_index.jobs.part import Part, Plan
from bliss_index.jobs.record import Record
from bliss_index.jobs.state import JobSummary
from bliss_index.jobs.work import Outcome, Work, Worker

__all__ = [
    "JobListener",
    "JobOptions",
    "JobSummary",
    "Outcome",
    "Part",
    "Plan",
    "Record",
    "Work",
    "Worker",
    "run",
]
