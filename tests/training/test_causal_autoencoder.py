"""Causal autoencoders of one's own: trained by the same loop, and then the latents of a stage."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests.refusals import refused
from tests.training import tiny_autoencoder
from vdm_jax.commands import train_command
from vdm_jax.diffusion.process import Process
from vdm_jax.networks.autoencoders.causal_config import CausalAutoencoder
from vdm_jax.networks.config import Level, UNet
from vdm_jax.runs.autoencoders import resolved
from vdm_jax.runs.records import read_records
from vdm_jax.stages.autoencoding import AutoencoderExperiment, AutoencoderStage
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax.training.autoencoder_step import autoencoder_step
from vdm_jax.training.init_from import starting_autoencoder
from vdm_jax.training.state import initial_state

NETWORK = CausalAutoencoder(widths=(4, 4), blocks=1, halve_frames=(True,), latent_channels=2, mean=(0.0, 0.0),
                            std=(1.0, 1.0))
VIDEO = VideoSpec(frames=3, height=16, width=16)
DATA = dataclasses.replace(tiny_autoencoder.DATA, frames=3)


def stage(network=NETWORK, video=VIDEO, **training) -> AutoencoderStage:
    """The tiny stage with a causal network."""
    plain = tiny_autoencoder.stage(**training)
    return AutoencoderStage(name=plain.name, video=video, network=network, training=plain.training)


def get_config() -> AutoencoderExperiment:
    """The experiment, as a config file has it."""
    return AutoencoderExperiment(name="tiny_causal", stages=(stage(),), data=DATA)


def test_a_step_has_the_losses_of_any_autoencoder():
    """Shapes alone; the adaptive weight finds the kernel that makes the video."""
    spec = stage()
    state = jax.eval_shape(lambda key: initial_state(spec, key), jax.random.key(0))
    clips = jax.ShapeDtypeStruct((8, 3, 16, 16, 3), np.uint8)
    after, metrics = jax.eval_shape(lambda s, v: autoencoder_step(spec, s, v, None, adversarial=True), state, clips)
    assert jax.tree.structure(after) == jax.tree.structure(state) and metrics["kl"].shape == ()


@pytest.mark.parametrize("change, named", [
    (lambda: stage(video=dataclasses.replace(VIDEO, frames=4)), ("AutoencoderStage.video.frames", "=4", "1, 3, 5")),
    (lambda: stage(video=dataclasses.replace(VIDEO, height=15)), ("AutoencoderStage.video.height", "=15", "2, 4")),
    (lambda: stage(dataclasses.replace(NETWORK, channels=1)), ("AutoencoderStage.network.channels", "=1")),
])
def test_refusals(change, named):
    with refused(*named, "permitted"):
        change()


@pytest.mark.full
def test_it_learns_and_a_stage_works_in_its_latents(tmp_path):
    train_command.main([__file__, "--run", str(tmp_path / "run"), "--data-dir", str(tmp_path / "data"), "--quiet"])
    losses = [record["loss"] for record in read_records(tmp_path / "run" / "autoencoder") if "loss" in record]
    assert np.isfinite(losses).all() and np.mean(losses[-2:]) < np.mean(losses[:2])
    latent = Latent(autoencoder=NETWORK, weights=str(tmp_path / "run"))
    latents = Stage(name="base", video=VIDEO, latent=latent, process=Process(), sampling=Sampling(threshold=None),
                    network=UNet(levels=(Level(channels=8),), out_channels=2))
    found = resolved(Experiment(name="x", stages=(latents,), data=DATA)).stages[0].latent.autoencoder
    assert found.std != NETWORK.std and len(set(found.std)) == 1 and found.mean != NETWORK.mean
    file = str(tmp_path / "run" / "autoencoder" / "autoencoder.safetensors")
    plan, params = starting_autoencoder(stage(init_from=file))
    assert not plan.new and len(plan.copied) == len(jax.tree.leaves(params))
    with refused("AutoencoderStage.training.init_from", "CausalAutoencoder", "permitted: Autoencoder"):
        starting_autoencoder(tiny_autoencoder.stage(init_from=file))
