"""Text towers, run only over the token positions that can reach the embedding.

A vocabulary entry in its prompt fills about 10 of CLIP's 77 positions. With a causal mask a token
never sees what follows it, so if the embedding is read at the end-of-text token, everything
behind it can be left out and the result stays the same. Whether that holds is decided per model,
from the actual mask values and the pooling, never from its name:

==============================  ===========================================  =========
tower                           condition found on the model                 positions
==============================  ===========================================  =========
CLIP, EVA, ConvNeXt, ViTamin,   causal mask, pooled at the end token         trimmed
PE, MetaCLIP 2, MobileCLIP-B    (argmax or eos) or at the first
CoCa                            causal mask, class token appended at the     trimmed
                                last position, padding masked for it
SigLIP, CLIPA, MobileCLIP-S     no causal mask, or pooled at the last place  full
Hugging Face text towers        other classes                                full
==============================  ===========================================  =========

Compared with open_clip as whole models with random weights (tests/test_encode_families.py):
ViT-B-32, RN50, ConvNeXt base, EVA02-B-16, CoCa ViT-B-32, PE-Core-T, ViTamin-S, MobileCLIP-B,
MobileCLIP-S1, MobileCLIP2-S0. SigLIP, whose tokenizer needs transformers, as a small model.

As a second check, each model encodes a few texts both ways when it is loaded; if they disagree, the
full length is used and the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bliss_index.encode.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

TRIMMED = "trimmed"
FULL = "full"

_CHUNK = 32768  # texts whose token ids are held at once
_FINE = 16  # up to here every length has its own bucket
_COARSE = 8  # above it, lengths are rounded up to multiples of this
_TOLERANCE = {"torch.float32": 1e-5, "torch.bfloat16": 3e-2}
_PROBES = (
    "a",
    "a photo of a cat",
    "This is a photo of a great white shark, man-eater, at the surface of the sea",
    " ".join(["several words about nothing in particular"] * 6),
)


class TextTower:
    """Raw text features of one model.

    Attributes
    ----------
    mode : {'trimmed', 'full'}
        Whether only the needed positions are run.
    reason : str
        Why, in words.
    dim : int
        Length of an embedding.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, device: torch.device) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        parts, self.reason = _causal_parts(model)
        probes = tokenizer(_PROBES).ids
        full = self._run_full(probes)
        self.dim = full.shape[1]
        if parts is not None:
            gap = _largest_gap(full, self._run_trimmed(parts, probes, parts.needed(probes).max()))
            for row in range(len(probes)):
                one = probes[row : row + 1]
                short = self._run_trimmed(parts, one, int(parts.needed(one)[0]))
                gap = max(gap, _largest_gap(full[row : row + 1], short))
            dtype = str(parts.token_embedding.weight.dtype)
            if not gap <= _TOLERANCE.get(dtype, 1e-5):
                self.reason = f"trimmed and full length differ by {gap:.1e} on the probe texts"
                logger.warning("text tower runs at full length: %s", self.reason)
                parts = None
        self._parts = parts
        self.mode = FULL if parts is None else TRIMMED

    def encode(
        self, texts: Sequence[str], batch_size: int, progress: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Features of `texts`, shape (n, dim), float32, not normalised."""
        features = np.empty((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(texts), _CHUNK):
            ids = self._tokenizer(texts[start : start + _CHUNK]).ids
            for rows, length in self._batches(ids, batch_size):
                if self._parts is None:
                    batch = self._run_full(ids[rows])
                else:
                    batch = self._run_trimmed(self._parts, ids[rows], length)
                features[start + rows] = batch
                if progress is not None:
                    progress(len(rows))
        return features

    def _batches(
        self, ids: npt.NDArray[np.int64], batch_size: int
    ) -> Iterator[tuple[npt.NDArray[np.intp], int]]:
        """Rows of equal bucket, with its length."""
        if self._parts is None:
            buckets = np.full(len(ids), ids.shape[1])
        else:
            buckets = bucket_lengths(self._parts.needed(ids), ids.shape[1])
        for length in np.unique(buckets):
            rows = np.flatnonzero(buckets == length)
            for start in range(0, len(rows), batch_size):
                yield rows[start : start + batch_size], int(length)

    def _run_full(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            features = self._model.encode_text(
                torch.from_numpy(ids).to(self._device), normalize=False
            )
            return np.asarray(features.float().cpu().numpy())

    def _run_trimmed(
        self, parts: CausalParts, ids: npt.NDArray[np.int64], length: int
    ) -> npt.NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            features = parts.run(torch.from_numpy(ids).to(self._device), int(length))
            return np.asarray(features.float().cpu().numpy())


def bucket_lengths(needed: npt.NDArray[np.intp], longest: int) -> npt.NDArray[np.intp]:
    """Round the needed positions up to the bucket they are run in."""
    coarse = -(-needed // _COARSE) * _COARSE
    return np.minimum(np.where(needed <= _FINE, needed, coarse), longest)


def _largest_gap(full: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Largest difference of a component, relative to the row's norm; NaN if any is not finite."""
    norms = np.maximum(np.linalg.norm(full, axis=1, keepdims=True), 1e-30)
    return float(np.max(np.abs(full / norms - other / norms)))


@dataclass(frozen=True)
class CausalParts:
    """The modules of a causal text tower, wherever the model class keeps them."""

    token_embedding: Any
    positions: Any
    transformer: Any
    mask: Any
    final_norm: Any
    projection: Any
    pooling: str
    end_id: int
    class_token: Any = None
    class_mask_is_correct: bool = False
    padding_id: int = 0

    def needed(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
        """Leading positions, at least 1, that the embedding of each row (n, L) depends on."""
        if self.class_token is not None:
            valid = self._valid_keys(ids)[:, : ids.shape[1]]
            return np.asarray(ids.shape[1] - np.argmax(valid[:, ::-1], axis=1))
        return self._pooled_at(ids) + 1

    def _pooled_at(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
        if self.pooling == "first":
            return np.zeros(len(ids), dtype=np.int64)
        marks = ids if self.pooling == "argmax" else ids == self.end_id
        return np.asarray(np.argmax(marks, axis=1))

    def _valid_keys(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Keys (n, L + 1) that the padding mask leaves to a tower with a class token.

        The published CoCa weights were trained with this mask shifted by one position, which
        open_clip keeps and marks by ``correct_cls_mask=False``; see its TextTransformer.
        """
        own = np.ones((len(ids), 1), dtype=bool)
        real = ids != self.padding_id
        return np.concatenate([real, own] if self.class_mask_is_correct else [own, real], axis=1)

    def run(self, ids: torch.Tensor, length: int) -> torch.Tensor:
        """Features (n, dim) of token ids (n, L), computed over the first `length` positions."""
        import torch

        dtype = self.transformer.get_cast_dtype()
        x = self.token_embedding(ids[:, :length]).to(dtype)
        if self.class_token is None:
            x = x + self.positions[:length].to(dtype)
            x = self.transformer(x, attn_mask=self.mask[:length, :length])
            at = torch.from_numpy(self._pooled_at(ids.cpu().numpy())).to(x.device)
            x = x[torch.arange(len(x), device=x.device), at]
        else:
            kept = [*range(length), ids.shape[1]]  # the class token keeps its own position
            x = torch.cat([x, self.class_token.to(dtype).expand(len(x), 1, -1)], dim=1)
            x = x + self.positions[kept].to(dtype)
            valid = torch.from_numpy(self._valid_keys(ids.cpu().numpy())[:, kept]).to(x.device)
            hidden = torch.zeros(valid.shape, dtype=dtype, device=x.device)
            hidden = hidden.masked_fill_(~valid, float("-inf"))
            mask = self.mask[kept][:, kept].to(dtype) + hidden[:, None, :]
            heads = self.transformer.resblocks[0].attn.num_heads
            x = self.transformer(x, attn_mask=mask.repeat_interleave(heads, 0))[:, -1]
        features: torch.Tensor = self.final_norm(x)
        if self.projection is not None:
            linear = callable(self.projection)
            features = self.projection(features) if linear else features @ self.projection
        return features


def _causal_parts(model: Any) -> tuple[CausalParts | None, str]:
    """The parts of a tower that may be trimmed, or None; and the reason in words."""
    from open_clip.model import CLIP
    from open_clip.transformer import CustomTransformer, TextTransformer, Transformer

    own = type(model) is CLIP
    tower: Any = model if own else getattr(model, "text", None)
    if not own and type(tower) is not TextTransformer:
        return None, f"text tower of class {type(tower).__name__} is not known to be causal"
    if type(tower.transformer) not in (Transformer, CustomTransformer):
        return None, f"transformer of class {type(tower.transformer).__name__} is not known"
    mask = tower.attn_mask
    if mask is None or not _is_causal(mask):
        return None, "attention is not causal: every token sees every position"
    class_token = None if own else tower.cls_emb
    pooling = tower.text_pool_type if own else tower.pool_type
    if class_token is None and pooling not in ("argmax", "eos", "first"):
        return None, f"pooled at '{pooling}', behind the padding"
    if class_token is None and not own and tower.use_pad_mask:
        return None, "a padding mask is combined with the causal one"
    parts = CausalParts(
        token_embedding=tower.token_embedding,
        positions=tower.positional_embedding,
        transformer=tower.transformer,
        mask=mask,
        final_norm=tower.ln_final,
        projection=tower.text_projection,
        pooling=pooling,
        end_id=tower.text_eos_id if own else tower.eos_id,
        class_token=class_token,
        class_mask_is_correct=False if own else tower.correct_cls_mask,
        padding_id=0 if own else tower.pad_id,
    )
    where = "at the appended class token" if class_token is not None else f"at '{pooling}'"
    return parts, f"causal mask, pooled {where}"


def _is_causal(mask: torch.Tensor) -> bool:
    import torch

    values = mask.detach().float().cpu()
    below = torch.ones_like(values, dtype=torch.bool).tril()
    return bool((values[below] == 0).all() and (values[~below] == float("-inf")).all())
