"""Encoders: text and images to unit embeddings by any open_clip model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bliss_index.devices import resolve_device
from bliss_index.encode.checkpoint import (
    ModelSource,
    check_positions,
    resolve_model,
    weights_sha256,
)
from bliss_index.encode.decode import decode_image, to_rgb
from bliss_index.encode.preprocess import Preprocess
from bliss_index.encode.text_tower import TextTower
from bliss_index.encode.tokenizer import Tokenizer, load_tokenizer
from bliss_index.encode.torchvision_cure import import_open_clip, root_logger_kept
from bliss_index.errors import EncoderError, InvalidInputError
from bliss_index.store.identity import ModelIdentity

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

Progress = Callable[[int], None]

_PRECISIONS = ("float32", "bfloat16")
_PREPROCESSES = ("model", "authors")
ENCODER_DEVICES = ("cuda", "mps")
"""What "auto" stands for where it is there, the first that is."""

_TEXT_BATCH = {"cpu": 256, "cuda": 2048, "mps": 512, "xpu": 512}
_IMAGE_BATCH = {"cpu": 32, "cuda": 256, "mps": 64, "xpu": 64}


class Encoder:
    """One loaded model; made by :func:`load_encoder`.

    Attributes
    ----------
    identity : ModelIdentity
        What makes embeddings comparable; stored with everything that is encoded.
    dim : int
        Length of an embedding.
    context_length : int
        Token positions of the text tower.
    device, precision : str
        Where and in which format the weights run.
    preprocess : Preprocess
        Image geometry and normalisation.

    Notes
    -----
    Every call with the same inputs, batch size, device and thread count returns the same bytes.
    Another batch size changes the shapes of the matrix products and with them the order of
    float32 sums: components differ by up to about 1e-6 (float32) or 1e-2 (bfloat16).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        identity: ModelIdentity,
        device: torch.device,
        precision: str,
        batch_size: int | None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._text_batch = batch_size or _TEXT_BATCH[device.type]
        self._tower = TextTower(model, tokenizer, device)
        self.preprocess = preprocess
        self.identity = identity
        self.device = str(device)
        self.precision = precision
        self.image_batch_size = batch_size or _IMAGE_BATCH[device.type]
        self.context_length = tokenizer.context_length
        self.dim = self._tower.dim

    def __repr__(self) -> str:
        tag = f", pretrained={self.identity.pretrained!r}" if self.identity.pretrained else ""
        return f"Encoder({self.identity.name!r}{tag}, dim={self.dim}, device={self.device!r})"

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(p.numel() * p.element_size() for p in self._model.parameters())

    @property
    def settings(self) -> dict[str, Any]:
        """What changes an embedding's last digits but not its meaning; kept with a store."""
        return {
            "precision": self.precision,
            "device": self._device.type,
            "text_positions": self._tower.mode,
        }

    def encode_text(
        self, texts: Sequence[str], *, progress: Progress | None = None
    ) -> npt.NDArray[np.float32]:
        """Embed texts.

        Parameters
        ----------
        texts : sequence of str
            Whole prompts. Longer ones than the context length are cut, as the model was trained;
            :meth:`count_truncated` tells how many.
        progress : callable, optional
            Called with the number of texts just finished.

        Returns
        -------
        ndarray, shape (n, dim), float32, unit norm

        Raises
        ------
        EncoderError
            The model returned a zero or non-finite embedding; names the row.
        """
        texts = _checked_texts(texts)
        features = self._tower.encode(texts, self._text_batch, progress)
        return _unit_or_raise(features, lambda row: f"text {texts[row]!r:.80}")

    def encode_ensemble(
        self,
        entries: Sequence[str],
        templates: Sequence[str],
        *,
        progress: Progress | None = None,
    ) -> npt.NDArray[np.float32]:
        """Embed each entry as the normalised mean over several prompts, as CLIP's authors do.

        Parameters
        ----------
        entries : sequence of str
            What is put into the templates.
        templates : sequence of str
            At least one, each with one ``{}``.
        progress : callable, optional
            Called with the number of entries just finished.

        Returns
        -------
        ndarray, shape (n, dim), float32, unit norm
        """
        from bliss_index.vocabulary import render_prompts

        if isinstance(templates, str) or not templates:
            raise InvalidInputError(
                f"templates must be a list of at least one template, got {templates!r}"
            )
        entries = _checked_texts(entries)
        step = max(1, self._text_batch)
        total = np.zeros((len(entries), self.dim), dtype=np.float64)
        for start in range(0, len(entries), step):
            part = entries[start : start + step]
            for template in templates:
                total[start : start + len(part)] += self.encode_text(render_prompts(part, template))
            if progress is not None:
                progress(len(part))
        return _unit_or_raise(total, lambda row: f"the prompts of entry {entries[row]!r:.80}")

    def find_truncated(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which texts, (n,) bool, do not fit into the context length."""
        return self._tokenizer.find_truncated(_checked_texts(texts))

    def count_truncated(self, texts: Sequence[str]) -> int:
        """Number of texts that do not fit into the context length."""
        return int(self.find_truncated(texts).sum())

    def encode_images(
        self, images: Sequence[Image | str | Path | bytes], *, progress: Progress | None = None
    ) -> npt.NDArray[np.float32]:
        """Embed images.

        Parameters
        ----------
        images : sequence of PIL images, paths or bytes
            Bytes are those of an encoded file, such as a JPEG.
        progress : callable, optional
            Called with the number of images just finished.

        Returns
        -------
        ndarray, shape (n, dim), float32, unit norm

        Raises
        ------
        InvalidInputError
            An image is given in another form; names the row.
        DecodeError
            An image cannot be decoded.
        EncoderError
            The model returned a zero or non-finite embedding; names the row.
        """
        if isinstance(images, (str, bytes, Path)):
            raise InvalidInputError(f"expected a list of images, got one: {images!r:.80}")
        features = np.empty((len(images), self.dim), dtype=np.float32)
        for start in range(0, len(images), self.image_batch_size):
            part = images[start : start + self.image_batch_size]
            pixels = np.stack([self._pixels(image, start + i) for i, image in enumerate(part)])
            features[start : start + len(part)] = self.image_features(pixels)
            if progress is not None:
                progress(len(part))
        return _unit_or_raise(features, lambda row: f"image {row}")

    def image_features(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Raw image features of one batch of prepared pixels.

        Parameters
        ----------
        pixels : ndarray, shape (n, height, width, 3), uint8
            As :meth:`Preprocess.pixels` returns them.

        Returns
        -------
        ndarray, shape (n, dim), float32, not normalised, not checked
        """
        import torch

        dtype = next(self._model.parameters()).dtype
        # TF32 would round the patch embedding's inputs to 10 bits on a GPU. The switch is the whole
        # process's, so it is left alone where several threads compute on a processor.
        on_gpu = self._device.type == "cuda"
        exact = torch.backends.cudnn.flags(allow_tf32=False) if on_gpu else nullcontext()
        with torch.inference_mode(), exact:
            batch = self.preprocess.normalise(pixels, self._device, dtype)
            features = self._model.encode_image(batch, normalize=False)
            return np.asarray(features.float().cpu().numpy())

    def _pixels(self, image: Image | str | Path | bytes, row: int) -> npt.NDArray[np.uint8]:
        from PIL import Image

        if isinstance(image, (str, Path, bytes)):
            return self.preprocess.pixels(decode_image(image))
        if not isinstance(image, Image.Image):
            raise InvalidInputError(
                f"image {row} is of type {type(image).__name__}; give paths, encoded bytes or PIL "
                "images (PIL.Image.fromarray makes one of an array)"
            )
        return self.preprocess.pixels(to_rgb(image))


def load_encoder(
    name: str,
    pretrained: str | Path | None = None,
    *,
    device: str = "auto",
    precision: str = "float32",
    preprocess: str = "model",
    batch_size: int | None = None,
) -> Encoder:
    """Load a model with its tokenizer and preprocessing.

    Parameters
    ----------
    name : str
        A model name of open_clip ('ViT-B-16'), ``local-dir:PATH`` with ``open_clip_config.json``
        and ``open_clip_model.safetensors``, ``hf-hub:ORG/REPO``, or ``bliss-tiny``, which is part
        of this package.
    pretrained : str or Path, optional
        open_clip's pretrained tag, or a checkpoint: ``.safetensors``, or ``.pt``, ``.pth``,
        ``.bin`` that load with ``weights_only``. Nothing is ever unpickled.
    device : str
        'auto' takes the GPU if there is one.
    precision : {'float32', 'bfloat16'}
        Format of the weights. bfloat16 changes embeddings to a cosine of about 0.9999 with
        float32's and is 2 to 4 times faster where the hardware multiplies it natively.
    preprocess : {'model', 'authors'}
        'authors' normalises pixels with CIFAR-10's mean and standard deviation, as the published
        BLISS scripts do; 'model' with the values the model was trained with.
    batch_size : int, optional
        Texts or images per forward pass; by default by kind and device.

    Returns
    -------
    Encoder

    Raises
    ------
    EncoderError
        Unknown model or tag, missing weights, weights that do not fit the model.
    MissingDependencyError
        open_clip, or the package of a foreign tokenizer, is not installed.
    """
    _check_choice("precision", precision, _PRECISIONS)
    _check_choice("preprocess", preprocess, _PREPROCESSES)
    if batch_size is not None and batch_size < 1:
        raise InvalidInputError(f"batch_size is {batch_size}, must be at least 1")
    import torch

    place = torch.device(resolve_device(device, among=ENCODER_DEVICES))
    source = resolve_model(name, None if pretrained is None else str(pretrained))
    tokenizer = load_tokenizer(source)
    text = source.config["text_cfg"]
    check_positions(source.checkpoint, tokenizer.context_length, int(text.get("embed_cls", False)))
    model = _build(source)
    geometry = _geometry(model, source)
    if preprocess == "authors":
        geometry = geometry.with_authors_statistics()
    identity = ModelIdentity(
        name=source.name,
        pretrained=source.pretrained,
        weights_sha256=weights_sha256(model.state_dict()),
        context_length=tokenizer.context_length,
        quick_gelu=source.force_quick_gelu or bool(source.config.get("quick_gelu", False)),
        tokenizer=tokenizer.settings,
        preprocess=geometry.to_json(),
    )
    model = model.to(device=place, dtype=getattr(torch, precision))
    return Encoder(model, tokenizer, geometry, identity, place, precision, batch_size)


def _build(source: ModelSource) -> Any:
    open_clip = import_open_clip()
    named = source.open_clip_name.startswith(("local-dir:", "hf-hub:"))
    try:
        with root_logger_kept():
            model = open_clip.create_model(
                source.open_clip_name,
                pretrained=None if named else str(source.checkpoint),
                force_quick_gelu=source.force_quick_gelu,
                require_pretrained=True,
                weights_only=True,
            )
    except Exception as error:  # any of torch's and open_clip's, for weights of another shape
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise EncoderError(
            f"weights {source.checkpoint.name} do not fit model '{source.name}': "
            f"{' '.join(lines[:3])[:500] or type(error).__name__}"
        ) from error
    return model.eval().requires_grad_(False)


def _geometry(model: Any, source: ModelSource) -> Preprocess:
    settings = dict(model.visual.preprocess_cfg)
    for key in ("mean", "std", "interpolation", "resize_mode", "fill_color"):
        if source.preprocess.get(key) is not None:
            settings[key] = source.preprocess[key]
    return Preprocess.from_open_clip(settings)


def _check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidInputError(f"{what} is '{value}', must be one of {', '.join(known)}")


def _checked_texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise InvalidInputError(f"expected a list of texts, got one string {texts!r:.80}")
    texts = list(texts)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInputError(f"text {row} is {text!r:.80}, not a string")
    return texts


def unit_features(
    features: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return the rows with unit norm, and which of them, (n,) bool, have none: these are zero."""
    wide = features.astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    bad = ~np.isfinite(norms) | (norms == 0)
    norms[bad] = 1.0
    wide[bad] = 0.0
    return (wide / norms[:, None]).astype(np.float32), bad


def _unit_or_raise(
    features: npt.NDArray[Any], describe: Callable[[int], str]
) -> npt.NDArray[np.float32]:
    unit, bad = unit_features(features)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        kind = "zero" if np.isfinite(features[row]).all() else "non-finite"
        raise EncoderError(
            f"row {row} ({describe(row)}) got a {kind} embedding, as did {int(bad.sum()) - 1} "
            "others; the weights are damaged or the precision is too low, try float32"
        )
    return unit
