"""CLIP as a judge: the names of its tensors, its tokens and pixels, agreement with transformers."""

import dataclasses
import gzip

import jax
import numpy as np
import pytest
from PIL import Image

from tests.parity import peer
from tests.refusals import refused
from vdm_jax.errors import UserError
from vdm_jax.metrics.detectors import clip, weights
from vdm_jax.networks.encoders.clip_text import CLIPText
from vdm_jax.networks.encoders.clip_vision import CLIPVision
from vdm_jax.weights import model_kinds
from vdm_jax.weights.safetensors import save_params

SMALL = clip.Model(
    text=CLIPText(vocabulary=600, length=16, width=64, layers=2, heads=1, hidden=256, project=32),
    vision=CLIPVision(size=32, patch=16, width=64, layers=2, heads=1, hidden=256, project=32),
    file=dataclasses.replace(clip.MODELS["ViT-B-32"].file, path="small/model.safetensors"))
# Merges that make "cat" and "mo", after a line that says what the file is.
MERGES = "#version: 0.2\nc a\nca t</w>\nm o\n"


@pytest.fixture(scope="module")
def tensors():
    """Tensors of the small model by transformers' names."""
    rng = np.random.default_rng(0)
    made = {}
    for config in (SMALL.text, SMALL.vision):
        for name, shape in model_kinds.inventory(config).items():
            made[name] = rng.standard_normal(shape).astype(np.float32) / 8
    return made | {"logit_scale": np.ones(())}


@pytest.fixture
def small(monkeypatch, tmp_path, tensors):
    """The small model in the user's folder as transformers keeps it."""
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setitem(clip.MODELS, "ViT-B-32", SMALL)
    save_params(tmp_path / "small" / "model.safetensors", tensors)
    (tmp_path / "small" / "merges.txt").write_text(MERGES)
    for cached in (weights.load, clip._images, clip._texts):
        cached.cache_clear()
    yield tmp_path
    weights.load.cache_clear()


def test_tensors_are_known_by_name_and_others_listed(tensors):
    ours = clip.from_published(tensors, SMALL)
    assert len(jax.tree.leaves(ours)) == len(tensors) - 1
    broken = {name: x for name, x in tensors.items() if name != "text_projection.weight"}
    broken["vision_model.post_layernorm.bias"] = np.ones(3)
    broken["text_model.extra"] = np.ones(3)
    with refused("clip.from_published", "text_projection.weight", "[32, 64]", "text_model.extra",
                 "vision_model.post_layernorm.bias", "[3]", "[64]"):
        clip.from_published(broken, SMALL)


def test_a_missing_model_names_its_file(monkeypatch, tmp_path):
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path))
    with refused("weights.find", "model.safetensors", "huggingface.co", "clip_ViT-L-14.safetensors"):
        clip.parameters("ViT-L-14")
    with refused("clip", "='RN50'", "ViT"):
        clip.find_model("RN50")


def test_a_folder_of_transformers_is_read(small):
    there = weights.found(SMALL.file)
    assert there.name == "clip_ViT-B-32 (weights not vouched for)" and len(there.sha256) == 64
    frames = np.random.default_rng(0).integers(0, 256, (5, 48, 40, 3), np.uint8)
    images = clip.image_embeddings(frames, "ViT-B-32", batch_size=2)
    texts = clip.text_embeddings(["cat", "a moving cat", "cat"], "ViT-B-32", batch_size=2)
    assert images.shape == (5, 32) and texts.shape == (3, 32)
    np.testing.assert_allclose(texts[0], texts[2], rtol=1e-5)
    assert not np.allclose(texts[0], texts[1]) and not np.allclose(images[0], images[1])


def test_pixels_are_those_of_pillow():
    frame = np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)
    seen = clip.clip_pixels(frame, 30)
    small = np.asarray(Image.fromarray(frame).resize((50, 30), Image.Resampling.BICUBIC))[:, 10:40]
    np.testing.assert_allclose(seen * clip.PIXEL_STD + clip.PIXEL_MEAN, small / 255, atol=1e-6)


@pytest.mark.full
def test_transformers_agrees(small, tensors):
    torch, transformers = peer("torch"), peer("transformers")
    shared = {"num_hidden_layers": 2, "num_attention_heads": 1, "hidden_size": 64, "intermediate_size": 256}
    config = transformers.CLIPConfig(
        text_config={**shared, "vocab_size": 600, "max_position_embeddings": 16, "eos_token_id": 2},
        vision_config={**shared, "image_size": 32, "patch_size": 16}, projection_dim=32)
    model = transformers.CLIPModel(config).eval()
    missing, unexpected = model.load_state_dict({k: torch.tensor(x) for k, x in tensors.items()}, strict=False)
    assert not unexpected and all("position_ids" in name for name in missing)
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 40, 3), np.uint8)
    read = transformers.CLIPImageProcessorPil if hasattr(transformers, "CLIPImageProcessorPil") else None
    pixels = np.stack([clip.clip_pixels(frame, 32) for frame in frames])
    if read is not None:
        theirs = read(size={"shortest_edge": 32}, crop_size=32)(list(frames), return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(pixels.transpose(0, 3, 1, 2), theirs, atol=1e-5)
    tokens = clip.tokenizer("ViT-B-32")(["a moving cat", "cat", "dog 12"]).ids
    with torch.no_grad():
        images = model.visual_projection(model.vision_model(torch.tensor(pixels).permute(0, 3, 1, 2)).pooler_output)
        texts = model.text_projection(model.text_model(torch.tensor(tokens).long()).pooler_output)
    np.testing.assert_allclose(clip.image_embeddings(frames, "ViT-B-32"), images.numpy(), atol=1e-5)
    np.testing.assert_allclose(clip._texts("ViT-B-32", 4)(tokens), texts.numpy(), atol=1e-5)


@pytest.mark.full
def test_the_published_list_of_merges_is_read(monkeypatch):
    monkeypatch.delenv(weights.FOLDER_VARIABLE, raising=False)
    peer("torch")  # from here on the package that carries it is found
    try:
        path = clip.merges_file("ViT-B-32")
    except UserError as error:
        pytest.skip(str(error))
    assert len(gzip.open(path).read()) > 1e6
    ids = clip.tokenizer("ViT-B-32")(["a photo of a cat"]).ids[0]
    assert ids[:7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407] and len(ids) == 77
