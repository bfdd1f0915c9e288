"""A video transformer on digits: it learns by the training loop, is saved, and samples from what was saved."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests.parallel.test_equality import random_params
from tests.training.test_loop import Recorder
from vdm_jax.attention.positions import RotaryAxes
from vdm_jax.commands.configs import load_config
from vdm_jax.diffusion.levels import LogitNormalTime
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import FlowSchedule
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import caption_words
from vdm_jax.generation.generator import Generator
from vdm_jax.networks.config import WordEncoder
from vdm_jax.networks.lora import LoRA, with_adapters
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.planning.flops import training_work
from vdm_jax.planning.inputs import training_batch
from vdm_jax.runs.directory import export, load, load_adapter, load_stage, open_run
from vdm_jax.runs.records import read_records
from vdm_jax.stages.options import InitFrom, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax.training.loop import Trainer
from vdm_jax.training.state import abstract_state

DATA = CaptionedDigits(size=16, frames=4, train_clips=64, validation_clips=16, test_clips=1, objects=(1, 1))


def experiment() -> Experiment:
    network = VideoTransformer(
        out_channels=3, patch=(2, 4, 4), width=32, heads=2, hidden=64, layers=2, level_channels=16, qk_norm="heads",
        rotary=RotaryAxes(dims=(4, 6, 6)), text=WordEncoder(words=caption_words(), length=8, width=16, layers=1))
    stage = Stage(
        name="base", video=VideoSpec(frames=4, height=16, width=16), network=network,
        process=Process(schedule=FlowSchedule(shift=3.0), prediction="x", level_sampling=LogitNormalTime()),
        training=Training(steps=24, batch_size=16, learning_rate=5e-3, warmup_steps=5, ema_decay=0.9, log_every=1,
                          checkpoint_every=24, sample_every=0, validate_every=0),
        sampling=Sampling(steps=2, guidance=1.0))
    return Experiment(name="tiny", stages=(stage,), data=DATA)


@pytest.mark.full
def test_it_learns_is_saved_and_samples(tmp_path):
    made = open_run(tmp_path / "run", experiment())
    Trainer(made, made.stages[0], tmp_path / "run", Recorder(), tmp_path / "data").train()
    loss = [r["loss"] for r in read_records(tmp_path / "run" / "base") if "loss" in r]
    assert len(loss) == 24 and np.mean(loss[-6:]) < 0.8 * np.mean(loss[:4])
    generator = load(tmp_path / "run", devices=jax.devices()[:1])
    videos = generator(["a red 3 moves right"], seed=1).videos
    assert videos.shape == (1, 4, 16, 16, 3) and videos.mean() < 40  # noise is at 127, black at 0


@pytest.mark.full
def test_a_lora_of_it_learns_and_the_network_stays(tmp_path):
    """Factors of all layers of the scan; what is sampled has them merged."""
    base = experiment()
    params = random_params(base.stages[0], 1)
    export(Generator(base, {"base": params}, jax.devices()[:1]), tmp_path / "base")
    training = dataclasses.replace(
        base.stages[0].training, steps=12, checkpoint_every=12, learning_rate=3e-2, warmup_steps=1,
        lora=(LoRA(rank=2, patterns=("self_attention", "feed_forward")),), init_from=InitFrom(
            stage="base", run=str(tmp_path / "base")))
    made = dataclasses.replace(base, name="lora", stages=(dataclasses.replace(base.stages[0], training=training),))
    made = open_run(tmp_path / "run", made)
    Trainer(made, made.stages[0], tmp_path / "run", Recorder(), tmp_path / "data").train()
    loss = [r["loss"] for r in read_records(tmp_path / "run" / "base") if "loss" in r]
    assert np.mean(loss[-3:]) < 0.9 * np.mean(loss[:2])
    adapter = load_adapter(tmp_path / "run", made.stages[0])
    down, up = adapter.pairs["blocks/block_0/self_attention/query"]
    assert down.shape == (2, 32, 2) and up.shape == (2, 2, 32) and np.abs(up).max((1, 2)).min() > 1e-4  # of each layer
    learned = load_stage(tmp_path / "run", made.stages[0])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(learned), with_adapters(params, [(adapter, 1.0)]))


def test_the_shipped_config_is_counted_with_all_of_its_blocks():
    """Its FLOPs: 6 blocks of 64 tokens, whose attention is to 64 tokens and 16 of text."""
    stage = load_config("dit_digits").stages[0]
    stage = dataclasses.replace(stage, network=dataclasses.replace(
        stage.network, text=dataclasses.replace(stage.network.text, words=("a",))))
    mesh = make_mesh(MeshSpec(), jax.devices()[:1])
    batch, _ = training_batch(stage, CaptionedDigits(), 2, 16, mesh)
    forward = training_work(stage, batch, abstract_state(stage, mesh).params, mesh).forward
    tokens, width = 64, 192
    attention = 2 * 6 * 4 * tokens * (tokens + 16) * width
    assert forward.attention >= attention and forward.attention < 1.1 * attention
    products = 2 * 6 * 2 * tokens * (4 * width**2 + 2 * width**2 + 2 * width * 768)
    assert products < forward.dense < 1.2 * products
