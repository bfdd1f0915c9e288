"""A small image model with a ControlNet of edges, for the methods that edit videos by an image model.

Its U-Net is that of Stable Diffusion in small, on the pixels of single frames of 32x32, and reads captions as vectors
made beforehand, one for each word, drawn once. U-Net and ControlNet are trained together, from the start. Edges say
where a digit is and how it is written, so that captions have to say its colour.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.control_digits.models import trained
from vdm_jax.conditions.inputs import Input
from vdm_jax.data.controlled_digits import ControlledDigits
from vdm_jax.data.embeddings import TextEmbeddings, WithEmbeddings, write_embeddings
from vdm_jax.diffusion.beta_tables import SquaredCosineBetaSchedule
from vdm_jax.diffusion.levels import UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.digits.clips import DIGIT_WORDS, PHRASES, caption_words
from vdm_jax.digits.drawing import COLOURS
from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Generator
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.networks.control_net import control_net_of
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec

WIDTH, LENGTH = 64, 8  # channels of a word's vector, words of a caption at most
UNET = LatentUNet(in_channels=3, out_channels=3, widths=(32, 64, 96), blocks=1, attention=(False, True, True),
                  heads=(4, 4, 4), only_cross_attention=(False, False, False), token_channels=WIDTH, groups=8)


def vectors(caption: str) -> Float[np.ndarray, "L C"]:
    """A vector for each word, the same in every caption."""
    words = caption_words()
    table = np.random.default_rng(0).standard_normal((len(words), WIDTH))
    return table[[words.index(word) for word in caption.split()]]


def captions() -> list[str]:
    """All captions of one digit."""
    digits, phrases = (*map(str, range(10)), *DIGIT_WORDS), itertools.chain(*PHRASES.values())
    return [f"{'an' if colour == 'orange' else 'a'} {colour} {digit} {phrase}"
            for colour, digit, phrase in itertools.product(COLOURS, digits, phrases)]


def experiment(words: Path, *, unet: LatentUNet = UNET, data: ControlledDigits | None = None, size: int = 32,
               steps: int = 1500, seed: int = 0) -> Experiment:
    """The model with its data and its training; `words` is a folder of embeddings."""
    betas = SquaredCosineBetaSchedule()
    network = LatentNetwork(
        unet=unet, timesteps=betas, text=EmbeddedText(width=WIDTH), conditions=(Input(name="control", width=3),),
        control_nets=(control_net_of(unet, hint_widths=unet.widths[:1]),))
    stage = Stage(
        name="images", video=VideoSpec(frames=1, height=size, width=size, fps=8), network=network,
        process=Process(schedule=betas, prediction="v", level_sampling=UniformTimestep()),
        training=Training(steps=steps, batch_size=16, learning_rate=1e-3, warmup_steps=100, decay=True, ema_decay=0.99,
                          text_dropout=0.1, log_every=50, checkpoint_every=min(100, steps), keep=2, sample_every=0,
                          validate_every=0),
        sampling=Sampling(sampler=DDIM(), steps=50, guidance=1.0, batch_size=8))
    data = data or ControlledDigits(size=size, objects=(1, 1), controls=("edges",), train_clips=20_000)
    return Experiment(name="image_digits", stages=(stage,), seed=seed,
                      data=WithEmbeddings(data=data, path=str(words), length=LENGTH))


def trained_model(run: Path, *, quiet: bool = False, **changes: Any) -> Generator:
    """The model of a run, which is trained unless it is there, to make videos as long as the clips of its data."""
    words = run.with_name(f"{run.name}_words")
    if not words.is_dir():
        write_embeddings(words, captions(), map(vectors, captions()), about="a random vector for each word")
    found, params = trained(experiment(words, **changes), run, None, quiet=quiet)
    stage, = found.stages
    frames, _, _ = found.data.clip_shape()
    stage = dataclasses.replace(stage, video=dataclasses.replace(stage.video, frames=frames))
    read = TextEmbeddings(words)

    def encoder(texts: Sequence[str], negative: Any, masked_video: Any) -> dict[str, np.ndarray]:
        if negative is not None:
            raise UserError(f"negative={negative!r}; permitted: None, since the model's null caption is no words",
                            "image_model.negative")
        embeddings, mask = read.batch(texts, LENGTH)
        return {"embeddings": embeddings, "text_mask": mask}

    return Generator(dataclasses.replace(found, stages=(stage,)), {stage.name: params}, encoder=encoder)
