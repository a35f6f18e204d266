"""A path that takes long to resolve, in a module that a decoding process imports quickly."""

from __future__ import annotations

import time


class SlowPath:
    """Stands for a file on a network share that no longer answers."""

    def __fspath__(self):
        time.sleep(60)
        return "never.png"
