"""Reading a list of words: cleaned, without duplicates, in memory and on disk.

The yardstick reads the lines into a dictionary, which cleans nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def words(request, tmp_path_factory):
    """A million lines, a fifth of them repeated."""
    count = max(1000, int(1_000_000 * request.config.getoption("scale")))
    path = tmp_path_factory.mktemp("words") / "words.txt"
    with path.open("w") as file:
        file.writelines(f"some words number {row * 4 // 5}\n" for row in range(count))
    return path, count


@pytest.mark.benchmark(group="text")
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_reading_words(paired, words, tmp_path, where):
    from bliss_index.encode.spooled_vocabulary import spool_vocabulary
    from bliss_index.vocabulary import load_vocabulary

    path, count = words

    def ours() -> None:
        if where == "memory":
            load_vocabulary([path])
        else:
            with spool_vocabulary([path], tmp_path) as spooled:
                len(spooled)

    def lines() -> None:
        dict.fromkeys(Path(path).read_text().splitlines())

    paired({where: ours, "lines": lines}, count=count, rounds=5)
