"""Text2Video-Zero with tiny released models: first-frame attention, clips that carry it, and motion fields."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pipelines.folders import write_control, write_pictures
from tests.refusals import refused
from vdm_jax.commands.main import main
from vdm_jax.diffusion.families import FLOW, VE, VP
from vdm_jax.generation.editing import text2video_zero
from vdm_jax.generation.editing.ddim_inversion import DDIMInversion
from vdm_jax.generation.editing.edit import edit
from vdm_jax.generation.editing.text2video_zero import (
    Text2VideoZero,
    _make,
    _renoised,
    _shifts,
    text_to_video,
)
from vdm_jax.generation.released.models import load_released, with_size
from vdm_jax.stages.latent import decode, encode
from vdm_jax.video.arrays import to_float, to_uint8
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_video

SHORT = {"steps": 4, "t0": 1, "t1": 2, "guidance": 2.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("zero")
    return write_pictures(home / "plain"), write_control(home / "control")


@pytest.fixture(scope="module")
def plain(folders):
    return load_released(folders[0], jax.devices()[:1])


@pytest.fixture(scope="module")
def whole(plain):
    return text_to_video(plain, "a red three", frames=5, seed=2, **SHORT).videos


def test_chunks_change_nothing(plain, whole):
    parts = text_to_video(plain, "a red three", frames=5, chunk=3, seed=2, **SHORT).videos
    assert parts.shape == (1, 5, 16, 16, 3) and np.abs(parts.astype(int) - whole).max() <= 1


def test_frames_move_with_the_field(plain, whole):
    """Without motion all frames still differ, by the noise between t0 and t1."""
    still = text_to_video(plain, "a red three", frames=5, motion=(0, 0), seed=2, **SHORT).videos
    np.testing.assert_array_equal(still[:, 0], whole[:, 0])
    assert (still[:, 1:] != whole[:, 1:]).any() and (still[:, 1] != still[:, 2]).any()
    z = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4, 1)
    rows, columns = _shifts(z, np.array([1, 2]), (128.0, 0.0))
    assert columns.tolist() == [[1, 2, 3, 3], [2, 3, 3, 2]] and rows.tolist() == [[0, 1, 2, 3]] * 2


def test_clips_of_an_edit_see_the_first_frame(folders):
    """Two clips of three frames are the first five of one clip of five."""
    generator = load_released(folders[1], jax.devices()[:1])
    video = np.random.default_rng(0).integers(0, 256, (1, 5, 16, 16, 3)).astype(np.uint8)
    options = {"method": Text2VideoZero(), "steps": 2, "guidance": 1.0, "same_noise": True, "seed": 4}
    five = with_size(generator, frames=5)
    whole = edit(five, video, "a three", control=video, **options).videos[0]
    cut = np.stack([video[0, [0, 1, 2]], video[0, [0, 3, 4]]])
    parts = edit(with_size(generator, frames=3), cut, ["a three"] * 2, control=cut, **options).videos
    assert np.abs(np.concatenate([parts[0], parts[1, 1:]]).astype(int) - whole).max() <= 1
    assert (whole[1] != whole[0]).any()  # by the maps alone


def test_no_strength_leaves_what_the_autoencoder_keeps(folders):
    generator = load_released(folders[1], jax.devices()[:1])
    video = np.random.default_rng(0).integers(0, 256, (1, 1, 16, 16, 3)).astype(np.uint8)
    stage, = generator.stages()
    weights = generator.autoencoders[stage.name]
    kept = to_uint8(decode(stage.latent, weights, encode(stage.latent, weights, jnp.asarray(to_float(video)))))
    made = edit(generator, video, "a three", control=video, method=Text2VideoZero(strength=0.0), guidance=1.0).videos
    assert np.abs(made.astype(int) - np.asarray(kept).astype(int)).max() <= 1


def test_the_command_makes_maps_and_carries_the_first_frame(folders, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    video = np.full((6, 24, 24, 3), 20, np.uint8)
    for frame in range(6):
        video[frame, 6:16, 2 * frame : 2 * frame + 10] = 230
    write_video("given.mp4", video, 6)
    command = ["edit", "given.mp4", "--model", str(folders[1]), "--prompt", "a three", "--method", "text2video_zero",
               "--num-frames", "3", "--steps", "2", "--out", "made.mp4"]
    assert main([*command, "--control", "canny"]) == 0
    with VideoReader("made.mp4") as made:
        assert len(made) == 6 and made.fps == pytest.approx(6)
    assert json.loads((tmp_path / "made.json").read_text())["maps"].endswith("given.mp4")
    assert not (tmp_path / "made.mp4.maps").exists()
    assert main(command) == 2 and "networks that take control; permitted: one file of maps" in capfd.readouterr().err
    assert main([*command[:-4], "--num-frames", "1", "--control", "canny", "--out", "made.mp4"]) == 2
    assert "clips of 1 frame" in capfd.readouterr().err


def test_compiled_functions_see_the_mesh(plain, monkeypatch):
    seen, (stage,) = [], plain.stages()
    monkeypatch.setattr(text2video_zero, "_begin", lambda *_: seen.append(jax.sharding.get_abstract_mesh()))
    _make(plain, stage.sampling, stage, "begin", (0, 3))(None, None, None)
    assert seen == [plain.mesh.abstract_mesh]


@pytest.mark.parametrize("family", [VP, VE, FLOW], ids=lambda family: family.name)
def test_noise_on_top_leads_to_the_marginals_of_the_noisier_level(family):
    s, t = jnp.float32(1.5), jnp.float32(-0.5)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = family.alpha_sigma(s), family.alpha_sigma(t)
    kept, std = _renoised(family, s, t)
    np.testing.assert_allclose([kept * alpha_s, jnp.hypot(kept * sigma_s, std)], [alpha_t, sigma_t], rtol=1e-6)


@pytest.mark.full
def test_devices_that_do_not_divide_the_texts_change_nothing(folders, whole):
    two = load_released(folders[0], jax.devices()[:2])
    videos = text_to_video(two, "a red three", frames=5, seed=2, **SHORT).videos
    assert videos.shape == whole.shape and np.abs(videos.astype(int) - whole).max() <= 1


def test_ddim_inversion_in_latents(plain):
    """What the autoencoder loses is lost; the round trip in latents is nearly exact."""
    generator = with_size(plain, frames=2)
    video = generator(["a red three"] * 1, seed=0, steps=2).videos
    made = edit(generator, video, ["a red three"], source_captions=["a red three"], guidance=0.0, steps=6,
                method=DDIMInversion(refinements=6))
    kept = edit(generator, video, ["a red three"], method=DDIMInversion(strength=0.0)).videos
    assert np.abs(made.videos.astype(int) - kept).mean() < 1.5


def test_what_cannot_be(plain, folders):
    with refused("t0", "t0=3 with t1=2", "0 <= t0 < t1 < 4"):
        text_to_video(plain, "a", steps=4, t0=3, t1=2)
    with refused("frames", "frames=4 with chunk=1", "chunks of 2 to 4"):
        text_to_video(plain, "a", frames=4, chunk=1, steps=4, t0=1, t1=2)


@pytest.mark.full
def test_parity_with_diffusers(tmp_path):
    """The same noise, prompts, steps and field, to the latents before the decoder's rounding."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    from tests.pipelines.test_peer_pipelines import text_to_image

    transformers = pytest.importorskip("transformers")
    options = {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
    theirs = text_to_image(torch, (diffusers, transformers), tmp_path, "DDIMScheduler", options, attention_head_dim=4)
    theirs = diffusers.TextToVideoZeroPipeline(
        vae=theirs.vae, text_encoder=theirs.text_encoder, tokenizer=theirs.tokenizer, unet=theirs.unet,
        scheduler=theirs.scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    # Theirs takes alphas[t0:t1] for the steps from t0 to t1, one off at both ends.
    theirs.scheduler.alphas = torch.roll(theirs.scheduler.alphas, -1)
    noise = np.random.default_rng(0).normal(size=(1, 1, 8, 8, 4)).astype(np.float32)
    drawn = []

    def remembered(x_t0, t0, t1, generator):
        eps = torch.from_numpy(np.random.default_rng(1).normal(size=x_t0.shape).astype(np.float32))
        drawn.append(eps.numpy().transpose(0, 2, 3, 1))
        kept = torch.prod(theirs.scheduler.alphas[t0:t1])
        return torch.sqrt(kept) * x_t0 + torch.sqrt(1 - kept) * eps

    theirs.forward_loop = remembered
    wanted = theirs("a red three", video_length=3, height=16, width=16, num_inference_steps=6, guidance_scale=4.0,
                    latents=torch.from_numpy(noise[:, 0].transpose(0, 3, 1, 2).copy()), t0=2, t1=4,
                    motion_field_strength_x=60, motion_field_strength_y=-30, output_type="np").images
    from vdm_jax.generation.editing import text2video_zero as module

    def given(keys, number, shape, shared=False):
        import jax.numpy as jnp

        return jnp.asarray(drawn[0])[number - 1][None] if len(shape) == 4 else jnp.zeros(shape)

    ours = load_released(tmp_path / "in", jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "noise_from_keys", given)
        found = text_to_video(with_size(ours, height=16, width=16), "a red three", frames=3, motion=(60, -30), t0=2,
                              t1=4, steps=6, guidance_scale=4.0, noise=noise).videos
    assert np.abs(found[0].astype(int) - np.round(255 * np.asarray(wanted).reshape(3, 16, 16, 3))).max() <= 2
