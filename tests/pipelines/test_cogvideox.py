"""The pipeline of CogVideoX: folders like those of the 2B and the 5B model, as a callable and as a generator; in full,
the videos of diffusers from the same noise."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import vdm_jax
from tests.pipelines.checks import check_a_video_of_a_text, check_steps_reuse_what_the_blocks_have_added
from tests.pipelines.folders import write_with_t5
from tests.refusals import refused
from vdm_jax.commands import distil_command, generate_command
from vdm_jax.commands.distil_command import Distil
from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.diffusion.beta_tables import ShiftedBetaSchedule
from vdm_jax.diffusion.samplers import Heun
from vdm_jax.diffusion.scheduler_steps import SchedulerSteps
from vdm_jax.generation.editing.ddim_inversion import DDIMInversion
from vdm_jax.generation.editing.one_stage import edit_sampling
from vdm_jax.generation.editing.prompt_to_prompt import PromptToPrompt
from vdm_jax.generation.one_stage import dynamic_weights, sample_keys
from vdm_jax.generation.overrides import with_overrides
from vdm_jax.generation.released.models import load_released, read_released, with_size
from vdm_jax.networks.autoencoders.piecewise import PiecewiseAutoencoder
from vdm_jax.networks.transformer.config import AddedSinusoids
from vdm_jax.networks.transformer.members import cogvideox, cogvideox_rotary
from vdm_jax.stages.distillation import _check_guided
from vdm_jax.stages.latent import Latent, decode, encode, encode_masked_video
from vdm_jax.stages.options import Oscillation, Sampling

# The file of the 2B model
SCHEDULER = {"_class_name": "CogVideoXDDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
             "beta_schedule": "scaled_linear", "clip_sample": False, "clip_sample_range": 1.0,
             "num_train_timesteps": 1000, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
             "sample_max_value": 1.0, "set_alpha_to_one": True, "snr_shift_scale": 3.0, "steps_offset": 0,
             "timestep_spacing": "trailing", "trained_betas": None}
VAE = PiecewiseAutoencoder(widths=(4, 8), blocks=1, groups=2, latent_channels=2, time_factor=2, scale=0.7)
OWN = {"width": 32, "heads": 2, "layers": 2, "text": EmbeddedText(width=8), "text_length": 16, "level_width": 8,
       "out_channels": 2}
SMALL = cogvideox(**OWN, sinusoids=AddedSinusoids())
LARGE = cogvideox(**OWN, rotary=cogvideox_rotary(16, (4, 6)), timesteps=ShiftedBetaSchedule(snr_shift=1.0))
SIZE = {"height": 8, "width": 12, "num_frames": 5}  # latents of 3x4x6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Like the 2B model."""
    return write_with_t5(tmp_path_factory.mktemp("cogvideox") / "small", "CogVideoXPipeline", SMALL, VAE, SCHEDULER)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Like the 5B model."""
    return write_with_t5(tmp_path_factory.mktemp("cogvideox") / "large", "CogVideoXPipeline", LARGE, VAE,
                         {**SCHEDULER, "snr_shift_scale": 1.0})


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Like CogVideoX1.5, whose tokens are of two latents."""
    network = cogvideox(**OWN, rotary=cogvideox_rotary(16, None), patch=(2, 2, 2),
                        timesteps=ShiftedBetaSchedule(snr_shift=1.0))
    return write_with_t5(tmp_path_factory.mktemp("cogvideox") / "pairs", "CogVideoXPipeline", network, VAE,
                         {**SCHEDULER, "snr_shift_scale": 1.0})


@pytest.fixture(scope="module")
def pipeline(folder):
    return vdm_jax.from_pretrained(folder)


def test_what_the_authors_sample_with(folder, large):
    for where, shift in ((folder, 3.0), (large, 1.0)):
        stage = read_released(where).stages[0]
        assert (*stage.video.shape[:3], stage.video.fps) == (49, 480, 720, 8)
        assert (stage.sampling.steps, stage.sampling.guidance) == (50, 5.0)
        assert stage.network.timesteps == stage.process.schedule == ShiftedBetaSchedule(snr_shift=shift)


def test_a_latent_in_front(pairs):
    """Of CogVideoX1.5: sampled, but not decoded; of given videos a copy of the first one."""
    stage = read_released(pairs).stages[0]
    assert (*stage.video.shape[:3], stage.video.fps) == (81, 768, 1360, 16)
    ours = vdm_jax.from_pretrained(pairs)
    assert ours.stage(5, 8, 12).shape == (4, 4, 6, 2)
    found = ours("a red three", **SIZE, num_inference_steps=1, seed=3, progress=False).videos
    assert found.shape == (1, 5, 8, 12, 3) and found.std() > 0
    latent, weights = ours.stage(5, 8, 12).latent, ours.models["vae"].params
    plain = dataclasses.replace(latent, ahead=0)
    video = np.random.default_rng(0).uniform(-1, 1, (1, 5, 8, 12, 3)).astype(np.float32)
    z, usual = (np.asarray(encode(how, weights, video)) for how in (latent, plain))
    np.testing.assert_array_equal(z, np.concatenate([usual[:, :1], usual], axis=1))
    np.testing.assert_array_equal(decode(latent, weights, z), decode(plain, weights, usual))
    drawn, alone = (np.asarray(encode(how, weights, video, jax.random.key(0))) for how in (latent, plain))
    np.testing.assert_array_equal(drawn, np.concatenate([alone[:, :1], alone], axis=1))
    assert np.abs(alone - usual).max() > 0
    mask = np.ones((1, 5, 8, 12, 1)) * (np.arange(5) < 1)[:, None, None, None]
    inside = encode_masked_video(latent, weights, MaskedVideo(video, mask))
    assert inside.video.shape[1] == inside.mask.shape[1] == 4
    assert np.asarray(inside.mask).reshape(4, -1).min(1).tolist() == [1, 1, 0, 0]
    stage = ours.stage(5, 8, 12)
    with refused("Stage.latent.ahead", "=1", "conditioning frames"):
        dataclasses.replace(stage, network=dataclasses.replace(stage.network, frame_conditioning="channels"))
    with refused("Latent.ahead", "=1", "causal"):
        Latent(ahead=1)


def test_a_video_of_a_text(pipeline, folder, tmp_path):
    changes = ({"prompt": ["a green seven"]}, {"seed": 4}, {"negative_prompt": "green"})
    check_a_video_of_a_text(pipeline, folder, tmp_path / "out", 8.0, changes, **SIZE)


def test_texts_keep_their_padding(pipeline):
    """All tokens are seen, and what T5 makes of padding is part of them."""
    found = pipeline.encoder.texts(["a red three", "a"])
    assert found["embeddings"].shape == (2, 16, 8) and found["text_mask"].all() and found["null_mask"].all()
    assert np.abs(found["embeddings"][1, -1]).max() > 0


def test_guidance_of_each_step(pipeline, folder):
    """By the formula, and by either way to sample."""
    stage = read_released(folder).stages[0]
    found = dynamic_weights(stage, stage.sampling)
    t = np.round(np.arange(1000, 0, -20)) - 1
    np.testing.assert_allclose(found, 3 * (1 - np.cos(np.pi * ((50 - t) / 50) ** 5)), rtol=1e-5, atol=1e-5)
    options = {**SIZE, "num_inference_steps": 2, "seed": 3, "progress": False}
    plain, dynamic = (pipeline("a red three", **options, dynamic_guidance=value).videos.astype(int)
                      for value in (False, True))
    assert np.abs(plain - dynamic).max() > 0
    generator = with_size(load_released(folder), 5, 8, 12)
    stage = generator.experiment.stages[0]
    stage = dataclasses.replace(stage, sampling=dataclasses.replace(stage.sampling, dynamic_guidance=True))
    generator = generator.of(dataclasses.replace(generator.experiment, stages=(stage,)))
    whole = generator(["a red three"], seed=3, steps=2).videos  # all steps are one compiled function
    assert np.abs(whole.astype(int) - dynamic).max() <= 1
    own = stage.sampling.scheduler
    for sampling, more, named in (
            (Sampling(guidance=1.0), {}, "scheduler=None"),
            (stage.sampling, {"oscillation": Oscillation(low=0.5)}, "oscillation=Oscillation(low=0.5"),
            (stage.sampling, {"high_noise_guidance": 0.0}, "high_noise_guidance=0.0"),
            (stage.sampling, {"guidance": 0.0}, "guidance=0.0; permitted"),
            (stage.sampling, {"scheduler": SchedulerSteps(scheduler="PNDMScheduler")}, "scheduler=PNDMScheduler"),
            (stage.sampling, {"scheduler": dataclasses.replace(own, log_sigma_embedding=True)}, "embedding timesteps"),
            (stage.sampling, {"sampler": Heun()}, "sampler=Heun(")):  # evaluates twice a step
        with refused("Sampling.dynamic_guidance", named, "CogVideoXDDIMScheduler", "guidance above 0"):
            dataclasses.replace(sampling, dynamic_guidance=True, **more)
    assert not with_overrides(dataclasses.replace(stage.sampling, dynamic_guidance=True), guidance=0.0).dynamic_guidance
    with refused("dynamic_guidance", "without guidance"):
        pipeline("a", **options, dynamic_guidance=True, guidance=0.0)


def test_editing_and_students_do_not_pass_over_guidance_of_each_step(folder):
    """The given videos' side of an inversion has one weight; what knows one weight alone refuses others."""
    stage, = read_released(folder).stages
    stage = dataclasses.replace(stage, sampling=dataclasses.replace(stage.sampling, dynamic_guidance=True),
                                video=dataclasses.replace(stage.video, frames=5, height=8, width=12))
    found = edit_sampling(stage, stage.sampling, DDIMInversion(), 2.0)
    assert found.target.dynamic_guidance and not found.source.dynamic_guidance and found.source.guidance == 2.0
    with refused("PromptToPrompt.check", "sampling.dynamic_guidance=True", "guidance by one weight"):
        edit_sampling(stage, stage.sampling, PromptToPrompt(), 0.0)
    with refused("distil.guidance", "dynamic_guidance=True", "--guidance-range"):
        distil_command.guidance_of(stage, Distil("x"), ranged=False)
    ranged = Distil("x", guidance_range=(0.0, 6.0))
    student = distil_command.sampling_of(stage, ranged, distil_command.guidance_of(stage, ranged, ranged=True)[0])
    assert student.guidance == 5.0 and not student.dynamic_guidance
    taught = dataclasses.replace(stage.training, text_dropout=0.0)
    object.__setattr__(stage, "training", taught)  # of a student, whose weights would go up to 1 + 5
    with refused("Sampling.guidance", "=0, 6", "from 0 to 5"):
        _check_guided(stage, (0.0, 5.0), takes=True)
    _check_guided(stage, (0.0, 6.0), takes=True)


def test_steps_may_reuse_what_the_blocks_have_added(pipeline):
    check_steps_reuse_what_the_blocks_have_added(pipeline, **SIZE)


def test_the_command_writes_a_video(folder, tmp_path):
    arguments = ["--height", "8", "--width", "12", "--num-frames", "5", "--num-inference-steps", "2", "--scheduler",
                 "cogvideox_dpm", "--dynamic-guidance", "--dtype", "bfloat16", "--decode-tile-size", "8", "--out",
                 str(tmp_path / "a.gif")]
    assert generate_command.main([str(folder), "--prompt", "a red three", *arguments]) == 0
    assert (tmp_path / "a.gif").stat().st_size > 0
    with refused("generate_command.call_arguments", "--decode-timestep", "CogVideoXPipeline", "--dynamic-guidance"):
        generate_command.main([str(folder), "--prompt", "a", "--decode-timestep", "0.1"])


def test_refusals(pipeline, folder):
    with refused("video.frames", "frames=7", "1, 5, 9", "5 and 9 are the nearest"):
        pipeline("a", **{**SIZE, "num_frames": 7})
    with refused("t5_transformers._sampling", "scheduler=DPMSolverMultistepScheduler", "cogvideox_dpm"):
        vdm_jax.from_pretrained(folder, scheduler="dpm++")


@pytest.mark.full
@pytest.mark.parametrize("kind, scheduler, dynamic", [
    ("small", None, False), ("large", None, True), ("large", "cogvideox_dpm", True), ("pairs", "cogvideox_dpm", False)])
def test_videos_of_diffusers(kind, scheduler, dynamic, folder, large, pairs, monkeypatch):
    """From the same noise, within 1 of 255, of prompts that are guided."""
    torch, diffusers, transformers = (pytest.importorskip(name) for name in ("torch", "diffusers", "transformers"))
    where = {"small": folder, "large": large, "pairs": pairs}[kind]
    made = diffusers.CogVideoXDDIMScheduler if scheduler is None else diffusers.CogVideoXDPMScheduler
    theirs = diffusers.CogVideoXPipeline(
        vae=diffusers.AutoencoderKLCogVideoX.from_pretrained(where / "vae"),
        text_encoder=transformers.T5EncoderModel.from_pretrained(where / "text_encoder"),
        tokenizer=transformers.T5Tokenizer.from_pretrained(where / "tokenizer"),
        scheduler=made.from_pretrained(where / "scheduler"),
        transformer=diffusers.CogVideoXTransformer3DModel.from_pretrained(where / "transformer"))
    theirs.set_progress_bar_config(disable=True)
    keys, shape, drawn = sample_keys(7, np.arange(2), 0), (2, 4 if kind == "pairs" else 3, 8, 12, 2), []

    def noise(number):
        return torch.from_numpy(np.array(noise_from_keys(keys, number, shape)).transpose(0, 1, 4, 2, 3).copy())

    if scheduler is not None:  # which draws once in the first and the last step, and twice in each between them
        module = __import__(made.__module__, fromlist=["x"])

        def draw(shape, **_):
            drawn.append(1 + (len(drawn) + 1) // 2)
            return noise(drawn[-1])

        monkeypatch.setattr(module, "randn_tensor", draw)
    options = {"height": 16, "width": 24, "num_frames": 5, "num_inference_steps": 8, "guidance_scale": 4.0}
    prompts, negative = ["a red three moving left", "a green seven"], ["green", "red"]
    with torch.no_grad():
        wanted = theirs(prompts, negative_prompt=negative, **options, use_dynamic_cfg=dynamic, latents=noise(0),
                        max_sequence_length=16, output_type="np").frames
    found = vdm_jax.from_pretrained(where, scheduler=scheduler)(
        prompts, negative_prompt=negative, **options, dynamic_guidance=dynamic, seed=7, progress=False).videos
    assert wanted.std() > 0.02 and np.abs(found.astype(float) - 255 * wanted).max() <= 1.5
