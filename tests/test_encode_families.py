"""Whole configurations of open_clip, with random weights: both towers equal open_clip's own."""

from __future__ import annotations

import encode_models as models
import numpy as np
import pytest

from bliss_index.encode import load_encoder
from bliss_index.encode.random_weights import save_random_model

pytestmark = pytest.mark.slow

TEXTS = ["", "cat", "This is a photo of a great white shark", "long " * 90]

FAMILIES = {
    "ViT-B-32": "trimmed",
    "ViT-B-16": "trimmed",
    "RN50": "trimmed",
    "convnext_base": "trimmed",
    "EVA02-B-16": "trimmed",
    "coca_ViT-B-32": "trimmed",
    "PE-Core-T-16-384": "trimmed",
    "ViTamin-S": "trimmed",
    "MobileCLIP-B": "trimmed",
    "MobileCLIP-S1": "full",
    "MobileCLIP2-S0": "full",
    "ViT-B-16-SigLIP": "full",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name, tmp_path):
    from bliss_index.encode.torchvision_cure import import_open_clip

    if import_open_clip().get_model_config(name) is None:
        pytest.skip(f"this open_clip has no '{name}'")
    pytest.importorskip("timm")
    save_random_model(name, tmp_path)
    encoder = load_encoder(f"local-dir:{tmp_path}", device="cpu")
    assert encoder.settings["text_positions"] == FAMILIES[name]
    np.testing.assert_allclose(
        encoder.encode_text(TEXTS), models.reference_text(tmp_path, TEXTS), atol=1e-5
    )
    images = [models.noise_image(0, (300, 200)), models.noise_image(1, (90, 120))]
    np.testing.assert_allclose(
        encoder.encode_images(images), models.reference_images(tmp_path, images), atol=1e-5
    )
