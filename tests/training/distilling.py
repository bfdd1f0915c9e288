"""Small stages that are distilled, and their parameters."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from vdm_jax.attention import BlockCausal
from vdm_jax.diffusion.consistency import Boundary
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, Consistency
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import caption_words
from vdm_jax.networks.config import Level, UNet, WordEncoder
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.stages.distillation import (
    ConsistencyDistillation,
    DistributionMatching,
    ProgressiveDistillation,
    SelfForcing,
    Teacher,
)
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.parameters import initial_params
from vdm_jax.stages.stage import Stage, VideoSpec
from vdm_jax.training.state import initial_state

NETWORK = UNet(levels=(Level(channels=8, blocks=1),), patch=4, embedding_channels=16, groups=2,
               text=WordEncoder(words=caption_words(), length=8, width=8, layers=1, head_dim=4))
SILENT = dataclasses.replace(NETWORK, text=None)  # which compiles in half the time
CAUSAL = VideoTransformer(out_channels=3, patch=(1, 8, 8), width=12, heads=2, hidden=8, layers=1, level_channels=8,
                          patterns=(BlockCausal(block=1),), teacher_forcing=True)
DATA = CaptionedDigits(size=16, frames=2, train_clips=16, validation_clips=8, test_clips=1, objects=(1, 1))
TEACHER = Teacher(run="teacher", stage="base")
PROGRESSIVE = ProgressiveDistillation(teacher=TEACHER, start=4, steps=1, updates=2, guidance=(0.0, 2.0))
CONSISTENCY = ConsistencyDistillation(teacher=TEACHER, intervals=4, target_decay=0.5)
MATCHING = DistributionMatching(teacher=TEACHER, steps=2, critic_updates=2, critic_rate=0.5)
JUDGED = dataclasses.replace(MATCHING, adversarial=0.5, classifier=0.25)
FORCING = SelfForcing(teacher=TEACHER, steps=2, critic_updates=2, scores="causal")
MESH = make_mesh(MeshSpec(data=1), jax.devices()[:1])
FREE = Sampling(sampler=Consistency(), consistency=Boundary(), steps=2)
RENOISED = Sampling(sampler=Consistency(), steps=2)


def stage_of(distillation=None, *, network=NETWORK, sampling=None, **training) -> Stage:
    if isinstance(distillation, ProgressiveDistillation):
        training = {"steps": len(distillation.rounds) * distillation.updates, "warmup_steps": 0, "ema_decay": 0.0,
                    **training}
        sampling = sampling or Sampling(sampler=DDIM(), steps=distillation.steps)
    if isinstance(distillation, DistributionMatching):
        sampling = sampling or RENOISED
    if isinstance(distillation, SelfForcing):
        sampling = sampling or dataclasses.replace(RENOISED, by_blocks=True)
    guided = distillation is not None and distillation.guidance is not None
    if guided and distillation.guidance[0] < distillation.guidance[1] and network is NETWORK:
        network = dataclasses.replace(NETWORK, scalars=("guidance",))
    settings = {"batch_size": 8, "learning_rate": 3e-3, "sample_every": 0, "validate_every": 0, "log_every": 1,
                "text_dropout": 0.0 if guided else 0.1, "distillation": distillation, **training}
    return Stage(name="base", video=VideoSpec(frames=2, height=16, width=16), network=network,
                 process=Process(frame_levels=network is CAUSAL), training=Training(**settings),
                 sampling=sampling or (FREE if distillation else Sampling(steps=2)))


def initial(stage):
    return jax.jit(lambda key: initial_state(stage, key))(jax.random.key(0))


def random_params(stage, seed=0):
    """Parameters of which none is zero, on the host."""
    shapes = jax.eval_shape(lambda key: initial_params(stage, key), jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes)
