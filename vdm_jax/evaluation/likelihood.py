"""Bits per dimension: how many bits a value of real clips takes under the density that each pixel stage gives them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from vdm_jax.conditions.conditioning import conditions_of
from vdm_jax.data.source import RandomAccessSource
from vdm_jax.diffusion.likelihood import bits_per_dim, dequantised, log_density
from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Generator
from vdm_jax.metrics.frechet import Interval
from vdm_jax.metrics.scores import Score
from vdm_jax.networks.kinds import network_module
from vdm_jax.parallel.rules import batch_parts, batch_sharding
from vdm_jax.stages.inputs import device_fields, training_inputs
from vdm_jax.stages.stage import Stage

BITS = "bits_per_dim"  # name of the metric
STEPS = 64


def measure_bits(
    generator: Generator, source: RandomAccessSource, stages: Sequence[str] = (), *, count: int, seed: int = 0,
    steps: int | None = None, progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Score]:
    """A score for each stage, on the first `count` clips of `source` in the size of the stage: a mean over clips, whole
    ones where the stage learns from parts of them.

    Each stage's density is conditional on what the stage sees: text, a label, the low-resolution video that is made of
    the clip as in training. Conditioning frames are left out.

    Args:
      stages: their names; all by default.
      seed: of dequantisation, of the signs of the estimate, and of the augmentation of low-resolution videos.
      steps: of the solver; 64 by default.

    Raises `UserError` for stages that work in latents, whose density is not one of pixels, that are not trained or are
    unknown, and for fewer clips than asked for.
    """
    if len(source) < count:
        raise UserError(f"count={count} for {len(source)} clips; permitted: up to {len(source)}", "count")
    experiment = generator.experiment
    chosen = [experiment.stage(name) for name in stages] or list(experiment.stages)
    for stage in chosen:
        if stage.latent is not None:
            raise UserError(f"{BITS} of stage {stage.name!r}, which works in latents; permitted: stages of pixels",
                            BITS)
        if stage.name not in generator.params:
            raise UserError(f"{BITS} of stage {stage.name!r}, which has no trained weights; permitted: "
                            f"{', '.join(generator.params) or 'none'}", BITS)
    whole = map(_of_whole_clips, chosen)
    return [_score(generator, stage, source, count, seed, steps or STEPS, progress) for stage in whole]


def _score(generator: Generator, stage: Stage, source: RandomAccessSource, count: int, seed: int, steps: int,
           progress: Callable[[str, int, int], None]) -> Score:
    parts = batch_parts(generator.mesh)
    size = -(-min(stage.sampling.batch_size, count) // parts) * parts
    function = jax.jit(lambda params, batch, key: _bits(stage, params, batch, key, steps))
    values: list[np.ndarray] = []
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)  # one size: the last batch repeats its last clip
        batch = jax.device_put(_batch(stage, [source[int(row)] for row in rows]), batch_sharding(generator.mesh))
        key = jax.random.fold_in(jax.random.key(seed), start)
        with jax.set_mesh(generator.mesh):
            found = function(generator.params[stage.name], batch, key)
        values.append(np.asarray(found)[: count - start])
        progress(f"{BITS} of {stage.name}", min(start + size, count), count)
    bits = np.concatenate(values).astype(np.float64)
    margin = float(1.96 * bits.std(ddof=1) / math.sqrt(len(bits))) if len(bits) > 1 else 0.0
    mean, seen = float(bits.mean()), [c.name for c in conditions_of(stage.network)
                                      if c.needed(stage.network) and c.guidance != "frames"]
    interval = Interval(low=mean - margin, high=mean + margin, level=0.95, resamples=0) if math.isfinite(mean) else None
    return Score(metric=f"{BITS} of {stage.name}", value=mean, better="lower", interval=interval, conditions={
        "clips": count, "frames": stage.video.frames, "height": stage.video.height, "width": stage.video.width,
        "density": "probability-flow ODE", "solver": "Heun", "steps": steps, "trace": "1 random sign vector",
        "dequantisation": "uniform", "values": 256, "seed": seed,
        "conditional on": ", ".join(seen) or "nothing"})


def _of_whole_clips(stage: Stage) -> Stage:
    """The stage on whole clips, to whose values noise is added here, once."""
    return dataclasses.replace(
        stage, training=dataclasses.replace(stage.training, crop=None, frames=None, dequantise=False))


def _bits(stage: Stage, params: Any, batch: dict[str, Any], key: Any, steps: int) -> jax.Array:
    """Of each clip of a batch."""
    input_key, value_key, sign_key = jax.random.split(key, 3)
    x, conditioning, _ = training_inputs(stage, batch, input_key)
    conditioning, module = conditioning.without_frames(), network_module(stage.network)
    denoise = stage.process.denoiser(lambda z, logsnr: module.apply({"params": params}, z, logsnr, conditioning))
    density = log_density(stage.process, denoise, dequantised(x, value_key), sign_key, steps=steps)
    return bits_per_dim(density, math.prod(x.shape[1:]))


def _batch(stage: Stage, clips: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Clips as the device reads them; captions as words where the stage reads words."""
    fields = device_fields(clips[0])
    batch = {name: np.stack([clip[name] for clip in clips]) for name in fields}
    text = stage.network.text
    if text is not None and text.tokenize is not None:
        batch["tokens"] = np.stack([text.tokenize(clip["caption"]) for clip in clips])
    return batch
