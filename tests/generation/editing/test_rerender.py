"""Rerender-A-Video with a tiny released model: key frames against the loop written out in NumPy, what its pieces
leave alone, clips that go on from one another, and the command."""

from __future__ import annotations

import dataclasses
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.editing.given import write_square
from tests.pipelines.folders import write_control, write_motion, write_pictures
from tests.refusals import refusals_of_commands, refused
from vdm_jax.commands.main import main
from vdm_jax.errors import UserError
from vdm_jax.generation.editing import rerender, rerender_clips
from vdm_jax.generation.editing.control_video import ControlVideo
from vdm_jax.generation.editing.edit import _prepared, edit
from vdm_jax.generation.editing.files import KeyCut, VideoJob, edit_video
from vdm_jax.generation.editing.one_stage import edit_parts, edit_sampling
from vdm_jax.generation.editing.rerender import Rerender
from vdm_jax.generation.editing.rerender_keys import tapped
from vdm_jax.generation.editing.sdedit import SDEdit
from vdm_jax.generation.jobs import Jobs
from vdm_jax.generation.overrides import with_overrides
from vdm_jax.generation.prompts import requested_conditioning
from vdm_jax.generation.released.models import load_released, with_size
from vdm_jax.metrics.flow import flow, visible
from vdm_jax.stages.latent import decode, encode
from vdm_jax.video.arrays import to_float, to_uint8
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_video

SHORT = {"steps": 10, "guidance": 1.0, "seed": 4}
CLOSE = 1e-5  # in [-1, 1]
OFF = {"cross_frame": False, "shape": (), "pixel": (), "colour": ()}


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """With self-attention that counts: its random weights, eight times as large, and what transformers on the way up
    add, ten times."""
    found = load_released(write_control(tmp_path_factory.mktemp("rerender") / "folder"), jax.devices()[:1])

    def larger(path, x):
        name = jax.tree_util.keystr(path)
        counts = "norm_attention" in name or ("self_attention" in name and "kernel" in name)
        added = "['up_" in name and "_transformer']['out']['kernel']" in name
        return x if "control_net" in name else 8 * x if counts else 10 * x if added else x

    found = found.of(found.experiment, jax.tree_util.tree_map_with_path(larger, found.params))
    return with_size(found, 1, 32, 48)


@pytest.fixture(scope="module")
def clip():
    """A picture that moves by a pixel a frame, behind a square that stands."""
    rng = np.random.default_rng(0)
    picture = rng.normal(size=(8, 20, 3)).cumsum(0).cumsum(1)
    picture = np.uint8(255 * (picture - picture.min()) / np.ptp(picture)).repeat(4, 0).repeat(4, 1)
    video = np.stack([picture[:, i:i + 48] for i in range(7)])[None]
    video[:, :, 8:16, 20:28] = 255
    return video


def made(generator, video, method, maps=None, **options):
    return edit(generator, video, "a three", method=method, control=video if maps is None else maps,
                **(SHORT | options))


@pytest.fixture(scope="module")
def three(generator, clip):
    """Key frames 0, 3 and 6 and those between."""
    return made(generator, clip, Rerender(interval=3))


class Oracle:
    """The method written out, with the network alone of the package."""

    def __init__(self, generator, video, steps, without=None):
        self.without = without
        self.method = Rerender(interval=1)
        self.stage, = generator.stages()
        self.stage = self.method.stage(self.stage)
        self.weights, self.video, self.count = generator.autoencoders[self.stage.name], video, steps
        self.generator = generator
        self.keys = Jobs(SHORT["seed"], np.arange(1)).keys(np.arange(1), 0)
        sampling = with_overrides(self.stage.sampling, steps=steps, guidance=1.0)
        how = edit_sampling(self.stage, sampling, self.method, 0.0)

        @jax.jit
        def network(text, z, level, given):
            parts = edit_parts(self.stage, how, generator.params[self.stage.name], self.keys, (text, text), None,
                               self.weights)
            return tapped(parts.target, z, jnp.full(1, level), given)

        self.network = network
        parts = edit_parts(self.stage, how, generator.params[self.stage.name], self.keys, (self.text(0),) * 2, None,
                           self.weights)
        self.steps = jax.tree.map(np.asarray, parts.steps._replace(count=None))
        self.store = []  # of each key frame: estimates, tokens, given frame, result
        self.encode = jax.jit(lambda x: encode(self.stage.latent, self.weights, x))
        self.decode = jax.jit(lambda z: decode(self.stage.latent, self.weights, z))

    def text(self, frame):
        given = {"control": self.video[:, frame:frame + 1]}
        return requested_conditioning(self.stage, self.generator.request("a three", given, (self.stage,)))

    def noise(self, stream):
        key = jax.random.fold_in(self.keys[0], stream)
        return np.asarray(jax.random.normal(key, self.stage.shape[:1] + self.stage.shape[1:]))[0]

    def frame(self, number):
        """The key frame of a frame."""
        source = self.video[0, number]
        z = self.noise(0)
        if not self.store:
            result, *kept = self.sampled(number, z, None, None)
        else:
            flows = [(flow(source, other[2]), flow(other[2], source)) for other in (self.store[0], self.store[-1])]
            hidden = [~visible(*pair) for pair in flows]
            rough, *_ = self.sampled(number, z, (flows[0][0], self.soft(hidden[0])), None)
            blend = rough
            for other, pair, mask in ((self.store[-1], flows[1], hidden[1]), (self.store[0], flows[0], hidden[0])):
                soft = self.soft(mask)[..., None]
                blend = (1 - soft) * self.warped(other[3], pair[0]) + soft * blend
            weight = 0.5 * self.least(1 - self.soft(hidden[0] & hidden[1]))
            target = self.faithful(blend.astype(np.float32))
            pixels = None if self.without == "pixels" else (target, weight)
            result, *kept = self.sampled(number, z, (flows[0][0], self.soft(hidden[0])), pixels)
        self.store.append((*kept, source, result))
        return result

    def sampled(self, number, z, shape, pixels):
        estimates, tokens, direction = [], [], np.zeros_like(z)
        for n in range(self.count):
            alpha, alpha_next = (1 / np.sqrt(1 + np.exp(-a[n])) for a in (self.steps.level, self.steps.next))
            sigma, sigma_next = (np.sqrt(1 - a**2) for a in (alpha, alpha_next))
            if pixels is not None and 0.5 * self.count < n < 0.8 * self.count:
                target, w = pixels
                kept = np.maximum(1 - w, 0.9 * np.sqrt(1 - w**2))
                z = w * (alpha * target + sigma * self.noise(n + 1)) + (1 - w) * (z - direction) + kept * direction
            given = None
            if self.store and self.without != "tokens":
                given = {name: jnp.concatenate([self.store[0][1][n][name], self.store[-1][1][n][name]], axis=1)
                         for name in self.store[0][1][n]}
            x, found = self.network(self.text(number), z[None, None], self.steps.level[n], given)
            x = np.asarray(x)[0, 0]
            eps = (z - alpha * x) / sigma
            estimates.append(x)
            tokens.append(found)
            if self.store and n >= 0.8 * self.count and self.without != "colour":
                first = self.store[0][0][n]
                x = (x - x.mean((0, 1))) / x.std((0, 1)) * first.std((0, 1)) + first.mean((0, 1))
            if self.store and n <= 0.1 * self.count and self.without != "shape":
                x = self.shaped(x, self.store[0][0][n], *shape)
            direction = sigma_next * eps
            z = x if self.steps.last[n] else alpha_next * x + direction
        return np.asarray(self.decode(z[None, None].astype(np.float32)))[0, 0], estimates, tokens

    def shaped(self, x, first, along, soft):
        mask, result = self.least(1 - soft), np.zeros_like(x)
        for row in range(x.shape[0]):
            for column in range(x.shape[1]):
                dx, dy = along[2 * row:2 * row + 2, 2 * column:2 * column + 2].mean((0, 1)) / 2
                result[row, column] = first[np.clip(round(float(row + dy)), 0, x.shape[0] - 1),
                                            np.clip(round(float(column + dx)), 0, x.shape[1] - 1)]
        return mask * result + (1 - mask) * x

    @staticmethod
    def least(shown):
        height, width = (size // 2 for size in shown.shape)
        return np.array([[shown[2 * y:2 * y + 2, 2 * x:2 * x + 2].min() for x in range(width)]
                         for y in range(height)])[..., None]

    @staticmethod
    def soft(hidden):
        mask = hidden.astype(np.float32)
        return np.clip(cv2.GaussianBlur(cv2.dilate(mask, np.ones((9, 9))), (9, 9), 18) + mask, 0, 1)

    @staticmethod
    def warped(picture, along):
        y, x = np.mgrid[:picture.shape[0], :picture.shape[1]].astype(np.float32)
        return cv2.remap(picture, x + along[..., 0], y + along[..., 1], cv2.INTER_LINEAR,
                         borderMode=cv2.BORDER_REPLICATE)

    def faithful(self, picture):
        z = np.asarray(self.encode(picture[None, None]))
        change = z - np.asarray(self.encode(self.decode(z)))
        far = np.abs(np.asarray(self.decode(z + change))[0, 0] - picture).mean(-1) > 0.25
        m = 1 - self.least(~far)[..., 0]
        return (z + (1 - cv2.dilate(m.astype(np.float32), np.ones((3, 3)))[..., None]) * change)[0, 0]


def test_key_frames_are_those_of_the_paper(generator, clip, three):
    """Of frames 0, 3 and 6: the first is plain, the others see and are fused with the first and the one before."""
    oracle = Oracle(generator, clip, SHORT["steps"])
    frames = [oracle.frame(number) for number in (0, 3, 6)]
    for number, expected in zip((0, 3, 6), frames, strict=True):
        difference = np.abs(three.videos[0, number].astype(int) - np.asarray(to_uint8(expected)).astype(int))
        assert difference.max() <= 1, number
    np.testing.assert_allclose(three.carry.previous.made[0], frames[-1], atol=CLOSE)


def test_every_piece_counts(generator, clip, three):
    """The loop without one of them makes another third key frame."""
    for piece in ("tokens", "shape", "pixels", "colour"):
        oracle = Oracle(generator, clip, SHORT["steps"], without=piece)
        third = [oracle.frame(number) for number in (0, 3, 6)][-1]
        assert np.abs(third - three.carry.previous.made[0]).max() > 100 * CLOSE, piece


def test_without_its_pieces_each_key_frame_is_the_plain_model_s(generator, clip):
    """Which ControlVideo is on single frames."""
    found = made(generator, clip[:, :3], Rerender(interval=1, **OFF)).videos
    for frame in range(3):
        one = clip[:, frame:frame + 1]
        np.testing.assert_allclose(found[:, frame:frame + 1].astype(int),
                                   made(generator, one, ControlVideo(smooth=())).videos.astype(int), atol=1)


def test_key_frames_do_not_depend_on_those_between(generator, clip, three):
    """`interval=1` makes every frame a key frame: of every third frame, the key frames of `interval=3`."""
    every = made(generator, clip[:, ::3], Rerender(interval=1)).videos
    np.testing.assert_allclose(every.astype(int), three.videos[:, ::3].astype(int), atol=1)


def test_a_still_video_gives_one_picture(generator, clip):
    """Tokens, estimates and colours of the first key frame are its own; pixels alone draw it to latents of its result,
    in which the autoencoder's error is, so that they are left out."""
    still = np.repeat(clip[:, :1], 6, axis=1)
    found = made(generator, still, Rerender(interval=2, pixel=())).videos[0].astype(int)
    assert np.abs(found - found[0]).max() <= 1


def test_no_strength_leaves_what_the_autoencoder_keeps(generator, clip):
    stage, = generator.stages()
    weights, video = generator.autoencoders[stage.name], jnp.asarray(to_float(clip))
    kept = decode(stage.latent, weights, encode(stage.latent, weights, video))
    found = made(generator, clip, Rerender(strength=0.0)).videos
    assert np.abs(found.astype(int) - np.asarray(to_uint8(kept)).astype(int)).max() <= 1


def test_clips_go_on_from_one_another(generator, clip, three):
    """Frames 0 to 3, and 3 to 6 with what the first clip carries over, are frames 0 to 6; so are two videos at once."""
    first = made(generator, clip[:, :4], Rerender(interval=3))
    second = made(generator, clip[:, 3:], Rerender(interval=3), carry=first.carry)
    np.testing.assert_array_equal(np.concatenate([first.videos, second.videos[:, 1:]], axis=1), three.videos)
    with refused("Rerender.carry", "carry of another clip"):
        made(generator, clip[:, 2:], Rerender(interval=3), carry=first.carry)
    with refused("edit.carry", "a method that makes key frames"):
        made(generator, clip[:, :1], SDEdit(), carry=first.carry)


def test_cuts_share_key_frames():
    cut = KeyCut(25, 11)
    assert cut.clips == 3 and [cut.places(n)[[0, -1]].tolist() for n in range(3)] == [[0, 10], [10, 20], [20, 24]]
    assert [cut.finished(n) for n in range(4)] == [0, 11, 21, 25]
    assert [KeyCut(n, 11).clips for n in (1, 2, 11, 12, 21)] == [1, 1, 1, 2, 2]


def test_files_go_on_after_an_interruption(generator, clip, three, tmp_path, monkeypatch):
    """The same frames at once, clip by clip, and in two calls, with what the next clip needs in the folder."""
    longer = np.concatenate([clip[0], clip[0, :3]])
    lossless = [write_video(tmp_path / name, longer, 4, lossless=True) for name in ("given.mp4", "maps.mp4")]
    with VideoReader(lossless[0]) as file:
        read = file.frames(range(7), 32, 48)[None]
    whole = made(generator, read, Rerender(interval=3)).videos[0]
    job = VideoJob(lossless[0], "a three", method=Rerender(interval=3), maps=lossless[1], seed=SHORT["seed"],
                   frames=7, options={name: SHORT[name] for name in ("steps", "guidance")})
    folder = tmp_path / "frames"
    part = edit_video(generator, job, folder=folder, stop=lambda: True)
    assert part.finished == 4 and sorted(path.name for path in folder.glob("state*")) == [
        "state_first_1.safetensors", "state_previous_1.safetensors"]
    done = edit_video(generator, job, folder=folder)
    assert done.complete and not list(folder.glob("state*"))  # nothing goes on
    np.testing.assert_array_equal(done.frames.read(0, range(7)), whole)
    done.frames.remove()
    assert not folder.exists()
    np.testing.assert_array_equal(edit_video(generator, job).frames.read(0, range(7)), whole)
    stops = iter([False, True])
    edit_video(generator, dataclasses.replace(job, frames=10), folder=folder, stop=lambda: next(stops))
    assert sorted(path.name for path in folder.glob("state*")) == [
        "state_first_1.safetensors", "state_previous_2.safetensors"]  # the first key frame's is written once
    next(folder.glob("state*")).unlink()
    with refused("edit.state", "missing next to the finished frames"):
        edit_video(generator, dataclasses.replace(job, frames=10), folder=folder)
    with refused("edit.at_once", "at_once=2"):
        edit_video(generator, dataclasses.replace(job, at_once=2), folder=tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_the_command(tmp_path, monkeypatch, capfd):
    fails = refusals_of_commands(capfd)
    monkeypatch.chdir(tmp_path)
    folder = write_control(tmp_path / "control")
    write_square("given.mp4", 6)
    blended, between = [], rerender_clips.between
    monkeypatch.setattr(rerender_clips, "between", lambda *a: blended.append(a[3]) or between(*a))
    command = ["edit", "given.mp4", "--model", str(folder), "--prompt", "a three", "--method", "rerender",
               "--height", "32", "--width", "32", "--steps", "4", "--control", "canny", "--out", "made.mp4"]
    assert main([*command, "--interval", "2", "--pixel", "0.2", "0.9", "--colour", "--poisson"]) == 0
    assert set(blended) == {True}
    with VideoReader("made.mp4") as done:
        assert len(done) == 6 and done.fps == pytest.approx(6)
    method = json.loads((tmp_path / "made.json").read_text())["method"]["all"]
    assert method == {"name": "rerender", "interval": 2, "strength": 1.0, "cross_frame": True, "shape": [0.0, 0.1],
                      "shape_from": "first", "pixel": [0.2, 0.9], "pixel_strength": 0.5, "inner_strength": 0.9,
                      "colour": [], "poisson": True, "flow": None}
    unloaded = [*command[:2], "--model", "nowhere", *command[4:]]  # refused before a model is looked for
    for name in ("shape", "pixel", "colour"):
        assert f"Rerender.{name}=(0.5,); permitted: two shares" in fails(*unloaded, f"--{name}", "0.5")
    assert "--at-once=2 with --method=rerender, whose clips go on" in fails(*unloaded, "--at-once", "2")
    assert not list(tmp_path.glob("*.frames"))
    assert "--interval=3 with --method=ddim; permitted: --method rerender" in fails(
        *command, "--method", "ddim", "--interval", "3")
    assert "--num-frames=4 with --method=rerender" in fails(*command, "--num-frames", "4")
    assert "round_trip=True with method='rerender'" in fails(*command, "--round-trip")


def test_what_cannot_be(generator, clip, tmp_path, monkeypatch):
    method = Rerender(interval=3)
    (stage,) = generator.experiment.stages
    with refused("edit.stages", "of 2 stages", f"last={stage.name!r}"):
        _prepared((stage, dataclasses.replace(stage, name="next")), {stage.name: method, "next": SDEdit()}, clip, None)

    def absent():
        raise UserError("no OpenCV")

    monkeypatch.setattr(rerender, "require_opencv", absent)  # told of last: it would not help with these
    pictures = with_size(load_released(write_pictures(tmp_path / "plain"), jax.devices()[:1]), 1, 32, 32)
    with refused("Rerender.stage", "takes no control map", "a lower strength"):
        edit(pictures, clip[:, :, :, :32], "a three", method=method)
    with refused("Rerender.stage", "optical flow of frames of 16x16", "sides from 32 pixels"):
        made(with_size(generator, 1, 16, 16), clip[:, :, :16, :16], method)
    motion = load_released(write_motion(tmp_path / "motion"), jax.devices()[:1])
    with refused("Rerender.stage", "temporal layers or motion modules", "an image network"):
        edit(with_size(motion, 4, 32, 32), clip[:, :4, :, :32], "a three", method=Rerender(strength=0.5))
    monkeypatch.undo()
    with refused("edit._in_sizes", "videos of shape [1, 7, 32, 40, 3]"):
        made(generator, clip[:, :, :, :40], method, clip)
