"""Properties of the search on a device, whatever the sizes and settings."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_device_search import assert_exact

from bliss_index.search.device.backend import DeviceBackend, DeviceOptions
from bliss_index.search.device.engine import torch_engine


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 400),
    queries=st.integers(1, 40),
    k=st.integers(1, 12),
    rows=st.integers(1, 50),
    block=st.integers(1, 400),
    seed=st.integers(0, 2**31),
)
def test_no_setting_changes_a_result(
    size: int, queries: int, k: int, rows: int, block: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    entries = rng.integers(-2, 3, (size, 6)).astype(np.float32)  # many ties
    rows_ = rng.integers(-2, 3, (queries, 6)).astype(np.float32)
    k = min(k, size)
    options = DeviceOptions(rows=rows, block=block)
    backend = DeviceBackend(entries, k, device="cpu", options=options, engine=torch_engine())
    assert_exact(backend, entries, rows_, k)
