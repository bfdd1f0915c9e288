"""What weights of one stage may be the beginning of another."""

from __future__ import annotations

import dataclasses

import pytest

from tests.refusals import refused
from tests.training.latents import AUTOENCODER
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import CosineSchedule, EDMSchedule, FlowSchedule
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.config import Level, UNet
from vdm_jax.runs.directory import open_run
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import InitFrom, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax.training.init_from import starting_weights, unlike

NETWORK = UNet(levels=(Level(channels=8, blocks=1),), embedding_channels=8, groups=2)
EDM = Process(schedule=EDMSchedule(), prediction="edm", sigma_data=0.5)


def stage_of(process: Process, latent: Latent | None = None, init_from: InitFrom | None = None) -> Stage:
    network = NETWORK if latent is None else dataclasses.replace(NETWORK, out_channels=4)
    return Stage(name="base", video=VideoSpec(frames=2, height=8, width=8), network=network, process=process,
                 latent=latent, training=Training(init_from=init_from), sampling=Sampling(threshold=None))


@pytest.mark.parametrize(("ours", "theirs", "field", "values"), [
    (Process(prediction="x"), Process(prediction="v"),
     "process.prediction", ("'x'", "'v'")),
    (Process(prediction="x"), Process(prediction="x", schedule=FlowSchedule()),
     "process.schedule.family", ("'vp'", "'flow'")),
    (dataclasses.replace(EDM, sigma_data=1.0), EDM, "process.sigma_data", ("1.0", "0.5")),
])
def test_weights_of_another_meaning_are_refused_by_the_name_of_the_field(tmp_path, ours, theirs, field, values):
    data = CaptionedDigits(size=16, frames=2)
    open_run(tmp_path / "source", Experiment(name="source", stages=(stage_of(theirs),), data=data))
    stage = stage_of(ours, init_from=InitFrom(stage="base", run=str(tmp_path / "source")))
    with refused(f"Stage.{field}", f"Stage 'base': {field}={values[0]}", f"{tmp_path / 'source'}",
                 f"{field} is {values[1]}", "permitted: "):
        starting_weights(stage, tmp_path / "new")
    same = dataclasses.replace(stage, process=theirs)
    with refused("init_from.starting_weights"):  # the next question
        starting_weights(same, tmp_path / "new")


def test_latents_of_another_autoencoder_are_refused_by_the_name_of_the_field():
    latent = Latent(autoencoder=AUTOENCODER, weights="a.safetensors", sha256="0" * 64)
    stage = stage_of(Process(prediction="v"), latent)
    scaled = dataclasses.replace(AUTOENCODER, scale=2 * AUTOENCODER.scale)
    for other, name in ((dataclasses.replace(latent, sha256="1" * 64), "latent.sha256"), (None, "latent"),
                        (dataclasses.replace(latent, autoencoder=scaled), "latent.autoencoder.scale")):
        assert [field for field, *_ in unlike(stage, stage_of(Process(prediction="v"), other))] == [name]
    elsewhere = dataclasses.replace(latent, weights="b.safetensors")  # the hash says that they are the same
    assert not list(unlike(stage, stage_of(Process(prediction="v"), elsewhere)))


def test_noise_levels_and_weightings_may_differ():
    ours, theirs = Process(prediction="v"), Process(prediction="v", schedule=CosineSchedule(logsnr_min=-15.0))
    assert ours != theirs and not list(unlike(stage_of(ours), stage_of(theirs)))
    dataless = Process(prediction="v", sigma_data=2.0)  # of prediction 'edm' only
    assert not list(unlike(stage_of(ours), stage_of(dataless)))
