"""Loading models: identity, equality with open_clip, and every refusal with its values."""

from __future__ import annotations

import json

import encode_models as models
import numpy as np
import pytest
from PIL import Image

from bliss_index.encode import load_encoder
from bliss_index.encode.encode_work import OPENAI_MODELS, EncoderSpec
from bliss_index.errors import EncoderError, InvalidInputError, MissingDependencyError

TEXTS = [
    "a photo of a cat",
    "dog",
    "This is a photo of a great white shark",
    "Ein Foto von Äpfeln & Birnen &amp; mehr",
    "MIXED   Case\twhite space",
    "<end_of_text> inside <start_of_text>",
    "",
]


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory):
    return models.save_model(tmp_path_factory.mktemp("clip"), models.CLIP)


@pytest.fixture(scope="module")
def encoder(clip_dir):
    return load_encoder(f"local-dir:{clip_dir}", device="cpu")


def test_text_equals_open_clip(clip_dir, encoder):
    expected = models.reference_text(clip_dir, TEXTS)
    embeddings = encoder.encode_text(TEXTS)
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (len(TEXTS), encoder.dim)
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embeddings.astype(float), axis=1), 1, atol=1e-6)


def test_images_equal_open_clip(clip_dir, encoder, tmp_path):
    images = [models.noise_image(seed, size) for seed, size in enumerate([(64, 64), (90, 51)])]
    expected = models.reference_images(clip_dir, images)
    np.testing.assert_allclose(encoder.encode_images(images), expected, atol=1e-6)
    path = tmp_path / "one.png"
    images[1].save(path)
    from_path = encoder.encode_images([path, str(path), path.read_bytes()])
    np.testing.assert_allclose(from_path, np.repeat(expected[1:], 3, axis=0), atol=1e-6)


def test_batch_size_and_order_do_not_matter(clip_dir, encoder):
    small = load_encoder(f"local-dir:{clip_dir}", device="cpu", batch_size=2)
    np.testing.assert_allclose(small.encode_text(TEXTS), encoder.encode_text(TEXTS), atol=2e-6)
    np.testing.assert_array_equal(encoder.encode_text(TEXTS), encoder.encode_text(TEXTS))
    np.testing.assert_allclose(
        encoder.encode_text(TEXTS[::-1])[::-1], encoder.encode_text(TEXTS), atol=2e-6
    )


def test_nothing_gives_an_empty_array(encoder):
    assert encoder.encode_text([]).shape == (0, encoder.dim)
    assert encoder.encode_images([]).shape == (0, encoder.dim)


def test_progress_counts_every_row(encoder):
    done = []
    encoder.encode_text(TEXTS, progress=done.append)
    assert sum(done) == len(TEXTS)


def test_truncated_texts_are_counted(encoder):
    long = "word " * 100
    assert encoder.count_truncated([*TEXTS, long]) == 1
    assert encoder.count_truncated(["word " * 75]) == 0  # with start and end exactly 77
    assert encoder.count_truncated(["word " * 76]) == 1


def test_identity_is_the_same_for_the_same_weights(clip_dir, encoder, tmp_path):
    import torch
    from safetensors.torch import load_file

    identity = encoder.identity
    assert identity.name == f"local-dir:{clip_dir.name}"
    assert identity.pretrained is None
    assert identity.context_length == 77
    assert identity.quick_gelu is False
    assert identity.tokenizer == {"kind": "clip-bpe", "vocab_size": 49408, "clean": "lower"}
    assert identity.preprocess["size"] == [32, 32]
    assert str(clip_dir) not in json.dumps(identity.__dict__)
    state = load_file(clip_dir / "open_clip_model.safetensors")
    other = models.save_model(tmp_path, models.CLIP, state=None)
    (other / "open_clip_model.safetensors").unlink()
    torch.save(
        {"state_dict": {f"module.{k}": v.half().float() for k, v in state.items()}},
        other / "open_clip_pytorch_model.bin",
    )
    again = load_encoder(f"local-dir:{other}", device="cpu", precision="bfloat16")
    assert len(identity.weights_sha256) == 64
    assert again.identity.weights_sha256 != identity.weights_sha256  # rounded to half
    torch.save(state, other / "open_clip_pytorch_model.bin")
    same = load_encoder(f"local-dir:{other}", device="cpu", precision="bfloat16")
    assert same.identity.weights_sha256 == identity.weights_sha256
    assert same.settings["precision"] == "bfloat16"


def test_bfloat16_stays_close(clip_dir, encoder):
    low = load_encoder(f"local-dir:{clip_dir}", device="cpu", precision="bfloat16")
    cosines = np.sum(low.encode_text(TEXTS) * encoder.encode_text(TEXTS), axis=1)
    assert cosines.min() > 0.999
    image = models.noise_image(3, (40, 40))
    assert np.sum(low.encode_images([image]) * encoder.encode_images([image])) > 0.999


def test_authors_preprocessing_changes_the_statistics_only(clip_dir, encoder):
    authors = load_encoder(f"local-dir:{clip_dir}", device="cpu", preprocess="authors")
    assert authors.identity.preprocess["mean"] == [0.4913, 0.4821, 0.4465]
    assert authors.identity.preprocess["std"] == [0.2470, 0.2434, 0.2615]
    assert authors.identity.preprocess["size"] == encoder.identity.preprocess["size"]
    image = models.noise_image(0, (32, 32))
    expected = models.reference_images(
        clip_dir, [image], mean=(0.4913, 0.4821, 0.4465), std=(0.2470, 0.2434, 0.2615)
    )
    np.testing.assert_allclose(authors.encode_images([image]), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "pretrained", "error", "parts"),
    [
        ("ViT-B-23", "openai", EncoderError, ["ViT-B-23", "ViT-B-32"]),
        ("ViT-B-32", "laion9", EncoderError, ["ViT-B-32", "laion9", "laion2b_s34b_b79k"]),
        ("ViT-B-32", None, EncoderError, ["ViT-B-32", "pretrained=None", "openai"]),
        ("ViT-M-32", "openai", EncoderError, ["ViT-M-32", "openai", "path of a checkpoint"]),
        ("ViT-B-32", "laion400m_e32", EncoderError, ["quick_gelu=True", "'ViT-B-32-quickgelu'"]),
        ("ViT-B-32", "gone/weights.safetensors", EncoderError, ["gone/weights.safetensors"]),
        ("bliss-tiny", "openai", EncoderError, ["bliss-tiny", "openai", "scenes"]),
        ("local-dir:/no/such", None, EncoderError, ["/no/such", "open_clip_config.json"]),
        ("local-dir:/tmp", "openai", EncoderError, ["local-dir:/tmp", "openai"]),
    ],
)
def test_refusals_name_both_values(name, pretrained, error, parts):
    with pytest.raises(error) as caught:
        load_encoder(name, pretrained, device="cpu")
    for part in parts:
        assert part in str(caught.value)


def test_weights_that_cannot_be_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderError) as caught:
        load_encoder("ViT-B-32", "laion2b_s34b_b79k", device="cpu")
    for part in ("ViT-B-32", "laion2b_s34b_b79k", "could not be downloaded", "pretrained='path"):
        assert part in str(caught.value)


def test_openai_weights_are_built_with_quick_gelu():
    from bliss_index.encode.checkpoint import _check_quick_gelu

    assert _check_quick_gelu("ViT-B-16", "openai", {}, {"quick_gelu": True}) is True
    assert (
        _check_quick_gelu(
            "ViT-B-16-quickgelu", "openai", {"quick_gelu": True}, {"quick_gelu": True}
        )
        is False
    )


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"precision": "float16"}, ["float16", "float32", "bfloat16"]),
        ({"preprocess": "clip"}, ["clip", "model", "authors"]),
        ({"batch_size": 0}, ["batch_size is 0"]),
        ({"device": "gpu"}, ["gpu", "cuda"]),
        ({"device": "meta"}, ["meta", "cpu"]),
    ],
)
def test_bad_options(clip_dir, arguments, parts):
    with pytest.raises(InvalidInputError) as caught:
        load_encoder(f"local-dir:{clip_dir}", **arguments)
    for part in parts:
        assert part in str(caught.value)


def test_pickled_checkpoints_are_refused(tmp_path):
    import pickle

    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps(print, protocol=2))
    with pytest.raises(EncoderError, match="unpickling") as caught:
        load_encoder("ViT-S-32-alt", path, device="cpu")
    assert str(path) in str(caught.value)


def test_damaged_and_foreign_checkpoints(clip_dir, tmp_path):
    weights = clip_dir / "open_clip_model.safetensors"
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EncoderError, match=r"cut\.safetensors"):
        load_encoder("ViT-S-32-alt", cut, device="cpu")
    odd = tmp_path / "weights.ckpt"
    odd.write_bytes(b"0")
    with pytest.raises(EncoderError, match=r"'\.ckpt'.*\.safetensors"):
        load_encoder("ViT-S-32-alt", odd, device="cpu")
    with pytest.raises(EncoderError, match="77 text positions.*40|40.*77 text positions"):
        load_encoder(f"local-dir:{models.with_config(tmp_path / 'a', clip_dir, context_length=40)}")
    with pytest.raises(EncoderError, match="do not fit model") as caught:
        load_encoder(f"local-dir:{models.with_config(tmp_path / 'b', clip_dir, width=64)}")
    assert "local-dir:b" in str(caught.value)


def test_a_directory_without_its_files(clip_dir, tmp_path):
    with pytest.raises(EncoderError, match="open_clip_config.json is missing"):
        load_encoder(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(EncoderError, match="model_cfg"):
        load_encoder(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_bytes(
        (clip_dir / "open_clip_config.json").read_bytes()
    )
    with pytest.raises(EncoderError, match=r"no weights in .*open_clip_model\.safetensors"):
        load_encoder(f"local-dir:{tmp_path}")


def test_a_tokenizer_that_is_not_the_models(clip_dir, tmp_path):
    with pytest.raises(EncoderError, match="32000.*49408"):
        load_encoder(f"local-dir:{models.with_config(tmp_path, clip_dir, vocab_size=32000)}")


def test_a_tokenizer_that_needs_transformers(monkeypatch, tmp_path, clip_dir):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    for name, pretrained in [
        ("ViT-B-16-SigLIP", "webli"),
        (f"local-dir:{models.with_config(tmp_path, clip_dir, hf_tokenizer_name='t5')}", None),
    ]:
        if pretrained:  # the tokenizer is checked before weights are fetched
            monkeypatch.setattr(
                "open_clip.pretrained.download_pretrained", lambda *_: clip_dir / "unused"
            )
        with pytest.raises(MissingDependencyError, match="pip install transformers"):
            load_encoder(name, pretrained, device="cpu")


def test_open_clip_missing(monkeypatch):
    import sys

    for module in [m for m in sys.modules if m.split(".")[0] in ("open_clip",)]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'bliss-index\[clip\]'"):
        load_encoder("ViT-B-32", "openai")


def test_zero_and_nan_embeddings_name_the_row(tmp_path):
    broken = models.save_model(tmp_path, models.CLIP, edit=models.zero_projections)
    encoder = load_encoder(f"local-dir:{broken}", device="cpu")
    with pytest.raises(EncoderError, match=r"row 0 .*'cat'.*zero embedding"):
        encoder.encode_text(["cat", "dog"])
    with pytest.raises(EncoderError, match=r"row 0 \(image 0\).*zero"):
        encoder.encode_images([Image.new("RGB", (8, 8))])


def test_arguments_of_the_wrong_type(encoder):
    with pytest.raises(InvalidInputError, match="one string 'cat'"):
        encoder.encode_text("cat")
    with pytest.raises(InvalidInputError, match="text 1 is None"):
        encoder.encode_text(["cat", None])
    with pytest.raises(InvalidInputError, match="list of images"):
        encoder.encode_images("cat.png")
    with pytest.raises(InvalidInputError, match=r"image 1 is of type ndarray; .*PIL"):
        encoder.encode_images([Image.new("RGB", (8, 8)), np.zeros((8, 8, 3), dtype=np.uint8)])
    with pytest.raises(InvalidInputError, match="templates"):
        encoder.encode_ensemble(["cat"], "a {}")


def test_ensembles_are_normalised_means(encoder):
    entries, templates = ["cat", "dog"], ["a {}", "a photo of a {}, outside"]
    parts = [encoder.encode_text([t.format(e) for e in entries]).astype(float) for t in templates]
    mean = np.mean(parts, axis=0)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode_ensemble(entries, templates), mean, atol=1e-6)


def test_loading_leaves_the_root_logger_alone(clip_dir):
    import logging

    before = list(logging.getLogger().handlers)
    load_encoder(f"local-dir:{clip_dir}", device="cpu")
    assert logging.getLogger().handlers == before


def test_a_tag_is_recorded_in_one_spelling(clip_dir, monkeypatch):
    from bliss_index.encode.checkpoint import resolve_model

    path = clip_dir / "open_clip_model.safetensors"
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda *_: path)
    for spelling in ("laion400m-e32", "laion400m_e32", "LAION400M_E32"):
        source = resolve_model("ViT-B-32-quickgelu", spelling)
        assert (source.name, source.pretrained) == ("ViT-B-32-quickgelu", "laion400m_e32")


def test_models_of_openai_have_its_weights_unless_others_are_named():
    open_clip = pytest.importorskip("open_clip")
    for name in OPENAI_MODELS:
        assert EncoderSpec.of(name).pretrained == "openai"
        assert "openai" in open_clip.list_pretrained_tags_by_model(name)
        assert EncoderSpec.of(name, "laion400m_e32").pretrained == "laion400m_e32"
    assert EncoderSpec.of("ViT-H-14").pretrained is None
    assert EncoderSpec.of("bliss-tiny").pretrained is None
