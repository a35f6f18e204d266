"""Typed errors.

Every error raised on purpose derives from :class:`BlissError`, names the values that disagree and
says what to do about it. The command line prints the message alone and exits with code 1.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

_MOST_LISTED = 5


class BlissError(Exception):
    """Base class of all errors that bliss_index raises on purpose."""


class InvalidInputError(BlissError, ValueError):
    """An argument, array or input file does not meet the stated contract."""


class NotFittedError(InvalidInputError, AttributeError):
    """A detector was asked before it was fitted."""


class StoreError(BlissError):
    """An embedding store, corpus or calibration cannot be read or used as asked."""


class CorruptStoreError(StoreError):
    """Stored data disagree with their manifest: truncated, altered or not ours."""


class ModelMismatchError(BlissError):
    """Embeddings of different models were about to be compared."""


class StaleIndexError(StoreError):
    """A search index belongs to another corpus, or to an earlier state of this one."""


class CalibrationError(BlissError):
    """The calibration images cannot give a mean and deviation for every class."""


class EncoderError(BlissError):
    """A model, its weights or its tokenizer cannot be loaded as declared."""


class MissingDependencyError(BlissError, ImportError):
    """An optional package is needed; the message holds the pip line that installs it."""


class OutputError(BlissError):
    """An output cannot be written where it was asked for."""


class JobError(BlissError):
    """A bulk job cannot start, continue or complete as asked."""


class CalibrationWarning(UserWarning):
    """Scores can be computed, but are known to be unreliable; the message says what helps."""


def listed(values: Collection[object]) -> str:
    """Write the first five of some values for a message, and how many more there are.

    Examples
    --------
    >>> listed(range(7))
    '0, 1, 2, 3, 4 and 2 more'
    """
    text = ", ".join(str(value) for value in islice(values, _MOST_LISTED))
    rest = len(values) - _MOST_LISTED
    return f"{text} and {rest} more" if rest > 0 else text


def install_line(extra: str) -> str:
    """Return the command that adds an extra to this installation.

    pip and uv take the package itself from where it is installed, so the line also works for a
    clone, or a wheel that came from no index.

    Examples
    --------
    >>> install_line("report")
    "pip install 'bliss-index[report]'"
    """
    return f"pip install 'bliss-index[{extra}]'"


def not_fitted_error(message: str) -> NotFittedError:
    """Make the error; where scikit-learn is installed it is one of its own, too."""
    try:
        from sklearn.exceptions import NotFittedError as TheirError
    except ImportError:
        return NotFittedError(message)
    both = type("NotFittedError", (NotFittedError, TheirError), {"__module__": __name__})
    return both(message)  # type: ignore[no-any-return]
