"""What a person may name as devices, and what "auto" stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bliss_index import devices, exact_search
from bliss_index.devices import device_name, device_names, resolve_device
from bliss_index.errors import InvalidInputError, MissingDependencyError


def test_processors_are_counted_in_one_place() -> None:
    """Which knows control groups, and systems without an affinity."""
    package = Path(devices.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "sched_getaffinity" in path.read_text()
    }
    assert found == {"devices.py"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("auto", ("auto",)),
        ("cpu", ("cpu",)),
        ("0,1", ("cuda:0", "cuda:1")),
        (" cuda:3 , mps", ("cuda:3", "mps")),
        ("7", ("cuda:7",)),
    ],
)
def test_lists(text: str, names: tuple[str, ...]) -> None:
    assert device_names(text) == names


@pytest.mark.parametrize("text", ["", "0,,1", "gpu", "cuda:x", "-1", "1.5", "\u0663", "0;1"])
def test_lists_that_name_no_device(text: str) -> None:
    with pytest.raises(InvalidInputError, match="is not known; give 'auto' or one of cpu, cuda"):
        device_names(text)


def test_devices_of_torch() -> None:
    assert device_name(torch.device("cuda", 1)) == "cuda:1"
    assert resolve_device(torch.device("cpu")) == "cpu"
    entries = torch.eye(8).numpy()
    search = exact_search(entries, 2, device=torch.device("cpu"))  # type: ignore[arg-type]
    assert search.search(entries[:1])[1][0, 0] == 0


@pytest.mark.parametrize("there", [True, False])
def test_auto(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    gpu = ("cuda", "a card") if there else (None, "no GPU driver is here")
    monkeypatch.setattr("bliss_index.devices.find_gpu", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(there))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == ("cuda" if there else "cpu")
    assert resolve_device("auto", among=("cuda", "mps")) == ("cuda" if there else "mps")
    assert resolve_device("cuda:5", here=False) == "cuda:5"
    if there:
        assert resolve_device("cuda:0") == "cuda:0"
    else:
        with pytest.raises(MissingDependencyError, match=r"'cuda:0' cannot be used: no GPU driver"):
            resolve_device("cuda:0")
