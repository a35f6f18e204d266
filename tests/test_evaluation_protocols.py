"""Protocols: the published lists, written out once more, and seeded draws of others."""

from __future__ import annotations

import pytest

from bliss_index.errors import InvalidInputError
from bliss_index.evaluation.paper.protocols import (
    PROTOCOLS,
    EvaluationProtocol,
    find_protocol,
    random_classes,
)


def test_protocols_are_the_published_ones() -> None:
    shapes = {
        name: (p.classes, len(p.runs), {len(r) for r in p.runs}) for name, p in PROTOCOLS.items()
    }
    assert shapes == {
        "cifar10-one-class": (10, 10, {1}),
        "cifar10-6-vs-4": (10, 5, {6}),
        "cifar10-9-vs-1": (10, 10, {9}),
        "cifar100-20-vs-80": (100, 5, {20}),
        "tinyimagenet-20-vs-180": (200, 5, {20}),
    }
    six = "[0,1,9,7,3,2] [0,2,4,3,7,5] [5,1,9,8,7,0] [5,7,1,8,4,6] [8,1,5,3,4,6]"
    tiny = (
        "[192,112,145,107,91,180,144,193,10,125,186,28,72,124,54,77,157,169,104,166] "
        "[156,157,167,175,153,11,147,0,199,171,132,60,87,190,101,111,193,71,131,192] "
        "[28,15,103,33,90,167,61,13,124,159,49,12,54,78,82,107,80,25,140,46] "
        "[128,132,123,72,154,35,86,10,188,28,85,89,91,82,116,65,96,41,134,25] "
        "[102,79,47,106,59,93,145,10,62,175,76,183,48,130,38,186,44,8,29,26]"
    )
    for name, text in (("cifar10-6-vs-4", six), ("tinyimagenet-20-vs-180", tiny)):
        lists = [tuple(int(c) for c in run.strip("[]").split(",")) for run in text.split()]
        assert list(find_protocol(name).runs) == lists
    assert find_protocol("cifar10-one-class").runs[3] == (3,)
    assert find_protocol("cifar10-9-vs-1").runs[3] == (0, 1, 2, 4, 5, 6, 7, 8, 9)
    assert find_protocol("cifar100-20-vs-80").runs[1] == tuple(range(20, 40))


def test_other_protocols_are_reproducible_and_checked() -> None:
    drawn = random_classes(69, 6, 20, seed=1)
    assert drawn == random_classes(69, 6, 20, seed=1) and drawn.name == "6-vs-63"
    assert len(drawn.runs) == 20 and all(len(set(run)) == 6 for run in drawn.runs)
    with pytest.raises(InvalidInputError, match="between 1 and 4 .*got 5"):
        random_classes(5, 5, 1)
    with pytest.raises(InvalidInputError, match="unknown protocol 'mnist'; known are cifar10-one"):
        find_protocol("mnist")
    with pytest.raises(InvalidInputError, match="classes are 0 to 4"):
        EvaluationProtocol("x", 5, ((1, 7),))
    with pytest.raises(InvalidInputError, match=r"different normal classes, got \(1, 1\)"):
        EvaluationProtocol("x", 5, ((1, 1),))
