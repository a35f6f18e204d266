"""One row of the plan."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Row:
    """Something to check or to time.

    Attributes
    ----------
    group, name
        What it is called; names are unique within a group.
    function
        "module:function", given the bench and the parameters. Where a result says ``exact``, that
        tells whether it is right.
    parameters
        JSON values.
    seconds
        In which it has to answer: its deadline, several times what it should take.
    small
        Parameters that are others in a rehearsal.
    cuda
        Whether it needs a CUDA device; in a rehearsal it runs nevertheless.
    """

    group: str
    name: str
    function: str
    parameters: dict[str, Any]
    seconds: float
    small: dict[str, Any] = field(default_factory=dict)
    cuda: bool = True

    def rehearsed(self) -> Row:
        """The same row with small parameters."""
        return replace(self, parameters={**self.parameters, **self.small}, cuda=False)


def select(rows: list[Row], only: list[str], skip: list[str]) -> list[Row]:
    """Keep the rows of some groups, in order.

    Raises
    ------
    ValueError
        There is no such group; those that there are are named.
    """
    groups = list(dict.fromkeys(row.group for row in rows))
    for name in (*only, *skip):
        if name not in groups:
            raise ValueError(f"no group {name!r}; the groups are {', '.join(groups)}")
    return [row for row in rows if row.group not in skip and (not only or row.group in only)]
