"""Which model made an embedding: recorded with it, and compared before two are multiplied."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from bliss_index.errors import CorruptStoreError, ModelMismatchError


@dataclass(frozen=True)
class ModelIdentity:
    """The model behind a set of embeddings.

    Attributes
    ----------
    name : str
        open_clip's name of the architecture, such as ``ViT-B-16``.
    pretrained : str or None
        open_clip's tag of the weights, or a path; None when whoever imported the embeddings did
        not say.
    weights_sha256 : str or None
        Hash of the weights; None for imported embeddings, whose weights were never seen.
    context_length, quick_gelu, tokenizer, preprocess
        What else decides an embedding's value; None where unknown.
    """

    name: str
    pretrained: str | None
    weights_sha256: str | None = None
    context_length: int | None = None
    quick_gelu: bool | None = None
    tokenizer: dict[str, Any] | None = None
    preprocess: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; :meth:`from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> ModelIdentity:
        """Read what :meth:`to_json` wrote; raise `CorruptStoreError` on anything else."""
        if not isinstance(values, dict) or not isinstance(values.get("name"), str):
            raise CorruptStoreError(f"a model identity needs a 'name'; found {values!r}")
        expected = {
            "pretrained": str,
            "weights_sha256": str,
            "context_length": int,
            "quick_gelu": bool,
            "tokenizer": dict,
            "preprocess": dict,
        }
        for field, kind in expected.items():
            value = values.get(field)
            if value is not None and not isinstance(value, kind):
                raise CorruptStoreError(
                    f"model identity: {field!r} is {value!r}, expected {kind.__name__} or null"
                )
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise CorruptStoreError(
                f"model identity: unknown fields {unknown}; written by a newer version?"
            )
        return cls(**{"pretrained": None, **values})

    def describe(self) -> str:
        """Name the model in a few words, for messages and tables."""
        text = f"{self.name} ({self.pretrained or 'weights not stated'})"
        if self.weights_sha256:
            text += f" sha256 {self.weights_sha256[:12]}"
        if self.quick_gelu:
            text += " quick-gelu"
        return text


def require_same_model(
    first: ModelIdentity, second: ModelIdentity, what_first: str, what_second: str
) -> None:
    """Refuse to compare embeddings of two models.

    Name and pretrained tag must agree; hashes of weights and the quick-gelu setting must agree
    where both are known. Preprocessing is not compared: text has none.

    Raises
    ------
    ModelMismatchError
        Naming both embeddings, both identities and the field that differs.
    """
    pairs = [
        ("model name", first.name.replace("/", "-"), second.name.replace("/", "-")),
        ("pretrained tag", first.pretrained, second.pretrained),
    ]
    if first.weights_sha256 and second.weights_sha256:
        # Equal weights are equal however they were named or wherever they were loaded from.
        pairs[1] = ("weights' SHA-256", first.weights_sha256, second.weights_sha256)
    if first.quick_gelu is not None and second.quick_gelu is not None:
        pairs.append(("quick-gelu", str(first.quick_gelu), str(second.quick_gelu)))
    for field, left, right in pairs:
        if left != right:
            raise ModelMismatchError(
                f"{what_first} and {what_second} were made by different models: {field} is "
                f"{left!r} and {right!r} ({first.describe()} against {second.describe()}). "
                "Encode or import one of them again with the other's model."
            )
