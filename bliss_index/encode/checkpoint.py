"""From a model's name and pretrained tag to its configuration and its checkpoint file.

open_clip only warns when weights are missing, when an activation does not fit the weights, and
when positions are interpolated to another length. Each of these changes embeddings without a
trace, so each is an :class:`EncoderError` here, raised before the model is built.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bliss_index.encode.torchvision_cure import import_open_clip
from bliss_index.errors import EncoderError

TINY_NAME = "bliss-tiny"
TINY_TAG = "scenes"
LOCAL_PREFIX = "local-dir:"
HUB_PREFIX = "hf-hub:"

_HOW_TO_LIST = "python -c 'import open_clip; print(open_clip.list_models())' names them"
_CONFIG_FILE = "open_clip_config.json"
_SAFE_SUFFIX = ".safetensors"
_PICKLED_SUFFIXES = (".pt", ".pth", ".bin")
_DIRECTORY_CHOICES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
)  # open_clip's own order of preference


@dataclass(frozen=True)
class ModelSource:
    """Everything needed to build one model.

    Attributes
    ----------
    name, pretrained : str, str or None
        As recorded in the model identity: free of machine paths, the weights' hash tells
        checkpoints of the same name apart.
    open_clip_name : str
        What open_clip's factory and tokenizer functions are called with.
    config : dict
        open_clip's model configuration.
    preprocess : dict
        Preprocessing settings that override open_clip's defaults.
    checkpoint : Path
        A file of weights, safetensors or loadable with ``weights_only``.
    force_quick_gelu : bool
        The weights were trained with QuickGELU although the configuration does not say so.
    """

    name: str
    pretrained: str | None
    open_clip_name: str
    config: dict[str, Any]
    preprocess: dict[str, Any]
    checkpoint: Path
    force_quick_gelu: bool = False


def resolve_model(name: str, pretrained: str | None) -> ModelSource:
    """Find the configuration and the checkpoint that `name` and `pretrained` stand for.

    Parameters
    ----------
    name : str
        A model name of open_clip, ``local-dir:PATH``, ``hf-hub:ORG/REPO`` or ``bliss-tiny``.
    pretrained : str or None
        A pretrained tag or the path of a checkpoint; None for names that carry their weights.

    Raises
    ------
    EncoderError
        Unknown name or tag, no weights, weights that cannot be fetched, or an activation that
        differs between tag and configuration.
    """
    if name == TINY_NAME:
        if pretrained not in (None, TINY_TAG):
            raise EncoderError(
                f"'{TINY_NAME}' has one set of weights, '{TINY_TAG}', and was asked for "
                f"pretrained='{pretrained}'; leave pretrained out"
            )
        directory = Path(__file__).parent / "bliss_tiny"
        return _resolve_directory(directory, TINY_NAME, TINY_TAG)
    if name.startswith(LOCAL_PREFIX):
        _refuse_tag(name, pretrained)
        directory = Path(name[len(LOCAL_PREFIX) :])
        return _resolve_directory(directory, f"{LOCAL_PREFIX}{directory.resolve().name}", None)
    if name.startswith(HUB_PREFIX):
        _refuse_tag(name, pretrained)
        return _resolve_hub(name)
    return _resolve_builtin(name, pretrained)


def _refuse_tag(name: str, pretrained: str | None) -> None:
    if pretrained is not None:
        raise EncoderError(
            f"'{name}' brings its own weights, pretrained='{pretrained}' would be ignored; "
            "leave pretrained out, or name the model by its open_clip name"
        )


def _resolve_directory(directory: Path, name: str, tag: str | None) -> ModelSource:
    if not directory.is_dir():
        raise EncoderError(
            f"model '{name}': no directory {directory}; give one that holds {_CONFIG_FILE} and "
            f"{_DIRECTORY_CHOICES[0]}"
        )
    config_path = directory / _CONFIG_FILE
    try:
        content = json.loads(config_path.read_text(encoding="utf-8"))
        config = dict(content["model_cfg"])
        preprocess = dict(content.get("preprocess_cfg", {}))
    except FileNotFoundError as error:
        raise EncoderError(f"model '{name}': {config_path} is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise EncoderError(
            f"model '{name}': {config_path} is not an open_clip configuration "
            f"(JSON with 'model_cfg'): {error!r}"
        ) from error
    for candidate in _DIRECTORY_CHOICES:
        if (directory / candidate).is_file():
            checkpoint = directory / candidate
            break
    else:
        raise EncoderError(
            f"model '{name}': no weights in {directory}; looked for {', '.join(_DIRECTORY_CHOICES)}"
        )
    return ModelSource(name, tag, f"{LOCAL_PREFIX}{directory}", config, preprocess, checkpoint)


def _resolve_hub(name: str) -> ModelSource:
    import_open_clip()
    from open_clip.pretrained import download_pretrained_from_hf

    repository = name[len(HUB_PREFIX) :]
    try:
        config_file = download_pretrained_from_hf(repository, filename=_CONFIG_FILE)
        checkpoint = download_pretrained_from_hf(repository)
        content = json.loads(Path(config_file).read_text(encoding="utf-8"))
        config = dict(content["model_cfg"])
    except Exception as error:  # the hub client raises a different type per failure
        raise _download_error(name, None, error) from error
    return ModelSource(
        name, None, name, config, dict(content.get("preprocess_cfg", {})), Path(checkpoint)
    )


def _resolve_builtin(name: str, pretrained: str | None) -> ModelSource:
    open_clip = import_open_clip()
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    key = name.replace("/", "-")
    config = open_clip.get_model_config(key)
    if config is None:
        known = open_clip.list_models()
        close = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(map(repr, close))}?" if close else _HOW_TO_LIST
        raise EncoderError(f"unknown model '{name}' ({len(known)} are known); {hint}")
    tags = open_clip.list_pretrained_tags_by_model(key)
    listing = ", ".join(tags) if tags else "none: pass the path of a checkpoint"
    if pretrained is None:
        raise EncoderError(
            f"model '{key}' was given no weights (pretrained=None), its embeddings would be "
            f"random; known tags: {listing}"
        )
    settings = get_pretrained_cfg(key, pretrained)
    if settings:
        force = _check_quick_gelu(key, pretrained, config, settings)
        try:
            checkpoint = Path(download_pretrained(settings))
        except Exception as error:  # the hub client raises a different type per failure
            raise _download_error(key, pretrained, error) from error
        tag = pretrained.lower().replace("-", "_")  # open_clip takes both spellings
        return ModelSource(key, tag, key, config, dict(settings), checkpoint, force)
    path = Path(pretrained)
    if path.is_file():
        return ModelSource(key, path.name, key, config, {}, path)
    if path.suffix in (_SAFE_SUFFIX, *_PICKLED_SUFFIXES) or len(path.parts) > 1:
        raise EncoderError(f"model '{key}': there is no checkpoint file {pretrained}")
    raise EncoderError(f"model '{key}' has no pretrained tag '{pretrained}'; known tags: {listing}")


def _check_quick_gelu(
    name: str, tag: str, config: Mapping[str, Any], settings: Mapping[str, Any]
) -> bool:
    """True if QuickGELU has to be forced; an error if tag and configuration disagree.

    The 'openai' weights exist with QuickGELU only, and their plain names ('ViT-B-16') are what
    every paper writes, so these are built the way they were trained.
    """
    wanted = bool(settings.get("quick_gelu", False))
    given = bool(config.get("quick_gelu", False))
    if wanted == given:
        return False
    if tag.lower() == "openai":
        return wanted
    other = f"{name}-quickgelu" if wanted else name.removesuffix("-quickgelu")
    raise EncoderError(
        f"weights '{tag}' were trained with quick_gelu={wanted}, model '{name}' has "
        f"quick_gelu={given}; use model '{other}'"
    )


def _download_error(name: str, tag: str | None, error: Exception) -> EncoderError:
    reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    weights = f"'{name}'" if tag is None else f"'{name}' with pretrained tag '{tag}'"
    return EncoderError(
        f"the weights of {weights} are not in the local cache and could not be downloaded "
        f"({reason[0][:300]}); without a network, fetch the checkpoint elsewhere and pass "
        "pretrained='path/to/checkpoint.safetensors', or name a local-dir:PATH model"
    )


def checkpoint_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's tensors, read without unpickling objects.

    Raises
    ------
    EncoderError
        The file is damaged, is not a checkpoint, or would have to be unpickled.
    """
    if path.suffix == _SAFE_SUFFIX:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as tensors:
                names = list(tensors.keys())
                return {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise EncoderError(f"{path} is not a readable safetensors file: {error}") from error
    if path.suffix not in _PICKLED_SUFFIXES:
        raise EncoderError(
            f"{path} has suffix '{path.suffix}'; a checkpoint is one of "
            f"{_SAFE_SUFFIX}, {', '.join(_PICKLED_SUFFIXES)}"
        )
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged and for refused files
        raise EncoderError(
            f"{path} cannot be loaded without unpickling objects, which is refused; save its "
            f"state dict as safetensors ({str(error).strip().splitlines()[0][:200]})"
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(hasattr(v, "shape") for v in state.values()):
        raise EncoderError(f"{path} holds no state dict of tensors")
    return {key.removeprefix("module."): tuple(value.shape) for key, value in state.items()}


def check_positions(path: Path, context_length: int, appended: int) -> None:
    """Refuse a checkpoint whose text positions open_clip would silently interpolate.

    `appended` is 1 for towers that append a class token (CoCa), else 0.
    """
    shapes = checkpoint_shapes(path)
    for key in ("positional_embedding", "text.positional_embedding"):
        if key in shapes and shapes[key][0] != context_length + appended:
            raise EncoderError(
                f"{path.name} has {shapes[key][0] - appended} text positions, the model's context "
                f"length is {context_length}; interpolated positions give other embeddings, use "
                "the configuration that the weights were trained with"
            )


def weights_sha256(state: Mapping[str, Any]) -> str:
    """SHA-256 of a model's float32 state dict.

    Over the tensors in sorted order of their names: name, dtype, shape and raw little-endian
    bytes of each. It depends on the weights alone, not on the file format they came in nor on
    the precision they are run in.
    """
    import torch

    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32)
        array = tensor.contiguous().numpy()
        digest.update(f"{key}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.reshape(-1).view("u1").data)
    return digest.hexdigest()
