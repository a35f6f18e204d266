"""Small open_clip models with random weights, and open_clip's own embeddings of them."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")

_VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}

CLIP = {"embed_dim": 16, "vision_cfg": _VISION, "text_cfg": _TEXT}


def variant(*, custom=True, multimodal=False, vision=None, **text):
    """A configuration that differs from CLIP's in its text tower."""
    config = copy.deepcopy(CLIP)
    config["custom_text"] = custom
    config["text_cfg"].update(text)
    config["vision_cfg"].update(vision or {})
    if multimodal:
        config["multimodal_cfg"] = {**_TEXT, "context_length": 76}
    return config


def build(config, seed=0):
    import torch

    from bliss_index.encode.torchvision_cure import import_open_clip

    import_open_clip()
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP as Plain
    from open_clip.model import CustomTextCLIP

    config = copy.deepcopy(config)
    custom = config.pop("custom_text", False)
    kind = (CoCa if "multimodal_cfg" in config else CustomTextCLIP) if custom else Plain
    torch.manual_seed(seed)
    model = kind(**config)
    with torch.no_grad():  # larger than the initialisation, so that every position matters
        for name, value in model.named_parameters():
            if "embedding" in name or "cls_emb" in name:
                value.copy_(torch.randn_like(value) * 0.5)
    return model.eval()


def save_model(directory, config, *, seed=0, preprocess=None, edit=None, state=None):
    """Write a local-dir model; returns the directory."""
    from safetensors.torch import save_file

    model = build(config, seed)
    if edit is not None:
        edit(model)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: value.contiguous().clone() for key, value in (state or model.state_dict()).items()},
        directory / "open_clip_model.safetensors",
    )
    content = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (directory / "open_clip_config.json").write_text(json.dumps(content))
    return directory


def with_config(directory, other, **text):
    """A directory with the weights of `other` under a changed text configuration."""
    directory = Path(directory)
    directory.mkdir(exist_ok=True)
    content = json.loads((Path(other) / "open_clip_config.json").read_text())
    content["model_cfg"]["text_cfg"].update(text)
    (directory / "open_clip_config.json").write_text(json.dumps(content))
    weights = directory / "open_clip_model.safetensors"
    weights.write_bytes((Path(other) / weights.name).read_bytes())
    return directory


def zero_projections(model):
    import torch

    with torch.no_grad():
        model.text_projection.zero_()
        model.visual.proj.zero_()


def _load(directory):
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    return model.eval(), transform, open_clip.get_tokenizer(f"local-dir:{directory}")


def _unit(features):
    wide = features.double().numpy()
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def reference_text(directory, texts):
    """open_clip's embeddings over the whole context, normalised in float64."""
    import torch

    model, _, tokenizer = _load(directory)
    with torch.no_grad():
        return _unit(model.encode_text(tokenizer(list(texts))))


def reference_images(directory, images, mean=None, std=None):
    """open_clip's embeddings through its own transform, normalised in float64."""
    import torch
    from torchvision.transforms import Normalize

    model, transform, _ = _load(directory)
    if mean is not None:
        transform.transforms[-1] = Normalize(mean, std)
    with torch.no_grad():
        return _unit(model.encode_image(torch.stack([transform(image) for image in images])))


def noise_image(seed, size):
    """An RGB image with structure at every scale; `size` is (width, height)."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    fine = generator.integers(-20, 20, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(image) + fine, 0, 255).astype(np.uint8))
