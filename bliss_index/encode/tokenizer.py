"""Text to token ids, with the count of tokens that did not fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.encode.checkpoint import ModelSource
from bliss_index.encode.torchvision_cure import import_open_clip, root_logger_kept
from bliss_index.errors import EncoderError, MissingDependencyError

# ftfy and html.unescape change nothing in printable ASCII without "&"; they cost more than BPE.
_PLAIN = re.compile(r"[ -%'-~]+")
_MOST_WORDS = 200_000  # whose byte pairs are remembered, about 40 MB


@dataclass(frozen=True)
class Tokens:
    """Token ids (n, context length) int64, and which texts had to be cut, (n,) bool."""

    ids: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Tokenizer:
    """A model's own tokenizer, checked against the model's vocabulary.

    Attributes
    ----------
    settings : dict
        What decides the token ids; part of the model identity.
    context_length : int
        Positions of the text tower; longer texts are cut, the end token is kept.
    """

    settings: dict[str, Any]
    context_length: int
    _encode: Callable[[Sequence[str]], list[list[int]]]
    _full: Callable[[Sequence[str]], Any]
    _pads_with_zero: bool

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Token ids of `texts`, as open_clip's tokenizer gives them."""
        lists = self._encode(texts)
        length = self.context_length
        truncated = np.fromiter((len(ids) > length for ids in lists), bool, len(lists))
        if not self._pads_with_zero:
            ids = np.asarray(self._full(list(texts)).numpy(), dtype=np.int64)
            return Tokens(ids.reshape(len(lists), length), truncated)
        table = np.zeros((len(lists), length), dtype=np.int64)
        for row, tokens in enumerate(lists):
            kept = tokens if len(tokens) <= length else [*tokens[: length - 1], tokens[-1]]
            table[row, : len(kept)] = kept
        return Tokens(table, truncated)

    def find_truncated(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which texts, (n,) bool, have more tokens than the context length."""
        result = np.zeros(len(texts), dtype=bool)
        # A byte pair is at least one character: a short text need not be tokenised to know.
        long = [row for row, text in enumerate(texts) if not self._surely_fits(text)]
        lists = self._encode([texts[row] for row in long])
        result[long] = [len(ids) > self.context_length for ids in lists]
        return result

    def _surely_fits(self, text: str) -> bool:
        bytewise = self._pads_with_zero and _PLAIN.fullmatch(text) is not None
        return bytewise and len(text) + 2 <= self.context_length


def load_tokenizer(source: ModelSource) -> Tokenizer:
    """The tokenizer that `source` was trained with.

    Raises
    ------
    MissingDependencyError
        The tokenizer belongs to the transformers package, which is not installed.
    EncoderError
        The tokenizer cannot be fetched, or its vocabulary is not the model's.
    """
    open_clip = import_open_clip()
    from open_clip.tokenizer import SimpleTokenizer

    text = source.config["text_cfg"]
    foreign = _foreign_tokenizer(source.open_clip_name, text)
    if foreign is not None:
        _require_transformers(source.name, foreign)
    try:
        with root_logger_kept():
            tokenizer = open_clip.get_tokenizer(source.open_clip_name)
    except Exception as error:  # the hub client raises a different type per failure
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise EncoderError(
            f"the tokenizer '{foreign or 'clip-bpe'}' of model '{source.name}' cannot be loaded "
            f"({last[:300]}); without a network use a local-dir:PATH that holds it"
        ) from error
    length = int(tokenizer.context_length)
    if isinstance(tokenizer, SimpleTokenizer):
        return _byte_pair_tokenizer(source.name, text, tokenizer, length)
    return _foreign(source.name, text, tokenizer, length, foreign or "unknown")


def _foreign_tokenizer(open_clip_name: str, text: Mapping[str, Any]) -> str | None:
    if text.get("hf_tokenizer_name"):
        return str(text["hf_tokenizer_name"])
    schema = open_clip_name.startswith(("local-dir:", "hf-hub:"))
    return "siglip" if not schema and "siglip" in open_clip_name.lower() else None


def _require_transformers(name: str, tokenizer: str) -> None:
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"model '{name}' uses the tokenizer '{tokenizer}', which needs the transformers "
            "package; run: pip install transformers sentencepiece"
        ) from error


def _byte_pair_tokenizer(
    name: str, text: Mapping[str, Any], tokenizer: Any, length: int
) -> Tokenizer:
    vocabulary = int(text.get("vocab_size", 49408))
    if tokenizer.vocab_size != vocabulary:
        raise EncoderError(
            f"model '{name}' has a vocabulary of {vocabulary} tokens, CLIP's byte-pair tokenizer "
            f"has {tokenizer.vocab_size}: it is not the tokenizer of these weights; name the "
            "right one as 'hf_tokenizer_name' in the configuration's text_cfg"
        )
    if tokenizer.reduction_fn is not None:
        raise EncoderError(
            f"model '{name}' drops tokens of long texts at random (reduction_mask); its "
            "embeddings would differ from run to run, remove the setting"
        )
    clean = str(text.get("tokenizer_kwargs", {}).get("clean", "lower"))

    def encode(texts: Sequence[str]) -> list[list[int]]:
        start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
        if len(tokenizer.cache) > _MOST_WORDS:  # it would keep every word of a list of any length
            specials = [tokenizer.decoder[mark] for mark in tokenizer.all_special_ids]
            tokenizer.cache = {mark: mark for mark in specials}
        result = []
        for item in texts:
            if clean == "lower" and _PLAIN.fullmatch(item):
                ids = _byte_pairs(tokenizer, " ".join(item.split()).lower())
            else:
                ids = tokenizer.encode(item)
            result.append([start, *ids, end])
        return result

    settings = {"kind": "clip-bpe", "vocab_size": vocabulary, "clean": clean}
    return Tokenizer(settings, length, encode, tokenizer, True)


def _byte_pairs(tokenizer: Any, cleaned: str) -> list[int]:
    ids: list[int] = []
    encoder = tokenizer.encoder
    for word in tokenizer.pat.findall(cleaned):  # printable ASCII bytes stand for themselves
        ids.extend(encoder[piece] for piece in tokenizer.bpe(word).split(" "))
    return ids


def _foreign(
    name: str, text: Mapping[str, Any], tokenizer: Any, length: int, source: str
) -> Tokenizer:
    inner = tokenizer.tokenizer
    vocabulary = text.get("vocab_size")
    if vocabulary is not None and len(inner) > int(vocabulary):
        raise EncoderError(
            f"model '{name}' has a vocabulary of {vocabulary} tokens, its tokenizer '{source}' "
            f"has {len(inner)}: token ids would be out of range"
        )
    if text.get("pool_type") == "eos" and inner.eos_token_id != text.get("eos_id", 2):
        raise EncoderError(
            f"model '{name}' pools at token {text.get('eos_id', 2)}, its tokenizer '{source}' "
            f"ends texts with token {inner.eos_token_id}"
        )
    clean = getattr(tokenizer, "clean_fn", None)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        cleaned = [clean(item) for item in texts] if clean else list(texts)
        return [list(ids) for ids in inner(cleaned).input_ids]

    settings = {"kind": "transformers", "name": source, "vocab_size": len(inner)}
    settings.update(text.get("tokenizer_kwargs", {}))
    return Tokenizer(settings, length, encode, tokenizer, False)
