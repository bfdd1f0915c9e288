"""ControlVideo with a tiny released model: who sees whom, the smoother, key frames and the command."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.editing.given import write_square
from tests.pipelines.folders import write_control, write_pictures
from tests.refusals import refusals_of_commands, refused
from vdm_jax.attention import Full, Spatial
from vdm_jax.commands.main import main
from vdm_jax.generation.editing.control_video import ControlVideo
from vdm_jax.generation.editing.edit import edit
from vdm_jax.generation.editing.one_stage import edit_parts, edit_sampling
from vdm_jax.generation.editing.smoothing import halfway, smoothed
from vdm_jax.generation.jobs import Jobs
from vdm_jax.generation.overrides import with_overrides
from vdm_jax.generation.prompts import requested_conditioning
from vdm_jax.generation.released.models import load_released, with_size
from vdm_jax.networks.latent_frames import Motion
from vdm_jax.networks.sparse_control import SparseControlNet
from vdm_jax.stages.latent import decode, encode
from vdm_jax.stages.options import GuidanceTerm
from vdm_jax.video.arrays import to_float, to_uint8
from vdm_jax.video.reading import VideoReader

PLAIN = ControlVideo(smooth=())
MOTION = Motion(heads=2, groups=2, frames=4, attentions=1, middle=False)
SHORT = {"steps": 3, "guidance": 1.0, "seed": 4}


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """With self-attention that counts: its random weights, eight times as large."""
    found = load_released(write_control(tmp_path_factory.mktemp("control") / "folder"), jax.devices()[:1])

    def larger(path, x):
        name = jax.tree_util.keystr(path)
        counts = "norm_attention" in name or ("self_attention" in name and "kernel" in name)
        return 8 * x if counts and "control_net" not in name else x

    return found.of(found.experiment, jax.tree_util.tree_map_with_path(larger, found.params))


def clip(frames, side=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (1, frames, side, side, 3)).astype(np.uint8)


def made(generator, maps, method, **options):
    """The video of some maps."""
    sized = with_size(generator, maps.shape[1], *maps.shape[2:4])
    return edit(sized, maps, "a three", method=method, control=maps, **(SHORT | options)).videos[0].astype(int)


def changed(one, other):
    """Numbers of the frames that differ."""
    return [frame for frame in range(len(one)) if (one[frame] != other[frame]).any()]


def text_of(generator, maps):
    """Of these maps: the conditioning, the generator and the stage of their size."""
    sized = with_size(generator, maps.shape[1], *maps.shape[2:4])
    stage, = sized.stages()
    return requested_conditioning(stage, sized.request("a three", {"control": maps}, (stage,))), sized, stage


def parts_of(sized, stage, text, method, steps=4):
    """What the method sees of the stage."""
    how = edit_sampling(method.stage(stage), with_overrides(stage.sampling, steps=steps, guidance=1.0), method, 0.0)
    keys = Jobs(SHORT["seed"], np.arange(1)).keys(np.arange(1), 0)
    return edit_parts(method.stage(stage), how, sized.params[stage.name], keys, (text, text), None,
                      sized.autoencoders[stage.name])


def estimates(generator, method, *several):
    """Of several z of as many frames as maps."""
    text, sized, stage = text_of(generator, clip(several[0].shape[1]))

    @jax.jit
    def estimate(z):
        parts = parts_of(sized, stage, text, method)
        return parts.target(z, jnp.full(1, parts.steps.level[1]))[0]

    return [np.asarray(estimate(z)) for z in several]


def noise(frames):
    return np.random.default_rng(1).normal(size=(1, frames, 8, 8, 4)).astype(np.float32)


def test_all_frames_of_the_main_network_see_each_other_and_none_of_the_control_net(generator):
    stage, = generator.stages()
    found = PLAIN.stage(stage)
    assert found.network.unet.spatial_pattern == Full() and found.network.control_nets == stage.network.control_nets
    assert stage.network.control_nets[0].unet.spatial_pattern == Spatial() and found.latent == stage.latent
    sampling = PLAIN.sampling(stage.sampling)
    assert sampling.shared_noise and sampling.sampler.eta == 0


def test_one_noise_for_all_frames(generator):
    """With the same map for all frames all come out the same."""
    same = made(generator, np.repeat(clip(1), 4, axis=1), PLAIN)
    assert np.ptp(same, axis=0).max() <= 1


def test_key_frames_of_one_window_are_the_plain_sampler(generator):
    """By the estimates of which all steps are made; key frames of shorter windows are another estimate."""
    keys = [ControlVideo(smooth=(), hierarchical=True, window=window) for window in (5, 3)]
    plain, whole, parts = (estimates(generator, method, noise(5))[0] for method in (PLAIN, *keys))
    np.testing.assert_allclose(whole, plain, atol=1e-6)
    assert np.abs(parts - plain).max() > 1e-3


def test_without_a_smoother_and_with_one_window_it_is_the_plain_sampler(generator):
    """The generator's own call of the network whose frames see each other; transformers add a hundred times as much,
    so that 8-bit frames show whom they see: key frames of shorter windows change a hundredth of the values."""
    def larger(path, x):
        name = jax.tree_util.keystr(path)
        return 100 * x if "_transformer']['out']['kernel']" in name and "control_net" not in name else x

    generator = generator.of(generator.experiment, jax.tree_util.tree_map_with_path(larger, generator.params))
    maps = clip(5)
    sized = with_size(generator, *maps.shape[1:4])
    stage, = sized.stages()
    stage = dataclasses.replace(PLAIN.stage(stage), sampling=PLAIN.sampling(stage.sampling))
    called = sized.of(dataclasses.replace(sized.experiment, stages=(stage,)))
    expected = called("a three", control=maps, **SHORT).videos[0].astype(int)
    for window, equal in ((None, True), (5, True), (3, False)):
        method = PLAIN if window is None else ControlVideo(smooth=(), hierarchical=True, window=window)
        assert ((made(generator, maps, method) != expected).mean() < 0.002) == equal, window


def test_a_frame_sees_the_key_frames_around_it(generator):
    """Of seven frames with key frames 0, 3 and 6: another frame 2 changes the estimate of frame 2 alone, another key
    frame 6 neither that of 1 nor of 2, and without key frames any frame changes all."""
    z, method = noise(7), ControlVideo(smooth=(), hierarchical=True, window=4)
    interior, key = z.copy(), z.copy()
    interior[:, 2] *= -1
    key[:, 6] *= -1
    before, *others = estimates(generator, method, z, interior, key)
    assert [changed(other, before) for other in others] == [[2], [0, 3, 4, 5, 6]]
    before, other = estimates(generator, PLAIN, z, interior)
    assert changed(other, before) == list(range(7)) and np.abs(other - before).max((1, 2, 3)).min() > 1e-4


def test_no_strength_leaves_what_the_autoencoder_keeps(generator):
    maps = clip(3)
    _, sized, stage = text_of(generator, maps)
    weights = sized.autoencoders[stage.name]
    kept = decode(stage.latent, weights, encode(stage.latent, weights, jnp.asarray(to_float(maps))))
    found = made(generator, maps, ControlVideo(strength=0.0, smooth=()))
    assert np.abs(found - np.asarray(to_uint8(kept))[0].astype(int)).max() <= 1


def test_smoothed_steps_are_those_published(generator):
    assert ControlVideo().pauses(50) == (30, 31) and ControlVideo(smooth=()).pauses(50) == ()
    assert ControlVideo(strength=0.4).pauses(50) == (30, 31) and ControlVideo(strength=0.0).pauses(50) == ()
    with refused("ControlVideo.smooth", "ControlVideo.smooth=(20, 19) with 15 steps", "up to 15"):
        ControlVideo(strength=0.3).pauses(50)


def test_the_smoother_goes_between_two_steps_as_in_the_paper(generator):
    """The loop written out: x_hat of a step is decoded, smoothed and encoded, and DDIM goes on with it and with the
    step's own estimate of the noise."""
    maps, method = clip(5, 32), ControlVideo(smooth=(3, 2))
    found = made(generator, maps, method, steps=4)
    text, sized, stage = text_of(generator, maps)
    parts, weights = parts_of(sized, stage, text, method), sized.autoencoders[stage.name]
    z = jnp.asarray(method.begin(jnp.zeros((1, *stage.shape)), parts))
    for number, (level, following, last) in enumerate(zip(parts.steps.level, parts.steps.next, parts.steps.last,
                                                          strict=True)):
        alpha, alpha_next = (1 / np.sqrt(1 + np.exp(-a)) for a in (level, following))
        x = parts.target(z, jnp.full(1, level))
        eps = (z - alpha * x) / np.sqrt(1 - alpha**2)
        if number in (1, 2):
            video = smoothed(np.asarray(decode(stage.latent, weights, x)), number)
            x = encode(stage.latent, weights, jnp.asarray(video))
        z = x if last else alpha_next * x + np.sqrt(1 - alpha_next**2) * eps
    expected = np.asarray(to_uint8(decode(stage.latent, weights, z)))[0].astype(int)
    assert np.abs(found - expected).max() <= 1
    assert np.abs(found - made(generator, maps, PLAIN, steps=4)).max() > 1


def test_every_other_frame_is_halfway_between_its_neighbours():
    """A picture that moves by four pixels a frame, after steps of either parity."""
    rng = np.random.default_rng(0)
    picture = rng.normal(size=(24, 32, 3)).cumsum(0).cumsum(1)
    picture = np.uint8(255 * (picture - picture.min()) / np.ptp(picture)).repeat(4, 0).repeat(4, 1)
    video = np.stack([picture[:, 2 * i:2 * i + 96] for i in range(7)])
    moved = halfway(video[2], video[4])
    inside = np.s_[8:-8, 8:-8]
    assert np.abs(moved - video[3])[inside].mean() < 1.5 < np.abs(video[2].astype(float) - video[3])[inside].mean()
    np.testing.assert_allclose(halfway(video[1], video[1]), video[1], atol=1e-4)
    broken = to_float(video)[None].copy()
    broken[:, 3] = -1
    even, odd = (smoothed(broken, step)[0] for step in (30, 31))
    assert changed(even, broken[0]) == [1, 3, 5] and changed(odd, broken[0]) == [0, 2, 4, 6]
    np.testing.assert_allclose(even[3], moved / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(odd[0], halfway(video[0], video[1]) / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(odd[6], halfway(video[5], video[6]) / 127.5 - 1, atol=1e-6)
    four = [changed(smoothed(broken[:, :4], step)[0], broken[0]) for step in (30, 31)]
    assert four == [[1], [0, 2]]  # the last of an even number of frames stays


def test_copies_that_fill_a_batch_up_are_not_smoothed_again():
    videos, asked = np.zeros((3, 5, 8, 8, 3), np.float32), []
    videos[1:, 2] = 1
    found = smoothed(videos, 0, lambda ones, others: asked.append(len(ones)) or (ones + others) / 2)
    assert asked == [2, 2] and (found[1] == found[2]).all() and (found[:, 1] == [[[[0]]], [[[0.5]]], [[[0.5]]]]).all()


def test_a_still_video_stays(generator):
    video = np.repeat(to_float(clip(1, 32)), 4, axis=1)
    np.testing.assert_allclose(smoothed(video, 0), video, atol=1e-6)


def test_the_command_makes_the_whole_video_at_once(tmp_path, monkeypatch, capfd):
    fails = refusals_of_commands(capfd)
    monkeypatch.chdir(tmp_path)
    folder = write_control(tmp_path / "control")
    write_square("given.mp4", 9)
    command = ["edit", "given.mp4", "--model", str(folder), "--prompt", "a three", "--method", "controlvideo",
               "--height", "32", "--width", "32", "--steps", "2", "--control", "canny", "--out", "made.mp4"]
    assert main([*command, "--smooth", "1", "--hierarchical", "--window", "4"]) == 0
    with VideoReader("made.mp4") as done:
        assert len(done) == 9 and done.fps == pytest.approx(6)
    method = json.loads((tmp_path / "made.json").read_text())["method"]["all"]
    assert method == {"name": "controlvideo", "strength": 1.0, "smooth": [1], "interpolator": None,
                      "hierarchical": True, "window": 4}
    assert "ControlVideo.smooth=(20, 19) with 2 steps; permitted: up to 2" in fails(*command)
    assert "ControlVideo.window=4 with hierarchical=False" in fails(*command, "--window", "4")
    assert "--smooth=(2,) with --method=ddim; permitted: --method controlvideo" in fails(
        *command, "--method", "ddim", "--smooth", "2")


def test_what_cannot_be(generator, tmp_path):
    with refused("smoothing.size", "smoother on frames of 16x16", "sides from 32 pixels"):
        made(generator, clip(3), ControlVideo(smooth=(1,)))
    pictures = load_released(write_pictures(tmp_path / "plain"), jax.devices()[:1])
    with refused("ControlVideo.stage", "takes no control map", "a lower strength"):
        edit(pictures, clip(1), "a three", method=PLAIN)


@pytest.mark.parametrize(("changes", "found"), [
    ({"motion": MOTION}, "temporal layers or motion modules"), ({"temporal": True}, "temporal layers"),
    ({"norm_over": "clip"}, "norm_over='clip'"), ({}, "SparseControlNet"), ({}, "sampling.terms of text, time")])
def test_key_frames_need_an_image_network(generator, changes, found):
    """Layers that tell frames by their place among those of the clip would take key frames for neighbours."""
    stage, = generator.stages()
    network, sampling = stage.network, stage.sampling
    unet = dataclasses.replace(network.unet, **changes)
    if found == "SparseControlNet":
        sparse = SparseControlNet(unet=dataclasses.replace(unet, motion=MOTION), channels=2, hint_widths=(2, 4))
        network = dataclasses.replace(network, control_nets=(sparse,))
    if "time" in found:
        sampling = dataclasses.replace(sampling, guidance=0.0, terms=tuple(
            GuidanceTerm(name=name, scale=2.0) for name in ("text", "time")))
    stage = dataclasses.replace(stage, network=dataclasses.replace(network, unet=unet))
    with refused("ControlVideo.check", found, "permitted: an image network", "hierarchical=False"):
        ControlVideo(smooth=(), hierarchical=True).check(stage, sampling)
    PLAIN.check(stage, sampling)


def test_only_so_many_frames_see_each_other(generator):
    """All of them without key frames, and the key frames, of which short windows make many."""
    def begun(frames, **options):
        return ControlVideo(smooth=(), **options).stage(with_size(generator, frames, 16, 16).stages()[0])

    begun(64), begun(65, hierarchical=True), begun(900, hierarchical=True), begun(127, hierarchical=True, window=3)
    with refused("ControlVideo.length", "65 frames that all attend", "up to 64, by hierarchical=True"):
        begun(65)
    with refused("ControlVideo.length", "65 key frames of window=3 that all attend", "up to 64, by a longer window"):
        begun(129, hierarchical=True, window=3)
