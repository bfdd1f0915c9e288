"""Video transformers that go on from pictures as Wan's do: latents of a clip that is grey but for these, and the mask
of its frames."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from tests.training.latents import random_params
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.frame_masks import FrameMask, MaskedVideo, NoMask, mask_of_latents
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import FlowSchedule
from vdm_jax.generation.one_stage import sample_keys
from vdm_jax.generation.stage_conditioning import stage_conditioning
from vdm_jax.networks.autoencoders.causal_config import CausalAutoencoder
from vdm_jax.networks.transformer.config import wan
from vdm_jax.stages.inputs import training_inputs
from vdm_jax.stages.latent import Latent, encode
from vdm_jax.stages.options import Dropout, Inpainting, Sampling, Training
from vdm_jax.stages.stage import Stage, VideoSpec

LATENT = Latent(autoencoder=CausalAutoencoder(widths=(4, 4), blocks=1, halve_frames=(True,), latent_channels=2,
                                              mean=(0.1, -0.2), std=(0.5, 2.0)), encode="mode")
NETWORK = wan(out_channels=2, width=16, heads=2, hidden=12, layers=1, text=EmbeddedText(width=6), level_channels=8,
              frame_conditioning="channels", mask_channels=2)
STAGE = Stage(name="base", video=VideoSpec(frames=5, height=8, width=8), latent=LATENT, network=NETWORK,
              process=Process(schedule=FlowSchedule(), prediction="flow"), sampling=Sampling(threshold=None),
              training=Training(masking=(FrameMask(first=1, last=1),)))


@pytest.fixture(scope="module")
def weights():
    return random_params(LATENT.autoencoder)


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, 3)).astype(np.uint8)


def test_a_mask_of_latents_has_a_channel_for_each_frame():
    """Of the first frame all; of others the pixels of a square together."""
    mask = np.zeros((1, 9, 4, 4, 1), np.float32)
    mask[:, 0], mask[:, 7], mask[:, 8, :2, :3] = 1, 1, 1
    found = mask_of_latents(jnp.asarray(mask), (3, 2, 2), 4)
    assert found.shape == (1, 3, 2, 2, 4)
    np.testing.assert_array_equal(found[0, :, 0, 0], [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 1]])
    np.testing.assert_array_equal(found[0, 2, :, :, 3], [[1, 0], [0, 0]])
    ninth = mask_of_latents(jnp.ones((1, 9, 2, 2, 1)), (2, 1, 1), 8)
    assert ninth.shape == (1, 2, 1, 1, 8) and ninth.all()


def grey_but(video, places):
    """The video, grey but for some frames."""
    return np.where(np.isin(np.arange(5), places)[None, :, None, None, None], video, 0).astype(np.float32)


def test_training_shows_latents_of_a_grey_clip(weights, clip):
    batch = {"video": clip, "embeddings": np.zeros((2, 3, 6), np.float32), "text_mask": np.ones((2, 3), bool)}
    _, conditioning, _ = jax.jit(lambda: training_inputs(STAGE, batch, jax.random.key(0), weights))()
    wanted = encode(LATENT, weights, jnp.asarray(grey_but(clip / 127.5 - 1, (0, 4))))
    np.testing.assert_allclose(conditioning.conditioning_frames, wanted, atol=1e-4)
    np.testing.assert_array_equal(conditioning.conditioning_mask[:, :, 1, 2], [[[1, 1], [0, 0], [0, 1]]] * 2)


def test_sampling_shows_what_training_does_and_replaces_nothing(weights, clip):
    video, keys = (clip / 127.5 - 1).astype(np.float32), sample_keys(0, np.arange(2), 0)
    mask = np.isin(np.arange(5), (0, 4)).astype(np.float32)[None, :, None, None, None].repeat(2, 0)

    @jax.jit
    def run(masked_video):
        return stage_conditioning(STAGE, STAGE.sampling, keys, Conditioning(), None, masked_video, weights)

    found, inside = run(MaskedVideo(video, mask))
    np.testing.assert_allclose(found.conditioning_frames, encode(LATENT, weights, jnp.asarray(grey_but(video, (0, 4)))),
                               atol=1e-4)
    np.testing.assert_array_equal(found.conditioning_mask[0, :, 0, 0], [[1, 1], [0, 0], [0, 1]])
    assert inside is None
    nothing, _ = run(None)
    grey = encode(LATENT, weights, jnp.zeros((2, 5, 8, 8, 3)))
    np.testing.assert_allclose(nothing.conditioning_frames, grey, atol=1e-4)
    assert not nothing.conditioning_mask.any() and nothing.conditioning_mask.shape == (2, 3, 4, 4, 2)


@pytest.mark.parametrize("named, changes", [
    (("mask_channels=4", "permitted: 2"), {"network": dataclasses.replace(NETWORK, mask_channels=4)}),
    (("method='replacement'", "'network'"), {"sampling": Sampling(threshold=None, inpainting=Inpainting(
        method="replacement"))}),
    (("'frames'", "grey"), {"training": Training(masking=(FrameMask(first=1), NoMask()), dropout=(
        Dropout(names=("frames",)),))})])
def test_stages_that_do_not_fit(named, changes):
    with refused("VideoTransformer.mask_channels", *named):
        dataclasses.replace(STAGE, **changes)


def test_images_are_not_appended_to_latents_of_several_frames():
    """They would have fewer frames than a mask has channels."""
    with refused("stage._check_latent", "images_per_clip", "latents of 2 frames"):
        dataclasses.replace(STAGE, training=dataclasses.replace(STAGE.training, images_per_clip=1))
