"""Image prompts through the commands: pictures embedded, keys and values trained, videos sampled with a picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import vdm_jax
from tests.commands.tiny_image_prompt import UNET
from tests.training.latents import AUTOENCODER, write_model
from tests.weights.folders import tensors_of, write
from vdm_jax.commands.main import main
from vdm_jax.networks.encoders.clip_vision import CLIPVision
from vdm_jax.parallel.rules import path_name
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_png, write_video
from vdm_jax.weights.image_prompt_files import load_image_prompt

pytestmark = pytest.mark.full
TINY = str(Path(__file__).parent / "tiny_image_prompt.py")
ENCODER = CLIPVision(size=8, patch=4, width=8, layers=2, heads=2, hidden=16, project=5)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with videos, a picture of each, weights and the trained run, and the U-Net's parameters."""
    home, rng = tmp_path_factory.mktemp("image_prompt"), np.random.default_rng(0)
    unet = write_model(home / "unet.safetensors", UNET)
    write_model(home / "autoencoder.safetensors", dataclasses.replace(AUTOENCODER, scale=1.7))
    write(home / "image_encoder", ENCODER, tensors_of(ENCODER))
    for number in range(12):
        colour = rng.integers(0, 255, 3).astype(np.uint8)
        write_video(home / "videos" / f"{number}.mp4", np.full((8, 16, 16, 3), colour), 8, lossless=True)
        write_png(home / "pictures" / f"{number}.png", np.full((12, 8, 3), colour))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["embed", "pictures", "--encoder", "image_encoder", "--out", "vectors", "--batch-size", "4"]) == 0
        assert main(["train", TINY, "--run", "run"]) == 0
    return home, unet.params


def test_keys_and_values_begin_as_those_of_the_text_and_learn(home, monkeypatch):
    monkeypatch.chdir(home[0])
    assert np.load("vectors/3.npy").shape == (1, 5) and not Path("vectors/null_image_prompt.npy").exists()
    params = vdm_jax.load("run", jax.devices()[:1]).params["base"]
    inside = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    base = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(home[1])}
    for name, leaf in base.items():
        np.testing.assert_array_equal(inside.pop(name), leaf)
    assert all("/image_" in name for name in inside)
    for name in inside:
        if "/cross_attention/image_" in name:
            change = np.abs(inside[name] - base[name.replace("/image_", "/")]).max()
            assert 0 < change < 0.5, name


def test_a_picture_changes_the_video_and_scale_0_is_without_it(home, monkeypatch, fails):
    monkeypatch.chdir(home[0])
    common = ["sample", "run", "--out", "a.gif"]
    found = {}
    for name, more in {"none": [], "zero": ["--image-prompt", "pictures/1.png", "--image-prompt-scale", "0"],
                       "one": ["--image-prompt", "pictures/1.png", "--image-prompt-scale", "20"]}.items():
        assert main([*common, *more]) == 0
        found[name] = VideoReader("a.gif").frames([0, 1]).astype(int)
    np.testing.assert_array_equal(found["none"], found["zero"])
    assert np.abs(found["one"] - found["none"]).max() > 2
    assert "--image-prompt-scale=0.5 is for --image-prompt" in fails(*common, "--image-prompt-scale", "0.5")
    assert "--image-prompt=none.png is not a file" in fails(*common, "--image-prompt", "none.png")
    assert "videos/0.mp4 is not a readable picture" in fails(*common, "--image-prompt", "videos/0.mp4")
    assert "no image prompt adapter" in fails(*common, "--image-prompt", "pictures/1.png", "--image-prompt-adapter",
                                              "unet.safetensors")
    assert "has vectors by" in fails("embed", "pictures", "--encoder", "image_encoder", "--out", "vectors", "--hidden")


def test_the_adapter_is_exported_as_its_authors_store_it(home, monkeypatch):
    monkeypatch.chdir(home[0])
    assert main(["export", "run", "adapter", "--image-prompts"]) == 0
    model = load_image_prompt("adapter/base/ip-adapter.safetensors")
    params = vdm_jax.load("run", jax.devices()[:1]).params["base"]
    np.testing.assert_array_equal(model.params["projection"]["proj"]["kernel"],
                                  params["image_projection"]["proj"]["kernel"])
    last = params["middle_transformer"]["space"]["cross_attention"]
    np.testing.assert_array_equal(model.params["layer_3_image_key"]["kernel"], last["image_key"]["kernel"])


def test_hidden_states_have_a_null_value_and_what_is_there_is_not_made_again(home, monkeypatch):
    monkeypatch.chdir(home[0])
    arguments = ["embed", "pictures", "--encoder", "image_encoder", "--out", "hidden", "--hidden"]
    assert main(arguments) == 0
    assert np.load("hidden/3.npy").shape == np.load("hidden/null_image_prompt.npy").shape == (5, 8)
    before = np.load("hidden/0.npy")
    np.save("hidden/3.npy", np.zeros((5, 8)))
    Path("hidden/0.npy").unlink()
    assert main(arguments) == 0
    assert not np.load("hidden/3.npy").any()
    np.testing.assert_allclose(np.load("hidden/0.npy"), before, atol=1e-5)
