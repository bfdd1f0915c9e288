"""Sampling one stage: keys per video, guidance and thresholds composed as told, and a video of its own key only."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conditions.texts import text_conditioning
from tests.refusals import refused
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.low_resolution import low_resolution
from vdm_jax.diffusion.sampling import sample
from vdm_jax.generation.one_stage import sample_keys, sample_stage, stage_denoiser
from vdm_jax.generation.overrides import with_guide, with_overrides
from vdm_jax.networks.unet import SpaceTimeUNet
from vdm_jax.stages.options import DynamicThreshold, Oscillation, Sampling, StaticThreshold

TOKENS = jnp.array([[[2, 6, 5, 4, 0, 0]], [[3, 8, 0, 0, 0, 0]], [[2, 3, 7, 5, 0, 0]], [[6, 0, 0, 0, 0, 0]]])


def data_of(keys):
    return [tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys]


def test_keys_depend_on_seed_index_and_stage_alone():
    keys = {(seed, index, stage): data_of(sample_keys(seed, jnp.array([index]), stage))[0]
            for seed in range(3) for index in range(4) for stage in range(3)}
    assert len(set(keys.values())) == len(keys)
    assert data_of(sample_keys(1, jnp.array([3, 0, 2]), 2)) == [keys[1, 3, 2], keys[1, 0, 2], keys[1, 2, 2]]


def test_overrides_change_what_is_given():
    sampling = Sampling(steps=7, guidance=1.5)
    assert with_overrides(sampling) == sampling
    assert with_overrides(sampling, steps=3) == dataclasses.replace(sampling, steps=3)
    assert with_overrides(sampling, guidance=0.0).guidance == 0.0
    with refused("Sampling.steps", "=0"):
        with_overrides(sampling, steps=0)


def test_a_weight_of_the_guidance_is_that_of_both_experts():
    """Unless one for much noise is given; without guidance there is neither, nor next to names."""
    experts = Sampling(guidance=2.0, high_noise_guidance=3.0)
    assert with_overrides(experts, steps=3).high_noise_guidance == 3.0
    for weight in (0.0, 6.0):
        assert with_overrides(experts, guidance=weight) == Sampling(guidance=weight)
    assert with_overrides(experts, guidance=6.0, high_noise_guidance=1.0).high_noise_guidance == 1.0
    assert with_guide(experts, {"text": 2.0}).high_noise_guidance is None


LEVELS = np.array([-6.0, -3.0, -1.0, 2.0])  # of a sampler; the estimates below are made at the third


@pytest.fixture(scope="module")
def estimates(experiment, params):
    """A noisy input, its estimates with the caption and with the null caption (before any threshold), and a function
    from sampling settings to the estimate of the composed denoiser."""
    stage = experiment.stage("base")
    z = 3 * jnp.asarray(np.random.default_rng(0).normal(size=(4, *stage.video.shape)), jnp.float32)
    level = jnp.full(4, -1.0)
    text = text_conditioning(TOKENS).replace(scalars={"fps": jnp.full(4, stage.video.fps)})
    module = SpaceTimeUNet(stage.network)

    @jax.jit
    def estimate(conditioning):  # prediction 'x': the network's output is the estimate
        return module.apply({"params": params["base"]}, z, level, conditioning)

    def composed(**sampling):
        spec = dataclasses.replace(stage.sampling, **sampling)
        return jax.jit(lambda z: stage_denoiser(stage, params["base"], text, spec, LEVELS)(z, level))(z)

    return estimate(text), estimate(text.without_text()), composed


def test_guidance_is_away_from_the_null_caption(estimates):
    conditional, null, composed = estimates
    assert np.abs(conditional - null).max() > 0.1
    np.testing.assert_allclose(composed(guidance=0.0, threshold=None), conditional, atol=1e-5)
    np.testing.assert_allclose(composed(guidance=2.0, threshold=None), 3 * conditional - 2 * null, atol=1e-4)


def test_guidance_oscillates_from_step_to_step(estimates):
    """High, then low at every second step; the level of the estimate belongs to step 2 of `LEVELS`."""
    conditional, null, composed = estimates
    for constant_steps, weight in ((0, 0.5), (1, 2.0), (2, 0.5), (3, 2.0)):
        swing = Oscillation(low=0.5, constant_steps=constant_steps)
        out = composed(guidance=2.0, oscillation=swing, threshold=None)
        np.testing.assert_allclose(out, (1 + weight) * conditional - weight * null, atol=1e-4)
    with refused("Oscillation.constant_steps", "=-1", ">= 0"):
        Oscillation(constant_steps=-1)


def test_thresholds_see_the_guided_estimate(estimates):
    conditional, null, composed = estimates
    guided = np.asarray(3 * conditional - 2 * null)
    assert np.abs(guided).max() > 1.2
    np.testing.assert_allclose(composed(guidance=2.0, threshold=StaticThreshold()), guided.clip(-1, 1), atol=1e-4)
    for per, axes in (("clip", (1, 2, 3, 4)), ("frame", (2, 3, 4))):
        limit = np.maximum(np.percentile(np.abs(guided), 90, axis=axes, keepdims=True), 1)
        out = composed(guidance=2.0, threshold=DynamicThreshold(percentile=90, per=per))
        np.testing.assert_allclose(out, guided.clip(-limit, limit) / limit, atol=1e-4)


@pytest.fixture(scope="module")
def sampled(experiment, params):
    """(rows, stage name) -> videos of those of the four captions, low-resolution ones given."""
    low = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (4, *experiment.stage("base").video.shape)), jnp.float32)

    def sample(name, rows, low=low, seed=0):
        stage, rows = experiment.stage(name), np.asarray(rows)
        keys = sample_keys(seed, jnp.asarray(rows), experiment.stages.index(stage))
        run = jax.jit(lambda keys, text, low: sample_stage(stage, stage.sampling, params[name], keys, text, low))
        return np.asarray(run(keys, text_conditioning(TOKENS[rows]), None if stage.source is None else low[rows]))

    return sample


@pytest.mark.parametrize("name", ["base", "large"])
def test_a_video_depends_on_its_own_key_and_caption_only(sampled, name):
    everything = sampled(name, [0, 1, 2, 3])
    np.testing.assert_allclose(sampled(name, [2, 0]), everything[[2, 0]], atol=1e-4)
    assert np.abs(everything[0] - everything[1]).max() > 0.1
    assert np.abs(sampled(name, [2, 0], seed=1) - everything[[2, 0]]).max() > 0.1
    assert -1 <= everything.min() and everything.max() <= 1


def test_a_stage_with_a_source_sees_the_video_before(sampled):
    low = jnp.zeros((4, 2, 8, 8, 3))
    before = sampled("large", [0, 1], low)
    after = sampled("large", [0, 1], low.at[1].set(0.9))
    np.testing.assert_allclose(after[0], before[0], atol=1e-5)
    assert np.abs(after[1] - before[1]).max() > 0.02


def test_sampling_conditions_as_training_did(experiment, params):
    """The network is told the enlarged video with noise of the sampling level, and that level."""
    stage = experiment.stage("large")
    sampling = dataclasses.replace(stage.sampling, steps=1, threshold=None)
    low, keys = jnp.full((2, 2, 8, 8, 3), 0.3), sample_keys(0, jnp.arange(2), 1)
    level = jnp.full(2, stage.source.augmentation.sampling_logsnr)
    conditioning = Conditioning(**low_resolution(low, stage, keys, level))

    def network(z, logsnr):
        return SpaceTimeUNet(stage.network).apply({"params": params["large"]}, z, logsnr, conditioning)

    expected = jax.jit(lambda keys: sample(
        sampling.sampler, stage.process.denoiser(network), keys, (2, *stage.video.shape), stage.process, 1))
    out = jax.jit(lambda keys: sample_stage(stage, sampling, params["large"], keys, Conditioning(), low))(keys)
    np.testing.assert_allclose(out, jnp.clip(expected(keys), -1, 1), atol=1e-5)
