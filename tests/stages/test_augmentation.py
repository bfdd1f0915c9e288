"""The three conditioning augmentations in a cascade: what is corrupted, where, and when sampling does it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conditions.texts import text_conditioning
from tests.refusals import refused
from vdm_jax.conditions.low_resolution import enlarge
from vdm_jax.configuration import from_json, to_json
from vdm_jax.diffusion.augmentation import BlurAugmentation, NoiseAugmentation, TruncatedConditioningAugmentation
from vdm_jax.diffusion.schedules import FlowSchedule
from vdm_jax.errors import UserError
from vdm_jax.generation import generator as generator_module
from vdm_jax.generation.compiled import truncation
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.one_stage import sample_keys, sample_stage
from vdm_jax.stages.inputs import target_video, training_inputs

LEVEL = -0.5  # between the second and third level of the base's sampler


def augmented(experiment, augmentation):
    """The tiny cascade with another augmentation of its second stage."""
    base, large = experiment.stages
    source = dataclasses.replace(large.source, augmentation=augmentation)
    return dataclasses.replace(experiment, stages=(base, dataclasses.replace(large, source=source)))


@pytest.fixture(scope="module")
def clips():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 4, 16, 16, 3)), jnp.uint8)


def low_of(stage, clips):
    return stage.source.degrade(target_video(clips, stage.video))


@pytest.mark.parametrize("augmentation", [
    BlurAugmentation(probability=0.25, at="enlarged"), TruncatedConditioningAugmentation(training_logsnr=(0.0, 2.0)),
    NoiseAugmentation(at="low")])
def test_augmentations_are_data(experiment, augmentation):
    config = augmented(experiment, augmentation)
    assert from_json(type(config), to_json(config)) == config


def test_blur_is_for_training_and_tells_the_clean_level(experiment, params, clips):
    stage = augmented(experiment, BlurAugmentation(probability=1.0, sigma=(0.5, 0.5))).stage("large")
    _, conditioning, _ = training_inputs(stage, {"video": clips}, jax.random.key(0))
    sharp = enlarge(low_of(stage, clips), stage.source, stage.video)
    assert np.abs(conditioning.low_resolution - sharp).max() > 0.05
    np.testing.assert_array_equal(conditioning.augmentation, np.full(8, 20.0))
    keys, low = sample_keys(0, jnp.arange(2), 1), low_of(stage, clips)[:2]
    clean = augmented(experiment, NoiseAugmentation(sampling_logsnr=60.0)).stage("large")  # encoded like 20
    blur, none = (jax.jit(lambda keys, low, s=s: sample_stage(s, s.sampling, params["large"], keys,
                                                              text_conditioning(jnp.zeros((2, 1, 6), int)), low))(
        keys, low) for s in (stage, clean))
    np.testing.assert_allclose(blur, none, atol=1e-4)


def test_noise_on_the_low_resolution_video_is_enlarged_with_it(experiment, clips):
    for augmentation in (NoiseAugmentation(at="low", training_logsnr=(0.0, 0.0)),
                         TruncatedConditioningAugmentation(training_logsnr=(0.0, 0.0))):
        stage = augmented(experiment, augmentation).stage("large")
        _, conditioning, _ = training_inputs(stage, {"video": clips}, jax.random.key(0))
        noise = stage.source.degrade(conditioning.low_resolution)  # frames and pixels of the low resolution
        repeated = conditioning.low_resolution[:, 1::2]
        np.testing.assert_array_equal(repeated, conditioning.low_resolution[:, ::2])  # held frames, noise and all
        assert np.abs(noise).max() > 1.2


@pytest.fixture(scope="class")
def pair(experiment, params):
    """Cascades that differ in one thing: whether the base is cut off at `LEVEL` or finished and taken there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator_module, "to_uint8", np.asarray)
        cut, finished = (Generator(augmented(experiment, kind), params, jax.devices()[:1]) for kind in (
            TruncatedConditioningAugmentation(sampling_logsnr=LEVEL),
            NoiseAugmentation(sampling_logsnr=LEVEL, at="low")))
        captions = ["a red three", "two blue"]
        yield cut(captions, seed=1), finished(captions, seed=1), cut(captions, seed=1, last="base")


class TestTruncated:
    def test_what_each_stage_is_told(self, experiment):
        stages = augmented(experiment, TruncatedConditioningAugmentation(sampling_logsnr=LEVEL)).stages
        assert truncation(stages, 0) == (LEVEL, False) and truncation(stages, 1) == (None, True)
        assert truncation(experiment.stages, 0) == truncation(stages[:1], 0) == (None, False)

    def test_the_base_hands_over_what_it_has_at_the_level(self, pair):
        """z_s has the variance of its noise and no less; a base that is the last stage is finished."""
        cut, finished, alone = pair
        sigma = np.sqrt(1 / (1 + np.exp(LEVEL)))
        assert np.abs(cut.stages["base"]).max() > 1.5 and cut.stages["base"].std() > 0.9 * sigma
        np.testing.assert_allclose(alone.stages["base"], finished.stages["base"], atol=1e-5)
        assert np.abs(finished.stages["base"]).max() <= 1

    def test_the_next_stage_takes_it_as_it_is(self, pair, experiment, params):
        cut, _, _ = pair
        stage = augmented(experiment, TruncatedConditioningAugmentation(sampling_logsnr=LEVEL)).stage("large")
        keys = sample_keys(1, jnp.arange(2), 1)
        text, low = text_conditioning(jnp.zeros((2, 1, 6), int)), jnp.asarray(cut.stages["base"])
        run = jax.jit(lambda keys, low, truncated: sample_stage(
            stage, stage.sampling, params["large"], keys, text, low, truncated=truncated), static_argnums=2)
        np.testing.assert_allclose(cut.stages["large"], run(keys, low, True), atol=1e-4)
        assert np.abs(cut.stages["large"] - run(keys, low, False)).max() > 0.01  # a finished video gets its noise

    def test_a_base_without_its_noise_is_refused(self, experiment):
        base = experiment.stages[0]
        process = dataclasses.replace(base.process, schedule=FlowSchedule())
        flow = dataclasses.replace(experiment, stages=(dataclasses.replace(base, process=process),
                                                       experiment.stages[1]))
        with pytest.raises(UserError,
                           match="Stage 'large': TruncatedConditioningAugmentation, .* family 'flow'; permitted: 'vp'"):
            augmented(flow, TruncatedConditioningAugmentation())


def test_a_level_is_chosen_after_training(experiment, params):
    one = Generator(experiment, params, jax.devices()[:1])
    other = one.with_augmentation_level(-1.0)
    assert other.experiment.stage("large").source.augmentation.sampling_logsnr == -1.0
    assert other.params is one.params and one.experiment == experiment
    a, b = (g(["a red three"], seed=0) for g in (one, other))
    np.testing.assert_array_equal(a.stages["base"], b.stages["base"])
    assert (a.videos != b.videos).any()
    blurred = Generator(augmented(experiment, BlurAugmentation()), params, jax.devices()[:1])
    with refused("generator.Generator.with_augmentation_level", "'tiny'"):
        blurred.with_augmentation_level(0.0)
