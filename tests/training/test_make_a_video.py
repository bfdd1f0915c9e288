"""Make-A-Video in small: image networks, video networks that begin as these, and all four stages of the cascade."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vdm_jax
from tests.refusals import refused
from vdm_jax.commands.arguments import override
from vdm_jax.commands.configs import config_folder, load_config, load_module
from vdm_jax.commands.train_command import train
from vdm_jax.conditions.frame_masks import masked_first_frame
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import CaptionedDigitsSource, caption_words
from vdm_jax.errors import UserError
from vdm_jax.generation.one_stage import sample_stage
from vdm_jax.networks.unet import SpaceTimeUNet
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.planning.flops import training_work
from vdm_jax.planning.inputs import sampling_inputs, training_batch
from vdm_jax.runs.directory import open_run
from vdm_jax.stages.options import InitFrom
from vdm_jax.stages.parameters import example_conditioning
from vdm_jax.stages.stage import Experiment
from vdm_jax.training.init_from import starting_weights
from vdm_jax.training.state import initial_state
from vdm_jax.training.step import train_step
from vdm_jax.weights.inflation import plan_inflation

STAGES = load_module(config_folder() / "make_a_video" / "_stages.py")
image_stages, tiny, video_stages = STAGES.image_stages, STAGES.tiny, STAGES.video_stages
DATA = CaptionedDigits(size=32, frames=10, train_clips=32, validation_clips=8, test_clips=8)
NAMES = ("decoder", "interpolation", "super_low", "super_high")


def images() -> Experiment:
    return Experiment(name="images", stages=image_stages(tiny()), data=DATA)


def cascade(run: str) -> Experiment:
    return Experiment(name="cascade", stages=video_stages(tiny(), run), data=DATA)


def with_words(stage):
    """The stage as its run would have it."""
    text = dataclasses.replace(stage.network.text, words=caption_words())
    return dataclasses.replace(stage, network=dataclasses.replace(stage.network, text=text))


def batches(frames):
    """Batches of clips, the captions' ids and rates, from the generator of digits."""
    source, rng = CaptionedDigitsSource(DATA, "train"), np.random.default_rng(0)
    for step in range(1000):
        clips = [source[(8 * step + i) % 32] for i in range(8)]
        video = np.stack([clip["video"][:frames] for clip in clips])
        yield {"video": jnp.asarray(video), "tokens": jnp.asarray(rng.integers(2, 20, (8, 12))),
               "frame_rate": jnp.full(8, 8.0)}


def trained(stage, state, steps):
    """The state after some steps, and the losses."""
    step, losses = jax.jit(functools.partial(train_step, stage)), []
    for _, batch in zip(range(steps), batches(stage.video.frames), strict=False):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return state, losses


def test_the_decoder_begins_as_the_image_network_and_learns():
    image, decoder = with_words(image_stages(tiny())[0]), with_words(video_stages(tiny(), "none")[0])
    state, losses = trained(image, jax.jit(lambda key: initial_state(image, key))(jax.random.key(0)), 40)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    shapes = jax.eval_shape(lambda key: initial_state(decoder, key).params, jax.random.key(0))
    inflation = plan_inflation(decoder.network, shapes, image.network, state.params)
    begun = jax.jit(lambda key, source: initial_state(decoder, key, inflation, source))(jax.random.key(1), state.params)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, *decoder.video.shape)), jnp.float32)
    level, conditioning = jnp.array([0.5, -1.0]), example_conditioning(decoder, 2)

    @functools.partial(jax.jit, static_argnums=0)
    def run(network, params, z):
        return SpaceTimeUNet(network).apply({"params": params}, z, level, conditioning)

    expected = np.concatenate([run(image.network, state.params, z[:, t : t + 1]) for t in range(4)], axis=1)
    assert np.std(expected) > 0.05
    np.testing.assert_allclose(run(decoder.network, begun.params, z), expected, atol=2e-5)
    _, further = trained(decoder, begun, 40)
    assert further[0] < 0.8 * losses[0]  # it goes on where the image network stopped
    assert np.mean(further[-5:]) < np.mean(further[:5])


def test_a_stage_begins_as_a_trained_one_of_its_own_run_or_of_another(tmp_path):
    decoder, *_ = stages = video_stages(tiny(), str(tmp_path))
    with pytest.raises(UserError,
                       match="'interpolation': training.init_from.stage='decoder' with run=None; permitted: a "):
        Experiment(name="x", stages=stages[1:2], data=DATA)
    with refused("directory.find_run"):
        starting_weights(decoder, tmp_path)
    open_run(tmp_path, images())
    with refused("init_from.starting_weights", "'image'"):
        starting_weights(decoder, tmp_path)
    other = dataclasses.replace(decoder, process=dataclasses.replace(decoder.process, prediction="eps"))
    with refused("Stage.process.prediction", "prediction='eps'", "'image'", "'v'"):
        starting_weights(other, tmp_path)


def test_programs_of_key_frames_and_drawn_rates_can_be_planned():
    interpolation = with_words(video_stages(tiny(), "none")[1])
    mesh = make_mesh(MeshSpec(data=2), jax.devices()[:2])
    batch, _ = training_batch(interpolation, DATA, 8, 4)
    assert batch["video"].shape == (8, 10, 32, 32, 3) and batch["frame_rate"].shape == (8,)
    params = jax.eval_shape(lambda key: initial_state(interpolation, key).params, jax.random.key(0))
    work = training_work(interpolation, batch, params, mesh)
    assert work.model == 3 * work.forward.model > 0
    keys, text, low, masked_video = sampling_inputs(interpolation, 8, 4, mesh)
    assert low.shape == (8, 4, 8, 8, 3) and masked_video is None
    out = jax.eval_shape(lambda params, keys, text, low: sample_stage(
        interpolation, interpolation.sampling, params, keys, text, low), params, keys, text, low)
    assert out.shape == (8, 10, 8, 8, 3)


def test_where_a_stage_begins_can_be_overridden():
    changed = override(load_config("make_a_video/cascade"), ["--decoder.training.init_from.run", "elsewhere"], "train")
    assert changed.stage("decoder").training.init_from == InitFrom(stage="image", run="elsewhere")
    assert changed.stage("interpolation").training.init_from == InitFrom(stage="decoder")  # of the same run


@pytest.mark.full
def test_all_stages_train_and_sample_and_come_back(tmp_path, monkeypatch):
    monkeypatch.setenv("VDM_JAX_DATA", str(tmp_path / "data"))
    run = tmp_path / "cascade"

    def make(experiment, folder):
        train(experiment, [stage.name for stage in experiment.stages], folder, None, quiet=True)

    make(images(), tmp_path / "images")
    make(cascade(str(tmp_path / "images")), run)
    stored = json.loads((run / "config.json").read_text())
    assert stored["stages"][0]["training"]["init_from"] == {"kind": "InitFrom", "stage": "image",
                                                            "run": str(tmp_path / "images")}
    for folder, name in ((tmp_path / "images", "image"), (run, "decoder"), (run, "interpolation")):
        losses = [row["loss"] for row in map(json.loads, (folder / name / "metrics.jsonl").open()) if "loss" in row]
        assert np.mean(losses[-8:]) < np.mean(losses[:8]), (name, losses)
    generate, captions = vdm_jax.load(run), ["a red 3 moving left", "a blue 7 bouncing"]
    out = generate(captions, fps=2.0)
    assert [out.stages[name].shape[1:4] for name in NAMES] == [(4, 8, 8), (10, 8, 8), (10, 16, 16), (10, 32, 32)]
    np.testing.assert_array_equal(out.stages["interpolation"][:, ::3], out.stages["decoder"])
    assert out.fps["super_high"] == 6.0
    again = vdm_jax.load(run)(captions, fps=2.0)
    np.testing.assert_array_equal(again.videos, out.videos)
    picture = masked_first_frame(jnp.full((2, 8, 8, 3), 0.5), 10)
    animated = generate(captions, first="interpolation", last="super_low", masked_video=picture)
    assert np.abs(animated.stages["interpolation"][:, 0].astype(int) - 191).max() <= 1
