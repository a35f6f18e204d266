"""What is untrusted is bounded; quotas are kept; Ctrl-C ends everything soon."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from importlib.util import find_spec

import numpy as np
import pytest
from bulk_fixtures import shard

from bliss_index import devices as processors
from bliss_index.store import EmbeddingStore

if find_spec("PIL") is None:
    pytest.skip("Pillow is not installed", allow_module_level=True)

from PIL import Image

from bliss_index.encode import decode
from bliss_index.encode.image_archives import TarSource


def test_a_sparse_member_of_a_tar_is_a_row_with_a_reason(tmp_path):
    """10 kB of archive that say they hold 20 GiB."""
    for name in ("a", "c"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    with open(tmp_path / "d.png", "wb") as file:
        file.truncate(20 << 30)
    subprocess.run(
        ["tar", "--sparse", "-cf", "x.tar", "a.png", "c.png", "d.png"], cwd=tmp_path, check=True
    )
    assert (tmp_path / "x.tar").stat().st_size < 20_000
    rows = list(TarSource(tmp_path / "x.tar").iter())
    assert [row.key for row in rows] == ["a", "c", "d"]
    assert rows[2].content == b""
    assert rows[2].error.startswith(f"too_large: {20 << 30} bytes")
    assert [row.error for row in rows[:2]] == [None, None]


def test_a_picture_that_takes_gigabytes_is_refused_by_its_header():
    """Few bytes, within the limit of pixels, but of a mode that is copied over and over."""
    picture = io.BytesIO()
    Image.new("I;16", (11_000, 11_000)).save(picture, "PNG", compress_level=9)
    assert len(picture.getvalue()) < 1 << 20
    with pytest.raises(decode.DecodeError, match="too_large: 11000 x 11000 pixels of mode I;16"):
        decode.decode_image(picture.getvalue())


def test_a_file_of_more_bytes_than_allowed_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MAX_BYTES", 100)
    (tmp_path / "x.png").write_bytes(bytes(101))
    for given in (tmp_path / "x.png", bytes(101)):
        with pytest.raises(decode.DecodeError, match="too_large: 101 bytes"):
            decode.decode_image(given)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.max": "150000 100000"}, 2),
        ({"a/cpu.max": "50000 100000", "cpu.max": "400000 100000"}, 1),
        ({"a/b/cpu.max": "900000 100000", "a/cpu.max": "300000 100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ({"cpu.max": "nonsense"}, 64),
    ],
)
def test_quotas_of_control_groups(tmp_path, monkeypatch, files, expected):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    version_1 = any(name.startswith("cpu/") for name in files)
    line = "4:cpu,cpuacct:/\n" if version_1 else "0::/a/b\n"
    (tmp_path / "proc" / "self" / "cgroup").write_text(line)
    for name, content in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.setattr(processors, "_CGROUPS", tmp_path / "proc")
    monkeypatch.setattr(processors, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert processors.usable_processors() == expected


def test_ctrl_c_ends_a_command_in_the_middle_of_a_long_call(tmp_path):
    """A call that knows no signals stands for a product of large matrices."""
    script = textwrap.dedent(
        """
        import hashlib, sys
        import bliss_index.report.information as information

        def endless():
            print("begun", file=sys.stderr, flush=True)
            hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9)

        information.describe_installation = endless
        from bliss_index.cli.app import run
        run()
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "info"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr.readline() == "begun\n"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 4  # 2 s, and a loaded machine
    assert process.returncode == 130
    assert "interrupted; what is done is kept" in errors


def test_a_damaged_file_of_a_folder_fails_alone(job, tmp_path):
    """Somebody else's files: one is truncated; the others are scored, and it later."""
    from bliss_index.scoring import ScoresDirectory, run_job, verify_scores

    rows = EmbeddingStore.open(job.images).embeddings()
    (tmp_path / "in").mkdir()
    for number in range(3):
        np.save(tmp_path / "in" / f"{number}.npy", rows[100 * number : 100 * number + 100])
    path = tmp_path / "in" / "1.npy"
    good = path.read_bytes()
    path.write_bytes(good[:-7])
    summary = run_job(tmp_path / "in", tmp_path / "s", job.settings())
    assert (summary.parts_done, summary.rows, summary.complete) == (2, 200, False)
    ((name, reason),) = summary.failed
    assert name == "1.npy"
    assert "its header promises" in reason
    path.write_bytes(good)
    summary = run_job(tmp_path / "in", tmp_path / "s", job.settings())
    assert (summary.rows, summary.complete, summary.parts_earlier) == (300, True, 2)
    keys = ScoresDirectory.open(tmp_path / "s").table(["key"]).column("key").to_pylist()
    assert len(set(keys)) == 300
    assert verify_scores(tmp_path / "s").ok


def test_a_shard_that_is_cut_off_while_it_is_scored_fails_alone(job, whole, tmp_path, monkeypatch):
    """In place, as a copy over it does: what is mapped would end the process."""
    import shutil

    from bliss_index.scoring import run_job
    from bliss_index.search import ExactSearch

    shutil.copytree(job.images, tmp_path / "images")
    victims = [shard(tmp_path / "images", index) for index in (2, 5)]
    search = ExactSearch.search
    searches = []

    def cutting(self, images):
        searches.append(len(images))
        if len(searches) == 3:
            for victim in victims:
                os.truncate(victim, 100)
        return search(self, images)

    monkeypatch.setattr("bliss_index.scoring.score_work._sample", lambda part: np.empty((0, 0)))
    monkeypatch.setattr(ExactSearch, "search", cutting)
    summary = run_job(tmp_path / "images", tmp_path / "s", job.settings())
    assert shard(job.images, 5).name in [name for name, _ in summary.failed]
    assert all("CorruptStoreError" in reason for _, reason in summary.failed)
    assert summary.parts_done + len(summary.failed) == 6
    done = {p.name: p.read_bytes() for p in (tmp_path / "s").glob("part-*")}
    assert done.items() <= whole.items()  # of those that were whole when they were read
