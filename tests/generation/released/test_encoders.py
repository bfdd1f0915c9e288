"""Texts of a released folder: T5's have zeros where they end, whatever their lengths."""

from __future__ import annotations

import json

import numpy as np

from tests.weights.folders import SMALL, tensors_of, write
from vdm_jax.data.text_encoding import CaptionEncoder, padding_of
from vdm_jax.generation.released.encoders import ReleasedEncoder, padded
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.weights.pretrained import load_pretrained


class Words:
    """A token per letter, at most 6."""

    length = 6

    def __call__(self, texts):
        ids, mask = np.zeros((len(texts), 6), np.int32), np.zeros((len(texts), 6), bool)
        for i, text in enumerate(texts):
            numbers = [*(ord(letter) % 20 for letter in text[:5]), 1]
            ids[i, : len(numbers)], mask[i, : len(numbers)] = numbers, True
        return ids, mask


def test_texts_of_t5_end_in_zeros(tmp_path):
    model = load_pretrained(write(tmp_path / "umt5", SMALL["umt5"], tensors_of(SMALL["umt5"])))
    encoder = ReleasedEncoder.__new__(ReleasedEncoder)
    encoder.captions = CaptionEncoder.of(model, Words(), make_mesh(MeshSpec()))
    found = encoder.texts(["abcd", "a"])
    assert found["embeddings"].shape == (2, 5, 8) and found["null_embeddings"].shape == (5, 8)
    np.testing.assert_array_equal(found["text_mask"].sum(1), [5, 2])
    assert not found["embeddings"][1, 2:].any() and found["embeddings"][1, :2].any()
    assert found["null_mask"].tolist() == [True, *[False] * 4] and not found["null_embeddings"][1:].any()
    both = encoder.texts(["abcd", "a"], ["x", "yz"])
    assert both["null_embeddings"].shape == (2, 5, 8) and both["null_mask"].sum() == 5
    np.testing.assert_allclose(both["embeddings"], found["embeddings"], atol=1e-6)


def test_padding_that_t5_sees(tmp_path):
    """Hidden, seen and dropped, or kept: against the network itself, and as the class of a pipeline says."""
    model = load_pretrained(write(tmp_path / "t5", SMALL["t5"], tensors_of(SMALL["t5"])))
    words, mesh = Words(), make_mesh(MeshSpec())
    ids, mask = words(["ab", "abcd"])
    hidden, seen = (np.asarray(model.module.apply({"params": model.params}, ids, given)) for given in (mask, None))
    assert np.abs(hidden - seen)[mask].max() > 1e-3
    for padding, wanted in (("hidden", [one[m] for one, m in zip(hidden, mask, strict=True)]),
                            ("seen", [one[m] for one, m in zip(seen, mask, strict=True)]), ("kept", list(seen))):
        found = CaptionEncoder.of(model, words, mesh, padding)(["ab", "abcd"])
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    assert padding_of(tmp_path) == "hidden"
    for name, padding in (("WanPipeline", "hidden"), ("LTXPipeline", "seen"),
                          ("LTXImageToVideoPipeline", "seen"), ("CogVideoXPipeline", "kept")):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
        assert padding_of(tmp_path) == padding


def test_padding_of_vectors():
    vectors, mask = padded([np.ones((2, 3), np.float32), 2 * np.ones((1, 3), np.float32)], 4)
    assert vectors.shape == (2, 4, 3) and mask.tolist() == [[True, True, False, False], [True, False, False, False]]
    np.testing.assert_array_equal(vectors[..., 0], [[1, 1, 0, 0], [2, 0, 0, 0]])
