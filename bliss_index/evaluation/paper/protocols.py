"""Which classes count as normal: the paper's protocols, and the same kinds for other data.

In every run of a protocol all calibration images of the normal classes calibrate, the whole test
split is scored, and a test image is an anomaly if its class is not among the normal ones. AUROC is
averaged over the runs, with the population standard deviation (Goodge, Hooi, Ng, BMVC 2024).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bliss_index.errors import InvalidInputError


@dataclass(frozen=True)
class EvaluationProtocol:
    """A list of runs, each a choice of normal classes.

    Attributes
    ----------
    name
        What it is called on the command line.
    classes
        Number of classes of the data.
    runs
        Normal classes of every run, as numbers in 0..classes-1.
    """

    name: str
    classes: int
    runs: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.runs:
            raise InvalidInputError(f"protocol {self.name!r} has no runs")
        for number, run in enumerate(self.runs):
            if len(set(run)) != len(run) or not run or len(run) >= self.classes:
                raise InvalidInputError(
                    f"run {number} of protocol {self.name!r} needs between 1 and "
                    f"{self.classes - 1} different normal classes, got {run}"
                )
            if min(run) < 0 or max(run) >= self.classes:
                raise InvalidInputError(
                    f"run {number} of protocol {self.name!r} names class {min(run)} or "
                    f"{max(run)}, classes are 0 to {self.classes - 1}"
                )


def one_class(classes: int, name: str = "one-class") -> EvaluationProtocol:
    """Every class in turn is the only normal one."""
    return EvaluationProtocol(name, classes, tuple((c,) for c in range(classes)))


def all_but_one(classes: int, name: str = "all-but-one") -> EvaluationProtocol:
    """Every class in turn is the only anomalous one."""
    everything = range(classes)
    runs = tuple(tuple(c for c in everything if c != left_out) for left_out in everything)
    return EvaluationProtocol(name, classes, runs)


def random_classes(
    classes: int, normal: int, draws: int, seed: int = 0, name: str | None = None
) -> EvaluationProtocol:
    """``draws`` random choices of ``normal`` normal classes, reproducible from the seed."""
    if not 1 <= normal < classes:
        raise InvalidInputError(
            f"normal must lie between 1 and {classes - 1} (classes - 1), got {normal}"
        )
    rng = np.random.default_rng(seed)
    runs = tuple(
        tuple(int(c) for c in np.sort(rng.choice(classes, normal, replace=False)))
        for _ in range(draws)
    )
    return EvaluationProtocol(name or f"{normal}-vs-{classes - normal}", classes, runs)


_CIFAR10_SIX = (
    (0, 1, 9, 7, 3, 2),
    (0, 2, 4, 3, 7, 5),
    (5, 1, 9, 8, 7, 0),
    (5, 7, 1, 8, 4, 6),
    (8, 1, 5, 3, 4, 6),
)
# Positions in the sorted list of the 200 WordNet identifiers.
# fmt: off
_TINY_TWENTY = (
    (192, 112, 145, 107, 91, 180, 144, 193, 10, 125,
     186, 28, 72, 124, 54, 77, 157, 169, 104, 166),
    (156, 157, 167, 175, 153, 11, 147, 0, 199, 171,
     132, 60, 87, 190, 101, 111, 193, 71, 131, 192),
    (28, 15, 103, 33, 90, 167, 61, 13, 124, 159,
     49, 12, 54, 78, 82, 107, 80, 25, 140, 46),
    (128, 132, 123, 72, 154, 35, 86, 10, 188, 28,
     85, 89, 91, 82, 116, 65, 96, 41, 134, 25),
    (102, 79, 47, 106, 59, 93, 145, 10, 62, 175,
     76, 183, 48, 130, 38, 186, 44, 8, 29, 26),
)
# fmt: on

PROTOCOLS: dict[str, EvaluationProtocol] = {
    protocol.name: protocol
    for protocol in (
        one_class(10, "cifar10-one-class"),
        EvaluationProtocol("cifar10-6-vs-4", 10, _CIFAR10_SIX),
        all_but_one(10, "cifar10-9-vs-1"),
        EvaluationProtocol(
            "cifar100-20-vs-80",
            100,
            tuple(tuple(range(first, first + 20)) for first in range(0, 100, 20)),
        ),
        EvaluationProtocol("tinyimagenet-20-vs-180", 200, _TINY_TWENTY),
    )
}


def find_protocol(name: str, *, also: tuple[str, ...] = ()) -> EvaluationProtocol:
    """Return the protocol of this name.

    Raises
    ------
    InvalidInputError
        There is none of this name; the names in `also` and all protocols are listed.
    """
    if name not in PROTOCOLS:
        known = ", ".join((*also, *PROTOCOLS))
        raise InvalidInputError(f"unknown protocol {name!r}; known are {known}")
    return PROTOCOLS[name]
