"""Trimmed text towers: the same embeddings as open_clip's full length, for every tower family."""

from __future__ import annotations

import functools
import logging

import encode_models as models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bliss_index.encode import load_encoder
from bliss_index.encode.text_tower import TextTower, _causal_parts, bucket_lengths

TEXTS = [
    "",
    "cat",
    "This is a photo of a dog",
    "a <end_of_text> in the middle and more words behind it",
    "This is a photo of a " + "very " * 30 + "long animal",
    "zebra " * 200,
    "ünïcode Wörter, 日本語 & &lt;b&gt;",
    *(f"This is a photo of a thing number {n}" for n in range(0, 2000, 97)),
]

FAMILIES = {
    "clip": (models.CLIP, "trimmed"),
    "custom text (EVA, MobileCLIP-B, PE)": (models.variant(), "trimmed"),
    "end token id": (models.variant(pool_type="eos", eos_id=49407), "trimmed"),
    "pooled first": (models.variant(pool_type="first"), "trimmed"),
    "projection with bias": (models.variant(proj_bias=True), "trimmed"),
    "no projection": (models.variant(proj_type="none", width=16), "trimmed"),
    "custom blocks": (models.variant(block_type="custom", qk_norm=True), "trimmed"),
    "coca": (
        models.variant(
            multimodal=True,
            context_length=76,
            embed_cls=True,
            output_tokens=True,
            vision={"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        ),
        "trimmed",
    ),
    "siglip": (
        models.variant(no_causal_mask=True, pool_type="last", proj_bias=True, context_length=64),
        "full",
    ),
    "MobileCLIP-S": (models.variant(no_causal_mask=True), "full"),
    "causal, pooled last": (models.variant(pool_type="last"), "full"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_open_clip_at_full_length(family, tmp_path):
    config, mode = FAMILIES[family]
    directory = models.save_model(tmp_path, config)
    encoder = load_encoder(f"local-dir:{directory}", device="cpu")
    assert encoder.settings["text_positions"] == mode, encoder._tower.reason
    expected = models.reference_text(directory, TEXTS)
    np.testing.assert_allclose(encoder.encode_text(TEXTS), expected, atol=1e-6)


def test_texts_of_one_length_only_run_their_own_positions(tmp_path, monkeypatch):
    directory = models.save_model(tmp_path, models.CLIP)
    encoder = load_encoder(f"local-dir:{directory}", device="cpu", batch_size=4)
    lengths = []
    run = TextTower._run_trimmed

    def record(tower, parts, ids, length):
        lengths.append((len(ids), length))
        return run(tower, parts, ids, length)

    monkeypatch.setattr(TextTower, "_run_trimmed", record)
    encoder.encode_text(["cat"] * 6 + ["word " * 20] + ["word " * 90])
    assert lengths == [(4, 3), (2, 3), (1, 24), (1, 77)]


def test_a_tower_that_disagrees_with_itself_runs_at_full_length(tmp_path, monkeypatch, caplog):
    directory = models.save_model(tmp_path, models.CLIP)
    expected = models.reference_text(directory, TEXTS)
    run = TextTower._run_trimmed
    monkeypatch.setattr(TextTower, "_run_trimmed", lambda *a: run(*a) + 1e-3)
    with caplog.at_level(logging.WARNING):
        encoder = load_encoder(f"local-dir:{directory}", device="cpu")
    assert encoder.settings["text_positions"] == "full"
    assert "trimmed and full length differ by" in caplog.text
    np.testing.assert_allclose(encoder.encode_text(TEXTS), expected, atol=1e-6)


def test_a_changed_mask_or_class_is_not_taken_for_causal():
    import torch

    model = models.build(models.CLIP)
    model.attn_mask[0, 5] = 0.0
    parts, reason = _causal_parts(model)
    assert parts is None
    assert "not causal" in reason

    class Other(torch.nn.Module):
        pass

    other = models.build(models.variant())
    other.text = Other()
    parts, reason = _causal_parts(other)
    assert parts is None
    assert "Other" in reason


def test_bfloat16_trimmed(tmp_path):
    for family in ("clip", "coca"):
        directory = models.save_model(tmp_path / family, FAMILIES[family][0])
        encoder = load_encoder(f"local-dir:{directory}", device="cpu", precision="bfloat16")
        assert encoder.settings["text_positions"] == "trimmed"
        cosines = np.sum(encoder.encode_text(TEXTS) * models.reference_text(directory, TEXTS), 1)
        assert cosines.min() > 0.999


@given(st.lists(st.integers(1, 77), min_size=1))
def test_buckets_hold_what_is_needed(needed):
    needed = np.array(needed)
    lengths = bucket_lengths(needed, 77)
    assert (lengths >= needed).all()
    assert (lengths <= 77).all()
    assert (lengths[needed <= 16] == needed[needed <= 16]).all()
    assert (lengths - needed < 8).all()


def test_the_tokenizer_does_not_remember_every_word(monkeypatch):
    from bliss_index.encode import tokenizer as module
    from bliss_index.encode.torchvision_cure import import_open_clip

    monkeypatch.setattr(module, "_MOST_WORDS", 20)
    own = import_open_clip().SimpleTokenizer()
    bounded = module._byte_pair_tokenizer("m", {}, own, 77)
    words = [f"{chr(97 + i % 26)}{chr(97 + i // 26)}word <end_of_text>" for i in range(200)]
    for start in range(0, 200, 10):
        part = words[start : start + 10]
        np.testing.assert_array_equal(bounded(part).ids, tokenizers()[0](part).numpy())
        assert len(own.cache) < 45


def test_short_texts_are_not_tokenised_to_know_that_they_fit():
    _, tokenizer = tokenizers()
    texts = ["a" * 75, "1" * 75, "1" * 76, "word " * 80, "é" * 38, "\u0958" * 30, "cat & dog", ""]
    expected = [len(tokenizer._encode([text])[0]) > 77 for text in texts]
    assert tokenizer.find_truncated(texts).tolist() == expected
    assert expected == [False, False, True, True, False, True, False, False]


@functools.cache
def tokenizers():
    from bliss_index.encode.tokenizer import _byte_pair_tokenizer
    from bliss_index.encode.torchvision_cure import import_open_clip

    reference = import_open_clip().SimpleTokenizer()
    return reference, _byte_pair_tokenizer("m", {}, reference, 77)


@settings(deadline=None)
@given(st.text())
def test_the_fast_path_of_the_tokenizer_changes_no_ids(text):
    reference, tokenizer = tokenizers()
    for item in (text, text.encode("ascii", "ignore").decode()):
        np.testing.assert_array_equal(tokenizer([item]).ids, reference([item]).numpy())
