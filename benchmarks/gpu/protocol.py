"""What the suite and its worker say to each other: one JSON object a line."""

from __future__ import annotations

import json
from typing import Any


class UnavailableError(Exception):
    """A row cannot be measured here, which is no failure; the message is the reason."""


def to_line(message: dict[str, Any]) -> bytes:
    """Encode a message; numbers of numpy and torch become Python's."""
    return json.dumps(message, default=_plain).encode() + b"\n"


def from_line(line: bytes) -> dict[str, Any]:
    """Decode a message.

    Raises
    ------
    ValueError
        It is no JSON object.
    """
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError(f"a message must be a JSON object, got {line[:80]!r}")
    return message


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
