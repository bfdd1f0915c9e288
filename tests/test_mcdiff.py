"""MCDiff in miniature: both phases of training, and videos of a picture and strokes."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vdm_jax
from tests.refusals import refusals_of_commands, refused
from tests.tiny_systems import train
from tests.training.latents import AUTOENCODER, write_model
from vdm_jax.commands.configs import config_folder, load_config, load_module
from vdm_jax.commands.main import main
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.frame_masks import masked_first_frame
from vdm_jax.conditions.strokes import displacements
from vdm_jax.networks.flow_predictor import FlowPredictorModule, flow_loss
from vdm_jax.runs.records import read_records
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.strokes import encoded
from vdm_jax.video.writing import write_video

TINY = load_module(config_folder() / "mcdiff" / "_tiny.py")
STEPS = ((2, 0), (-2, 0), (0, 2), (0, -2))  # pixels from frame to frame
DRAWN = {"width": 16, "height": 16, "frames": 5, "strokes": [{"points": [[4, 8], [12, 8]]}]}


def moving_square(number, frames=4):
    """A bright square on grey that goes one of four ways, and its flow."""
    video, flow = np.full((frames, 16, 16, 3), 20, np.uint8), np.zeros((frames, 16, 16, 2), np.float32)
    step, corner = np.array(STEPS[number % 4]), np.array([5, 5]) - np.array(STEPS[number % 4]) * (frames - 1) // 2
    for frame in range(frames):
        x, y = corner + frame * step
        video[frame, y : y + 6, x : x + 6], flow[frame, y : y + 6, x : x + 6] = 230, step
    return video, encoded(flow, np.ones(flow.shape[:3], bool))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with videos, their flow and weights, and both trained runs."""
    home = tmp_path_factory.mktemp("mcdiff")
    write_model(home / "autoencoder.safetensors", AUTOENCODER)
    for number in range(12):
        for name, video in zip(("videos", "flow"), moving_square(number), strict=True):
            write_video(home / name / f"{number}.mp4", video, 8, lossless=True)
    Image.fromarray(moving_square(0)[0][0]).save(home / "start.png")
    (home / "strokes.json").write_text(json.dumps(DRAWN))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name, experiment in (("apart_run", TINY.apart(AUTOENCODER)),
                                 ("joined_run", TINY.joined(AUTOENCODER, "apart_run"))):
            train(experiment, home / name)
    return home


def test_both_phases_lower_both_losses_and_the_second_begins_as_the_first(home, monkeypatch):
    monkeypatch.chdir(home)
    ends = {}
    for name in ("apart_run", "joined_run"):
        records = [record for record in read_records(home / name / "base") if "loss" in record]
        noise = np.array([record["loss"] - record["auxiliary_loss"] for record in records])
        flow = np.array([record["auxiliary_loss"] for record in records])
        ends[name] = flow[:5].mean(), flow[-5:].mean(), noise[:5].mean(), noise[-5:].mean()
    (first, last, noisy, less), (begins, end, begins_noisy, _) = ends["apart_run"], ends["joined_run"]
    assert last < 0.5 * first and less < noisy
    assert begins < 0.7 * first and end < begins and begins_noisy < noisy
    before, after = (vdm_jax.load(name, jax.devices()[:1]).params["base"] for name in ("apart_run", "joined_run"))
    for name in ("completion", "unet"):
        assert any(np.abs(a - b).max() > 0 for a, b in
                   zip(*map(jax.tree.leaves, (before[name], after[name])), strict=True)), name


def test_the_flow_of_strokes_is_that_of_the_square_around_them(home, monkeypatch):
    """Of one stroke at its middle: another step than no motion, in the direction of the stroke."""
    monkeypatch.chdir(home)
    generator = vdm_jax.load("joined_run", jax.devices()[:1])
    module = FlowPredictorModule(generator.experiment.stages[0].network)
    video, pictures = moving_square(0)
    wanted = displacements(jnp.asarray(pictures))[None, :1]
    errors = []
    for step in STEPS:
        strokes = wanted.at[..., :].set(0).at[0, 0, 6:10, 3:7].set(jnp.array([*step, 2]) / 2)
        given = Conditioning().adding({"inputs": {
            "strokes": strokes, "current_frame": jnp.asarray(video[None, :1] / 127.5 - 1, jnp.float32)}})
        found = module.apply({"params": generator.params["base"]}, given, method="completed")
        errors.append(float(flow_loss(found, wanted, 0.1)[0]))
    assert errors[0] == min(errors) and errors[0] < 0.5 * float(flow_loss(0 * wanted[..., :2], wanted, 0.1)[0])


def test_a_picture_and_strokes_make_a_video_pair_by_pair(home, monkeypatch):
    monkeypatch.chdir(home)
    command = ["sample", "joined_run", "--image", "start.png", "--control", "strokes.json"]
    assert main([*command, "--frames", "5", "--out", "all.mp4"]) == 0
    frames = VideoReader("all.mp4").frames(range(5)).astype(int)
    assert frames.shape == (5, 16, 16, 3)
    assert np.abs(frames[0] - moving_square(0)[0][0]).max() < 24  # mp4
    generator, start = vdm_jax.load("joined_run", jax.devices()[:1]), moving_square(0)[0][:1]
    given = masked_first_frame(start / 127.5 - 1, 2)
    maps = {way: np.stack([np.stack([m for m in moving_square(way, 4)[1]])]) for way in (0, 1)}
    videos = {way: generator.long("", frames=4, masked_video=given, strokes=maps[way]).videos for way in maps}
    np.testing.assert_array_equal(videos[0][0, 0], start[0])
    assert np.abs(videos[0].astype(int) - videos[1]).max() > 10  # what strokes say counts
    pair = generator("", masked_video=given, strokes=maps[0][:, :2]).videos
    assert pair.shape == (1, 2, 16, 16, 3)
    np.testing.assert_array_equal(pair[0, 1], videos[0][0, 1])  # the same first pair


def test_what_is_wrong_is_said_in_a_line(home, monkeypatch, capfd):
    monkeypatch.chdir(home)
    fails = refusals_of_commands(capfd)
    command = ["sample", "joined_run", "--image", "start.png", "--frames", "5", "--out", "wrong.gif", "--control"]
    (home / "outside.json").write_text(json.dumps(DRAWN | {"strokes": [{"points": [[4, 8], [17, 8]]}]}))
    (home / "short.json").write_text(json.dumps(DRAWN | {"frames": 4}))
    for name, wanted in (("outside.json", "[17.0, 8.0] outside of the picture"), ("short.json", "at least 5")):
        said = fails(*command, name)
        assert wanted in said and name in said
    assert "from 1 frames" in fails("sample", "joined_run", "--control", "strokes.json", "--out", "wrong.gif")
    assert "strokes" in fails("sample", "joined_run", "--image", "start.png", "--out", "wrong.gif")
    assert not (home / "wrong.gif").exists()
    generator = vdm_jax.load("joined_run", jax.devices()[:1])
    given = masked_first_frame(moving_square(0)[0][:1] / 127.5 - 1, 2)
    with refused("prompts.of_frames", "of shape [1, 4, 16, 16, 3]", "5 frames"):
        generator.long("", frames=5, masked_video=given, strokes=moving_square(0)[1][None])


def test_phases_are_those_of_the_paper():
    (apart,), (joined,) = (load_config(f"mcdiff/{name}").stages for name in ("apart", "joined"))
    assert (apart.training.steps, apart.training.batch_size) == (400_000, 40) and not apart.network.joined
    assert (joined.training.steps, joined.training.batch_size) == (100_000, 20) and joined.network.joined
    assert apart.network.strokes.moving == round(0.3 * 17) and apart.network.strokes.general == 4
