"""Latent stages that take conditioning frames: noise on it, the loss next to it, guidance by it, configs that do not
fit."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from tests.training.latents import random_params
from vdm_jax.conditions.conditioning import Conditioning, SampledVideos
from vdm_jax.conditions.frame_masks import FrameMask, MaskedVideo, NoMask, masked_first_frame
from vdm_jax.conditions.frames import ConditioningFrames, noised
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import LinearBetaSchedule
from vdm_jax.generation import one_stage as sampling
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.stages import inputs
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Stage, VideoSpec
from vdm_jax.training import draws, step

BETAS = LinearBetaSchedule()
UNET = LatentUNet(in_channels=5, widths=(4, 8), blocks=1, attention=(True, False), heads=(2, 2), groups=2,
                  max_relative_position=2, only_cross_attention=(False, False), token_channels=0, classes=251)
STAGE = Stage(
    name="base", video=VideoSpec(frames=3, height=8, width=8),
    network=LatentNetwork(unet=UNET, timesteps=BETAS, frame_conditioning="in_place", frame_noise_steps=250,
                          frame_noise_step=100),
    process=Process(schedule=BETAS, prediction="eps"),
    latent=Latent(autoencoder=Autoencoder(widths=(4, 4), blocks=1, groups=2)),
    training=Training(masking=(FrameMask(first=1), NoMask())),
    sampling=Sampling(threshold=None, guidance=0.1, guided_by="frames"))


@pytest.fixture
def conditioning(normal):
    mask = jnp.zeros((2, 3, 4, 4, 1)).at[:, 0].set(1)
    return Conditioning(conditioning_frames=mask * normal(0, 2, 3, 4, 4, 4), conditioning_mask=mask)


@pytest.fixture
def normal():
    return lambda seed, *shape: jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_noise_on_what_is_known_is_that_of_a_timestep_which_the_network_is_told(conditioning):
    given = {name: getattr(conditioning, name) for name in ("conditioning_frames", "conditioning_mask")}
    keys = jax.random.split(jax.random.key(0), 2)
    noisy = noised(given, STAGE, keys, jnp.array([0.0, 249.0]))
    np.testing.assert_array_equal(noisy["scalars"]["frame_noise_step"], [0, 249])
    np.testing.assert_array_equal(noisy["conditioning_frames"][:, 1:], 0)
    added = np.asarray(noisy["conditioning_frames"] - conditioning.conditioning_frames)[:, 0]
    alpha = np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))[[0, 249]]
    expected = np.asarray(conditioning.conditioning_frames)[:, 0] * (alpha - 1)[:, None, None, None]
    noise = (added - expected) / np.sqrt(1 - alpha**2)[:, None, None, None]
    assert 0.7 < noise[0].std() < 1.3 and 0.7 < noise[1].std() < 1.3 and np.abs(noise[0] - noise[1]).max() > 0.5
    alone = noised(jax.tree.map(lambda a: a[1:], given), STAGE, keys[1:], jnp.array([249.0]))
    np.testing.assert_allclose(alone["conditioning_frames"][0], noisy["conditioning_frames"][1], atol=1e-6)
    clean = dataclasses.replace(STAGE, network=dataclasses.replace(
        STAGE.network, frame_noise_steps=0, unet=dataclasses.replace(UNET, classes=0)))
    videos = SampledVideos(clean, keys, None,
                           MaskedVideo(conditioning.conditioning_frames, conditioning.conditioning_mask), False, False,
                           None)
    found = ConditioningFrames().in_sampling(Conditioning(), videos)
    assert "scalars" not in found
    np.testing.assert_array_equal(found["conditioning_frames"], conditioning.conditioning_frames)


def test_training_draws_timesteps_and_learns_from_what_is_not_known(monkeypatch, normal):
    seen = {}

    def loss(self, network, x, key, *, mask=None, logsnr=None, noise=None):
        seen["mask"] = mask
        return jnp.zeros(len(x)), {"x_mse": jnp.zeros(len(x))}

    monkeypatch.setattr(Process, "loss", loss)
    monkeypatch.setattr(inputs, "_encoded", lambda stage, autoencoder, x, valid, key: normal(0, 16, 3, 4, 4, 4))
    draw = inputs.training_inputs
    monkeypatch.setattr(draws, "training_inputs", lambda *a: seen.setdefault("inputs", draw(*a)))
    step.stage_loss(STAGE, None, {"video": jnp.zeros((16, 3, 8, 8, 3), jnp.uint8)}, jax.random.key(0))
    conditioning = seen["inputs"][1]
    steps = np.asarray(conditioning.scalars["frame_noise_step"])
    assert steps.min() >= 0 and steps.max() < 250 and len(set(steps)) > 8
    masked_video = np.asarray(conditioning.conditioning_mask)[:, :, 0, 0, 0]
    assert {tuple(row) for row in masked_video} == {(1, 0, 0), (0, 0, 0)}
    np.testing.assert_array_equal(np.broadcast_to(seen["mask"], (16, 3, 4, 4, 1))[:, :, 0, 0, 0], 1 - masked_video)


def test_guidance_takes_away_what_is_known(monkeypatch, conditioning, normal):
    """The estimate is 1 where something is given and 0 else: guidance of w makes it 1 + w."""
    monkeypatch.setattr(sampling, "network_module", lambda network: None)
    monkeypatch.setattr(Process, "denoiser", lambda self, network: network)

    class Denoiser:
        @staticmethod
        def apply(params, z, level, condition):
            return jnp.ones_like(z) * condition.conditioning_mask.max((1, 2, 3, 4), keepdims=True)

    monkeypatch.setattr(sampling, "network_module", lambda network: Denoiser)
    denoise = sampling.stage_denoiser(STAGE, {}, conditioning, STAGE.sampling, np.zeros(1))
    np.testing.assert_allclose(denoise(normal(1, 2, 3, 4, 4, 4), jnp.zeros(2)), 1.1, atol=1e-6)


@pytest.mark.parametrize("change, message", [
    ({"sampling": Sampling(threshold=None, guidance=0.1)},
     ("Stage.sampling.guidance", "=0.1", "'prompt'", "network.text=None", "permitted: 0 ", "'frames'")),
    ({"training": Training()}, ("Stage.network.conditioning_frames", "=True", "0 training.masking")),
    ({"network": dataclasses.replace(STAGE.network, unet=dataclasses.replace(UNET, in_channels=4))},
     ("Stage.network.unet.in_channels", "=4; permitted: 5")),
])
def test_refused_stages(change, message):
    with refused(*message):
        dataclasses.replace(STAGE, **change)


LAYERS = dataclasses.replace(STAGE, network=LatentNetwork(
    unet=dataclasses.replace(UNET, in_channels=4, token_channels=6, max_relative_position=0, classes=0, temporal=True,
                             conditioning_channels=5), timesteps=BETAS, frame_conditioning="layers"))


@pytest.mark.full
@pytest.mark.parametrize("stage", [STAGE, LAYERS], ids=["in_place", "layers"])
def test_a_stage_learns_and_goes_on_with_what_is_known(stage):
    weights, params = random_params(stage.latent.autoencoder), random_params(stage.network.unet, seed=1)
    rng = np.random.default_rng(0)
    batch = {"video": rng.integers(0, 256, (4, 3, 8, 8, 3)).astype(np.uint8)}
    loss = jax.jit(jax.value_and_grad(lambda params: step.stage_loss(
        stage, params, batch, jax.random.key(0), weights)[0]))
    value, gradients = loss(params)
    told = gradients["known_0"] if stage is LAYERS else gradients["classes"]
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(told))
    keys = sampling.sample_keys(0, jnp.arange(2), 0)
    make = jax.jit(lambda pictures: sampling.sample_stage(
        stage, dataclasses.replace(stage.sampling, steps=2), params, keys, Conditioning(), None, weights,
        masked_video=masked_first_frame(pictures, 3)))
    pictures = rng.uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    videos, others = make(pictures), make(-pictures)
    np.testing.assert_allclose(videos[:, 0], pictures, atol=1e-6)
    assert np.abs(videos - others)[:, 1:].max() > 1e-3
