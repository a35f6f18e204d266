"""Models of any open_clip architecture with random weights, to measure speed without a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bliss_index.encode.torchvision_cure import import_open_clip
from bliss_index.errors import EncoderError

_CLIP_TOKENS = 49408


def save_random_model(name: str, directory: Path) -> None:
    """Write open_clip's configuration of a model and random weights, as ``local-dir:`` takes them.

    Models whose tokenizer is another package's (SigLIP) get CLIP's tokenizer and as many token
    embeddings: speed does not depend on what the tokens mean.

    Parameters
    ----------
    name
        An architecture that open_clip knows.
    directory
        Where ``open_clip_config.json`` and ``open_clip_model.safetensors`` go; it exists.

    Raises
    ------
    EncoderError
        open_clip knows no such model.
    """
    import torch
    from safetensors.torch import save_file

    open_clip = import_open_clip()
    torch.manual_seed(0)
    config = open_clip.get_model_config(name)
    if config is None:
        raise EncoderError(f"open_clip knows no model {name!r}; try one such as 'ViT-B-16'")
    options: dict[str, Any] = {}
    if config["text_cfg"].pop("hf_tokenizer_name", None):
        config["text_cfg"].pop("tokenizer_kwargs", None)
        config["text_cfg"] = {**config["text_cfg"], "vocab_size": _CLIP_TOKENS}
        options = {"text_cfg": config["text_cfg"]}
    model = open_clip.create_model(name, **options)
    state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    save_file(state, directory / "open_clip_model.safetensors")
    content = {"model_cfg": config, "preprocess_cfg": {}}
    (directory / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
