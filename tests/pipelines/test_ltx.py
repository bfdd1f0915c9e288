"""The pipeline of LTX-Video: folders of the first autoencoder and of a later one, as a callable and as a generator; in
full, the videos of diffusers from the same noise."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest
import safetensors.numpy

import vdm_jax
from tests.pipelines.checks import check_a_video_of_a_text, check_steps_reuse_what_the_blocks_have_added
from tests.pipelines.folders import write_with_t5
from tests.refusals import refused
from vdm_jax.commands import generate_command
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.generation.one_stage import released_steps, sample_keys
from vdm_jax.generation.released.models import read_released
from vdm_jax.networks.autoencoders.ltx_config import LTXAutoencoder
from vdm_jax.networks.lora import LoRA, initial_factors, trained_adapter
from vdm_jax.networks.transformer.members import ltx
from vdm_jax.weights.lora_files import target_of, write_lora

SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "base_shift": 0.95,
             "max_shift": 2.05, "base_image_seq_len": 1024, "max_image_seq_len": 4096, "shift_terminal": 0.1,
             "num_train_timesteps": 1000, "shift": 1.0}
FIXED = {**SCHEDULER, "use_dynamic_shifting": False, "shift": 2.0, "shift_terminal": None}
VAE = LTXAutoencoder(widths=(4, 8), out_width=8, blocks=(1,) * 3, shrink=("conv", "none"), latent_channels=2,
                     decoder_widths=(4, 8), decoder_blocks=(1,) * 3, grow=(True, False), noise=(False,) * 3)
TIMED = LTXAutoencoder(widths=(4,), out_width=8, blocks=(1,) * 2, shrink=("both",), latent_channels=2,
                       decoder_widths=(8,), decoder_blocks=(1,) * 2, grow=(True,), noise=(False, False), narrowing=2,
                       shortcuts=True, timed=True)
TRANSFORMER = ltx(width=16, heads=2, layers=2, text=EmbeddedText(width=8), out_channels=2)
SIZE = {"height": 8, "width": 16, "num_frames": 5}  # latents of 3x1x2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_with_t5(tmp_path_factory.mktemp("ltx") / "ltx", "LTXPipeline", TRANSFORMER, VAE, SCHEDULER)


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """As from version 0.9.1 on. Times of the decoder are 1000 times as large, as in released weights."""
    folder = write_with_t5(tmp_path_factory.mktemp("ltx") / "timed", "LTXPipeline", TRANSFORMER, TIMED, FIXED)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors["decoder.timestep_scale_multiplier"] = np.asarray(1000, np.float32)
    safetensors.numpy.save_file(tensors, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def pipeline(folder):
    return vdm_jax.from_pretrained(folder)


def test_what_the_authors_sample_with(folder, timed):
    stage = read_released(folder).stages[0]
    assert (*stage.video.shape[:3], stage.video.fps) == (161, 512, 704, 25)
    assert (stage.sampling.steps, stage.sampling.guidance) == (50, 2.0)
    assert stage.network.rotary.steps == (2 / 25, 8, 8)  # seconds and pixels of this autoencoder's latents
    # The sigmas of the authors' code: of 17 x 16 x 20 tokens, stretched to 0.1
    small = dataclasses.replace(stage, video=dataclasses.replace(stage.video, frames=33, height=128, width=160))
    found = 1 / (1 + np.exp(released_steps(small, small.sampling)[0].steps.level / 2))
    shift = math.exp(0.95 + 1.1 / 3072 * (17 * 16 * 20 - 1024))
    wanted = shift / (shift + 1 / np.linspace(1, 1 / 50, 50) - 1)
    np.testing.assert_allclose(found, 1 - (1 - wanted) * 0.9 / (1 - wanted[-1]), rtol=1e-5)
    fixed = read_released(timed).stages[0].sampling.scheduler.flow
    assert (fixed.grid, fixed.shift, fixed.terminal, fixed.dynamic) == ("linear", 2.0, None, None)


def test_a_video_of_a_text(pipeline, folder, tmp_path):
    changes = ({"prompt": ["a green seven"]}, {"seed": 4}, {"fps": 5}, {"negative_prompt": "green"})
    check_a_video_of_a_text(pipeline, folder, tmp_path / "out", 25.0, changes, **SIZE)


def test_steps_may_reuse_what_the_blocks_have_added(pipeline):
    check_steps_reuse_what_the_blocks_have_added(pipeline, **SIZE)


def test_loras_are_merged(pipeline, tmp_path):
    options = {**SIZE, "num_inference_steps": 1, "guidance_scale": 1.0, "progress": False}
    before = pipeline("a red three", **options).videos
    params = pipeline.models["transformer"].params
    specs = (LoRA(rank=2, patterns=("self_attention/value",)),)
    factors = jax.tree.map(lambda a: np.random.default_rng(0).normal(size=a.shape).astype(np.float32),
                           initial_factors(specs, params, jax.random.key(0)))
    adapter = target_of(TRANSFORMER), trained_adapter(specs, params, factors)
    write_lora(tmp_path / "a.safetensors", {"unet": adapter}, "diffusers")
    pipeline.use_loras({tmp_path / "a.safetensors": 1.0})
    assert np.abs(pipeline("a red three", **options).videos.astype(int) - before).max() > 1
    pipeline.use_loras({})
    np.testing.assert_array_equal(pipeline("a red three", **options).videos, before)


def test_the_decoder_is_a_step_of_denoising(timed, pipeline):
    """Its time and noise are the authors' unless given, and refused where the decoder has none."""
    ours = vdm_jax.from_pretrained(timed)
    options = {"height": 8, "width": 16, "num_frames": 5, "num_inference_steps": 1, "progress": False}
    usual, same, still, later = (ours("a", **options, **more).videos.astype(int) for more in (
        {}, {"decode_timestep": 0.05, "decode_noise_scale": 0.025}, {"decode_noise_scale": 0.0},
        {"decode_timestep": 0.9}))
    np.testing.assert_array_equal(usual, same)
    assert np.abs(usual - still).max() > 0 and np.abs(usual - later).max() > 0
    with refused("decode_timestep", "=0.1", "timestep_conditioning"):
        pipeline("a", **SIZE, decode_timestep=0.1)
    with refused("decode_noise_scale", "=1.0"):
        ours("a", **options, decode_noise_scale=1.0)


def test_the_command_writes_a_video(folder, tmp_path):
    size = ["--height", "8", "--width", "40", "--num-frames", "5", "--num-inference-steps", "1"]
    assert generate_command.main([str(folder), "--prompt", "a red three", *size, "--dtype", "bfloat16", "--out",
                                  str(tmp_path / "a.gif"), "--decode-tile-size", "32"]) == 0
    assert (tmp_path / "a.gif").stat().st_size > 0
    with refused("generate_command.call_arguments", "--decode-chunk-size", "--decode-timestep"):
        generate_command.main([str(folder), "--prompt", "a", *size, "--decode-chunk-size", "2"])
    with refused("generate_command.call_arguments", "--dynamic-guidance", "LTXPipeline", "--decode-timestep"):
        generate_command.main([str(folder), "--prompt", "a", *size, "--dynamic-guidance"])


def test_refusals(pipeline, folder, tmp_path):
    with refused("video.frames", "frames=6", "1, 3, 5", "5 and 7 are the nearest"):
        pipeline("a", **{**SIZE, "num_frames": 6})
    with refused("height", "=12", "multiples of 8"):
        pipeline("a", **{**SIZE, "height": 12})
    with refused("t5_transformers.flow_sampling", "scheduler=DDIMScheduler", "FlowMatchEulerDiscreteScheduler"):
        vdm_jax.from_pretrained(folder, scheduler="ddim")
    wide = ltx(width=16, heads=2, layers=1, text=EmbeddedText(width=8), out_channels=4)
    other = write_with_t5(tmp_path / "other", "LTXPipeline", wide, VAE, SCHEDULER)
    with refused("t5_transformers.networks_of", "out_channels=4", "permitted"):
        read_released(other)


def of_diffusers(kind, folder, diffusers, transformers):
    """Their pipeline of a class, of the networks in a folder."""
    theirs = getattr(diffusers, kind)(
        vae=diffusers.AutoencoderKLLTXVideo.from_pretrained(folder / "vae"),
        text_encoder=transformers.T5EncoderModel.from_pretrained(folder / "text_encoder"),
        tokenizer=transformers.T5Tokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        transformer=diffusers.LTXVideoTransformer3DModel.from_pretrained(folder / "transformer"))
    theirs.set_progress_bar_config(disable=True)
    return theirs


@pytest.mark.full
@pytest.mark.parametrize("kind", ["first", "timed"])
def test_videos_of_diffusers(kind, folder, timed):
    """From the same noise, within 1 of 255, of prompts that are guided, and with another rate of frames."""
    torch, diffusers, transformers = (pytest.importorskip(name) for name in ("torch", "diffusers", "transformers"))
    where = folder if kind == "first" else timed
    theirs = of_diffusers("LTXPipeline", where, diffusers, transformers)
    prompts, negative = ["a red three moving left", "a green seven"], ["green", "red"]
    size, factor = {"height": 32, "width": 64, "num_frames": 5}, vdm_jax.from_pretrained(where).models["vae"].config
    options = {**size, "num_inference_steps": 6, "guidance_scale": 3.0}
    shape = (2, 3, 32 // factor.factor, 64 // factor.factor, 2)
    latents = np.array(noise_from_keys(sample_keys(7, np.arange(2), 0), 0, shape))
    packed = torch.from_numpy(latents.reshape(2, -1, 2).copy())  # of tokens in the order of ours
    more = {} if kind == "first" else {"decode_timestep": 0.2, "decode_noise_scale": 0.0}
    with torch.no_grad():
        wanted = theirs(prompts, negative_prompt=negative, **options, frame_rate=10, latents=packed, **more,
                        output_type="np").frames
    found = vdm_jax.from_pretrained(where)(prompts, negative_prompt=negative, **options, fps=10, seed=7,
                                           progress=False, **more).videos
    assert wanted.std() > 0.02 and np.abs(found.astype(float) - 255 * wanted).max() <= 1.5
