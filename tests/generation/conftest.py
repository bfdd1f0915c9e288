"""A cascade of two tiny stages with random parameters: 2x8x8 from words, then 4x16x16 from that."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.attention.patterns import Full, Temporal
from vdm_jax.diffusion.augmentation import NoiseAugmentation
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, DDPM
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.config import CrossAttention, Level, SelfAttention, UNet, WordEncoder
from vdm_jax.networks.unet import SpaceTimeUNet
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.parameters import example_conditioning
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec

WORDS = ("a", "blue", "left", "moving", "red", "three", "two")


def base_stage() -> Stage:
    mixers = (SelfAttention(pattern=Full(), head_dim=8), CrossAttention(head_dim=8))
    network = UNet(levels=(Level(channels=16, blocks=1, kernel=1, mixers=mixers),), patch=4, embedding_channels=16,
                   text=WordEncoder(words=WORDS, length=6, width=8, layers=1, head_dim=8), scalars=("fps",))
    return Stage(name="base", video=VideoSpec(frames=2, height=8, width=8, fps=4), network=network,
                 process=Process(prediction="x"),
                 sampling=Sampling(sampler=DDPM(gamma=0.3), steps=3, guidance=1.0, batch_size=4))


def upsampling_stage() -> Stage:
    network = UNet(levels=(Level(channels=16, blocks=1, mixers=(SelfAttention(pattern=Temporal(), head_dim=8),)),),
                   patch=4, embedding_channels=16, low_resolution=True)
    return Stage(name="large", video=VideoSpec(frames=4, height=16, width=16, fps=8), network=network,
                 process=Process(prediction="x"), source=LowResolution(
                     frames=2, height=8, width=8, augmentation=NoiseAugmentation(training_logsnr=(0.0, 6.0))),
                 sampling=Sampling(sampler=DDIM(eta=0.5), steps=2, batch_size=4))


def random_params(stage: Stage, seed: int):
    """Parameters of a stage with nothing zero: kernels of unit gain, everything else of order 0.3."""
    inputs = jnp.zeros((1, *stage.video.shape)), jnp.zeros(1), example_conditioning(stage)
    shapes = jax.eval_shape(lambda: SpaceTimeUNet(stage.network).init(jax.random.key(0), *inputs))["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if name == "kernel" else 0.3
        return jnp.asarray((name == "scale") + scale * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="session")
def experiment() -> Experiment:
    data = CaptionedDigits(size=16, frames=4)
    return Experiment(name="tiny", stages=(base_stage(), upsampling_stage()), data=data, seed=5)


@pytest.fixture(scope="session")
def params(experiment):
    """Random parameters by stage name."""
    return {stage.name: random_params(stage, i) for i, stage in enumerate(experiment.stages)}
