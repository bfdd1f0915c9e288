"""Videos of pictures by LTX-Video: folders of both classes, as callables and as a generator, compared with the sampler
written out; in full, with the videos of diffusers from the same noise."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vdm_jax
from tests.pipelines.folders import write_with_t5
from tests.pipelines.test_ltx import FIXED, SCHEDULER, SIZE, TIMED, TRANSFORMER, VAE, of_diffusers
from tests.refusals import refused
from vdm_jax.commands.main import main
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.frame_masks import FrameMask, NoMask, masked_first_frame
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.errors import UserError
from vdm_jax.generation.one_stage import released_steps, sample_keys
from vdm_jax.generation.released.models import load_released, read_released, with_size
from vdm_jax.generation.released.t5_transformers import at_rate
from vdm_jax.networks.kinds import network_module
from vdm_jax.stages.latent import decode, encode

PICTURED = "LTXImageToVideoPipeline"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same networks under both classes, and a later autoencoder."""
    root = tmp_path_factory.mktemp("ltx_images")
    return {name: write_with_t5(root / name, kind, TRANSFORMER, vae, scheduler) for name, kind, vae, scheduler in (
        ("both", "LTXPipeline", VAE, SCHEDULER), ("pictured", PICTURED, VAE, SCHEDULER), (
            "timed", PICTURED, TIMED, FIXED))}


@pytest.fixture(scope="module")
def pipeline(folders):
    return vdm_jax.from_pretrained(folders["both"])


def pictures(height=8, width=16):
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)


def test_what_the_authors_sample_with(folders):
    stage, plain = (read_released(folders[name]).stages[0] for name in ("pictured", "both"))
    assert (*stage.video.shape[:3], stage.video.fps) == (161, 512, 704, 25)
    assert (stage.sampling, stage.network.rotary) == (plain.sampling, plain.network.rotary)
    assert stage.network.in_place and not plain.network.in_place
    assert stage.training.masking == (FrameMask(first=1), NoMask())


def test_a_video_of_a_picture(pipeline, folders, tmp_path):
    """Folders of both classes, the generator of runs and what is saved make the same one; picture and text tell."""
    options, (picture, other) = {**SIZE, "num_inference_steps": 2, "seed": 3, "progress": False}, pictures()
    found = pipeline("a red three", image=picture, **options).videos
    assert found.shape == (1, 5, 8, 16, 3)
    np.testing.assert_array_equal(found[0, 0], picture)
    for changed in ({"image": other}, {"image": None}, {"prompt": "a green seven"}, {"seed": 4}):
        again = pipeline(**{"prompt": "a red three", "image": picture, **options, **changed}).videos
        assert np.abs(found[:, 1:].astype(int) - again[:, 1:]).max() > 0, changed
    pictured = vdm_jax.from_pretrained(folders["pictured"])
    np.testing.assert_array_equal(pictured("a red three", picture, **options).videos, found)
    generator = with_size(load_released(folders["pictured"]), 5, 8, 16)
    given = masked_first_frame(jnp.asarray(picture[None] / 127.5 - 1, jnp.float32), 5)
    again = generator(["a red three"], seed=3, steps=2, masked_video=given).videos
    assert np.abs(again.astype(int) - found).max() <= 1
    pictured.save_pretrained(tmp_path / "out")
    same = vdm_jax.from_pretrained(tmp_path / "out")("a red three", picture, **options).videos
    np.testing.assert_array_equal(same, found)


def test_the_first_latent_stays_clean(pipeline):
    """Euler's steps written out, of the network with a noise level for each frame: 0 for the picture's, the step's for
    the others. The picture is encoded alone."""
    picture = pictures()[0]
    found = pipeline("a red three", image=picture, **SIZE, num_inference_steps=3, guidance_scale=1.0, seed=7, fps=10,
                     progress=False).videos
    stage, params = at_rate(pipeline.stage(5, 8, 16), 10.0), pipeline.models["transformer"].params
    vae, module = pipeline.models["vae"].params, network_module(stage.network)
    texts = pipeline.encoder.texts(["a red three"])
    text = Conditioning(embeddings=texts["embeddings"][:, None], text_mask=texts["text_mask"][:, None])
    first = encode(stage.latent, vae, jnp.asarray(picture[None, None] / 127.5 - 1, jnp.float32))
    z = jnp.concatenate([first, noise_from_keys(sample_keys(7, np.arange(1), 0), 0, (1, 3, 1, 2, 2))[:, 1:]], axis=1)
    levels = released_steps(stage, dataclasses.replace(stage.sampling, steps=3))[0].steps.level
    sigmas = [*(1 / (1 + np.exp(np.asarray(levels, np.float64) / 2))), 0.0]
    for level, sigma, after in zip(levels, sigmas, sigmas[1:], strict=False):
        velocity = module.apply({"params": params}, z, jnp.asarray([[200.0, level, level]], jnp.float32), text)
        z = z.at[:, 1:].add((after - sigma) * velocity[:, 1:])
    wanted = 127.5 * (np.asarray(decode(stage.latent, vae, z)) + 1)
    assert np.abs(found[:, 1:] - wanted[:, 1:]).max() <= 1


def test_the_command_writes_a_video(folders, tmp_path, capsys):
    Image.fromarray(pictures()[0]).save(tmp_path / "a.png")
    size = ["--height", "8", "--width", "16", "--num-frames", "5", "--num-inference-steps", "1"]
    for name in ("both", "pictured"):
        out = tmp_path / f"{name}.gif"
        assert main(["generate", str(folders[name]), "--prompt", "a", *size, "--image", str(tmp_path / "a.png"),
                     "--out", str(out)]) == 0
        assert out.stat().st_size > 0
    assert main(["generate", str(folders["pictured"]), "--prompt", "a", *size]) == 2
    assert "--image is missing" in capsys.readouterr().err


def test_refusals(pipeline, folders):
    with refused("image", "2 pictures for 1 prompts"):
        pipeline("a", image=list(pictures()), **SIZE)
    with refused("image", "image=None", PICTURED):
        vdm_jax.from_pretrained(folders["pictured"])("a", None, **SIZE)
    for wrong in ({"image": 3}, {"image": pictures()[0], "height": "8"}):
        with pytest.raises(UserError, match="permitted"):
            pipeline("a", **{**SIZE, **wrong})


@pytest.mark.full
@pytest.mark.parametrize("kind", ["pictured", "timed"])
def test_videos_of_diffusers(kind, folders, monkeypatch):
    """From the same noise, within 1 of 255, of prompts that are guided. The picture's latents are the mean of what the
    encoder gives, of which diffusers draws: that noise is 0 here."""
    torch, diffusers, transformers = (pytest.importorskip(name) for name in ("torch", "diffusers", "transformers"))
    where = folders[kind]
    theirs = of_diffusers(PICTURED, where, diffusers, transformers)
    ours = vdm_jax.from_pretrained(where)
    factor, images = ours.models["vae"].config.factor, pictures(32, 64)
    shape = (2, 3, 32 // factor, 64 // factor, 2)
    latents = np.array(noise_from_keys(sample_keys(7, np.arange(2), 0), 0, shape)).transpose(0, 4, 1, 2, 3)
    monkeypatch.setattr(__import__(diffusers.LTXImageToVideoPipeline.__module__, fromlist=["x"]), "randn_tensor",
                        lambda shape, **_: torch.from_numpy(latents.copy()).reshape(shape))
    moments = diffusers.models.autoencoders.vae
    monkeypatch.setattr(moments, "randn_tensor", lambda shape, **_: torch.zeros(shape))
    prompts, negative = ["a red three moving left", "a green seven"], ["green", "red"]
    options = {"height": 32, "width": 64, "num_frames": 5, "num_inference_steps": 6, "guidance_scale": 3.0}
    more = {} if kind == "pictured" else {"decode_timestep": 0.2, "decode_noise_scale": 0.0}
    given = torch.from_numpy(images.transpose(0, 3, 1, 2) / 255).float()
    with torch.no_grad():
        wanted = theirs(given, prompts, negative_prompt=negative, **options, frame_rate=10, **more,
                        output_type="np").frames
    found = ours(prompts, list(images), negative_prompt=negative, **options, fps=10, seed=7, progress=False,
                 **more).videos
    np.testing.assert_array_equal(found[:, 0], images)
    assert wanted.std() > 0.02 and np.abs(found[:, 1:].astype(float) - 255 * wanted[:, 1:]).max() <= 1.5
