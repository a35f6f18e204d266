"""How a job runs, which decides nothing about its output."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bliss_index.errors import InvalidInputError

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class JobOptions:
    """How a job runs. Nothing here changes its output.

    Attributes
    ----------
    workers
        Processes; 1 works within this one.
    devices
        Devices that the workers take in turn, such as "cuda:0", "cuda:1"; with Ray at most one.
    engine
        "local" processes, or "ray".
    task
        "i/n": do only the parts whose number is i modulo n, beside the other tasks of an array.
    memory
        Budget in bytes for all processes; None for 80 % of what is available.
    max_bad_fraction
        Share of bad rows above which the job stops.
    deadline : float, default=1800.0
        Seconds without any progress after which a worker process, or a Ray actor that has a part,
        is killed and replaced. Must exceed what opening a worker and a single batch take.
    """

    workers: int = 1
    devices: tuple[str, ...] = ()
    engine: str = "local"
    task: str | None = None
    memory: int | None = None
    max_bad_fraction: float = 1.0
    deadline: float = 1800.0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InvalidInputError(f"workers must be at least 1, got {self.workers}")
        if self.engine not in ENGINES:
            raise InvalidInputError(f"engine must be {' or '.join(ENGINES)}, got {self.engine!r}")
        if self.engine == "ray" and len(self.devices) > 1:
            raise InvalidInputError(
                "with engine 'ray', Ray gives every worker a GPU: name one device, such as "
                f"'cuda', and the number of workers; got devices {', '.join(self.devices)}"
            )
        if not self.deadline > 0:
            raise InvalidInputError(f"deadline must be positive, got {self.deadline}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise InvalidInputError(
                f"max_bad_fraction must lie between 0 and 1, got {self.max_bad_fraction}"
            )
        self.task_numbers()

    @property
    def processes(self) -> int:
        """Workers, at least one a device."""
        return max(self.workers, len(self.devices))

    def task_numbers(self) -> tuple[int, int]:
        """Return i and n of the task; 0 and 1 without one."""
        if self.task is None:
            return 0, 1
        match = re.fullmatch(r"(\d+)/(\d+)", self.task)
        if match is None or int(match[1]) >= int(match[2]):
            raise InvalidInputError(
                f"task must be i/n with i from 0 to n - 1, such as 0/8, got {self.task!r}"
            )
        return int(match[1]), int(match[2])
