"""A classifier on the features of a critic, which tells noisy clips from noisy videos of a student (DMD2: Yin et al.
2024, arXiv 2405.14867, section 4.3)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vdm_jax.diffusion.arrays import Level, Video
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.unet import FEATURES
from vdm_jax.stages.stage import Stage
from vdm_jax.training.draws import Drawn, loss_mask

CLASSIFIER = "classifier"  # among the critic's parameters


class Classifier(nn.Module):
    """Features of the middle of a U-Net to a score per video, high for clips: two layers at every place, whose scores
    are averaged; float32. The published head has strided convolutions, whose sizes are for images of one size."""

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, " B"]:
        x = x.astype(jnp.float32)
        x = nn.Dense(x.shape[-1], name="hidden")(nn.LayerNorm(name="norm")(x))
        return nn.Dense(1, name="out")(jax.nn.silu(x)).mean((1, 2, 3, 4))


def with_classifier(stage: Stage, critic: Any, key: PRNGKeyArray) -> Any:
    """Parameters of a critic, and new ones of a classifier where the stage is distilled with one."""
    if not getattr(stage.training.distillation, "adversarial", 0):
        return critic
    features = jnp.zeros((1, 1, 1, 1, stage.network.levels[-1].channels))
    return {**critic, CLASSIFIER: Classifier().init(key, features)["params"]}


def student_loss(stage: Stage, critic: Any, drawn: Drawn, x: Video, key: PRNGKeyArray) -> Float[Array, ""]:
    """Falls as the student's videos x look more like clips."""
    return jax.nn.softplus(-scores(stage, critic, drawn, _counted(stage, drawn, x), key)).mean()


def classifier_loss(stage: Stage, critic: Any, drawn: Drawn, x: Video, key: PRNGKeyArray) -> Float[Array, ""]:
    """Falls as clips and the student's videos x are distinguished; 2 log 2 where they are not."""
    videos = drawn.x, _counted(stage, drawn, x)
    real, fake = (scores(stage, critic, drawn, of, at) for of, at in zip(videos, jax.random.split(key), strict=True))
    return jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()


def _counted(stage: Stage, drawn: Drawn, x: Video) -> Video:
    """The student's videos with the clip's own values where no loss counts, so that padding or given frames say
    nothing."""
    mask = loss_mask(stage, drawn.conditioning)
    return x if mask is None else jnp.where(mask > 0, x, drawn.x)


def scores(stage: Stage, critic: Any, drawn: Drawn, x: Video, key: PRNGKeyArray) -> Float[Array, " B"]:
    """How much videos look like clips to the critic, with noise on them of a level in `times`."""
    process, (earliest, latest) = stage.process, stage.training.distillation.times
    level_key, noise_key = jax.random.split(key)
    level = process.schedule.logsnr(jax.random.uniform(level_key, x.shape[:1], minval=earliest, maxval=latest))
    z = process.diffuse(x, jax.random.normal(noise_key, x.shape), level)
    return Classifier().apply({"params": critic[CLASSIFIER]}, middle(stage, critic, drawn, z, level))


def middle(stage: Stage, params: Any, drawn: Drawn, z: Video, level: Level) -> Float[Array, "B T H W C"]:
    """Features of the middle of a network."""
    kept = network_module(stage.network).apply(
        {"params": params}, stage.process.network_input(z, level), level, drawn.conditioning, images=drawn.images,
        mutable=[FEATURES])[1]
    return kept[FEATURES]["middle"][0]
