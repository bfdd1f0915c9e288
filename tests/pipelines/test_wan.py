"""Pipelines of Wan: folders of one transformer, of two experts, and of the 5B model, as callables and as generators;
in full, the videos of diffusers from the same noise."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

import vdm_jax
from tests.pipelines.folders import write_pipeline
from tests.refusals import refused
from tests.weights.folders import tensors_of, write
from tests.weights.test_tokenizers import write_t5
from vdm_jax.commands import generate_command
from vdm_jax.commands.generate_command import Generate
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.diffusion.caching import ByChange, Cache
from vdm_jax.generation.editing.one_stage import edit_sampling
from vdm_jax.generation.editing.sdedit import SDEdit
from vdm_jax.generation.one_stage import sample_keys
from vdm_jax.generation.released.models import load_released, read_released, with_size
from vdm_jax.networks.autoencoders.causal_config import CausalAutoencoder
from vdm_jax.networks.encoders.t5 import T5Encoder
from vdm_jax.networks.lora import LoRA, initial_factors, trained_adapter
from vdm_jax.networks.transformer.config import wan
from vdm_jax.weights.lora_files import target_of, write_lora

SCHEDULER = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True,
             "flow_shift": 3.0, "num_train_timesteps": 1000}
VAE = CausalAutoencoder(widths=(4, 8), blocks=1, halve_frames=(True,), latent_channels=2, mean=(0.5, -1.0),
                        std=(2.0, 1.5))
TRANSFORMER = wan(width=16, heads=2, hidden=12, layers=2, text=EmbeddedText(width=8), out_channels=2, level_channels=8)
SIZE = {"height": 8, "width": 12, "num_frames": 5}  # latents of 3x4x6


def write_wan(folder, experts=False, **index):
    """A folder like those of Wan."""
    (folder / "tokenizer").mkdir(parents=True)
    write_t5(folder / "tokenizer")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    text = T5Encoder(vocabulary=128, width=8, layers=1, heads=2, head_dim=6, hidden=16, offsets_per_layer=True)
    write_pipeline(folder, "WanPipeline", {"transformer": TRANSFORMER, "vae": VAE, "text_encoder": text}, SCHEDULER, {})
    fields = json.loads((folder / "model_index.json").read_text())
    fields |= {"tokenizer": ["transformers", "T5TokenizerFast"], **index}
    if experts:
        tensors = {name: 0.2 * tensor for name, tensor in tensors_of(TRANSFORMER, seed=9).items()}
        write(folder / "transformer_2", TRANSFORMER, tensors)
        fields["transformer_2"] = ["diffusers", "WanTransformer3DModel"]
    (folder / "model_index.json").write_text(json.dumps(fields))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_wan(tmp_path_factory.mktemp("wan") / "wan", boundary_ratio=None)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    return write_wan(tmp_path_factory.mktemp("wan") / "experts", experts=True, boundary_ratio=0.875)


@pytest.fixture(scope="module")
def pipeline(folder):
    return vdm_jax.from_pretrained(folder)


def test_what_the_authors_sample_with(folder, experts):
    stage = read_released(folder).stages[0]
    assert stage.video == dataclasses.replace(stage.video, frames=81, height=480, width=832, fps=16)
    assert (stage.sampling.steps, stage.sampling.guidance, stage.process.schedule.shift) == (50, 4.0, 3.0)
    two = read_released(experts).stages[0]
    assert two.network.boundary == 0.875 and two.network.expert == stage.network
    assert (two.sampling.steps, two.sampling.guidance, two.sampling.high_noise_guidance) == (40, 2.0, 3.0)


def test_two_experts_are_edited(experts):
    """The given video's caption has a guidance of its own, which may be none."""
    stage = read_released(experts).stages[0]
    for weight in (0.0, 1.5):
        how = edit_sampling(stage, stage.sampling, SDEdit(), weight)
        assert (how.source.guidance, how.source.high_noise_guidance) == (weight, None)
        assert (how.target.guidance, how.target.high_noise_guidance) == (2.0, 3.0)


def test_a_video_of_a_text(pipeline, folder, tmp_path):
    """The callable and the generator of runs make the same one; what is saved is what was loaded."""
    options = {**SIZE, "num_inference_steps": 2, "seed": 3}
    found = pipeline(["a red three"], guidance_scale=2.0, progress=False, **options).videos
    assert found.shape == (1, 5, 8, 12, 3) and found.std() > 0
    assert np.abs(found.astype(int) - pipeline(["a green seven"], guidance_scale=2.0, **options).videos).max() > 0
    generator = with_size(load_released(folder), 5, 8, 12)
    again = generator(["a red three"], seed=3, steps=2, guidance_scale=2.0).videos
    assert np.abs(again.astype(int) - found).max() <= 1
    pipeline.save_pretrained(tmp_path / "out")
    same = vdm_jax.from_pretrained(tmp_path / "out")(["a red three"], guidance_scale=2.0, **options).videos
    np.testing.assert_array_equal(same, found)


def test_steps_may_reuse_what_the_blocks_have_added(pipeline, experts):
    """A plan of whole steps changes nothing; another one the video, and experts take none."""
    options = {**SIZE, "num_inference_steps": 3, "guidance_scale": 2.0, "seed": 3, "progress": False}
    plain, whole, reused = (pipeline("a red three", **options, cache=cache).videos
                            for cache in (None, Cache(steps=(0, 1, 2)), ByChange(threshold=1e9, branch=1)))
    np.testing.assert_array_equal(whole, plain)
    assert 0 < np.abs(reused.astype(int) - plain).max()
    with refused("Sampling.cache", "boundary=0.875"):
        vdm_jax.from_pretrained(experts)("a", **options, cache=Cache())


def test_the_command_refuses_a_cache_of_two_experts_before_it_loads_them(experts, tmp_path):
    """By the folder's index, without its weights."""
    (tmp_path / "model_index.json").write_text((experts / "model_index.json").read_text())
    for option in (["--cache", "2"], ["--cache-threshold", "2.5"]):
        with refused("Sampling.cache", "=".join(option), "two experts", "boundary_ratio=0.875"):
            generate_command.main([str(tmp_path), "--prompt", "a", *option])


def test_the_command_lists_the_options_of_a_cache(pipeline, folder):
    with refused("generate_command.call_arguments", "--motion-bucket-id is not for", "--cache,", "--cache-threshold"):
        generate_command.call_arguments(Generate(folder, prompt=("a",), motion_bucket_id=3), pipeline)


def test_loras_are_merged(pipeline, tmp_path):
    options = {**SIZE, "num_inference_steps": 1, "guidance_scale": 1.0}
    before = pipeline("a red three", **options).videos
    params = pipeline.models["transformer"].params
    specs = (LoRA(rank=2, patterns=("self_attention/value",)),)
    factors = jax.tree.map(lambda a: np.random.default_rng(0).normal(size=a.shape).astype(np.float32),
                           initial_factors(specs, params, jax.random.key(0)))
    target = target_of(TRANSFORMER)
    write_lora(tmp_path / "a.safetensors", {"unet": (target, trained_adapter(specs, params, factors))}, "diffusers")
    pipeline.use_loras({tmp_path / "a.safetensors": 1.0})
    assert np.abs(pipeline("a red three", **options).videos.astype(int) - before).max() > 1
    pipeline.use_loras({})
    np.testing.assert_array_equal(pipeline("a red three", **options).videos, before)


def test_refusals(pipeline, experts, tmp_path):
    with refused("video.frames", "frames=6", "1, 3, 5"):
        pipeline("a", **{**SIZE, "num_frames": 6})
    with refused("high_noise_guidance_scale", "one transformer"):
        pipeline("a", high_noise_guidance_scale=3.0, **SIZE)
    two = vdm_jax.from_pretrained(experts)
    for off in ({"guidance": 0.0}, {"guidance_scale": 1.0}):
        with refused("high_noise_guidance_scale", "=3.0", "without guidance"):
            two("a", high_noise_guidance_scale=3.0, **off, **SIZE)
    with refused("loras", "two experts"):
        two.use_loras({"a.safetensors": 1.0})
    other = write_wan(tmp_path / "other", experts=True)
    with refused("transformers.network_of", "boundary_ratio=None"):
        read_released(other)


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    """Like the 5B model: the first frame may be given."""
    return write_wan(tmp_path_factory.mktemp("wan") / "pictured", expand_timesteps=True)


@pytest.mark.full
def test_a_video_may_begin_with_a_picture(pictured, pipeline, peers):
    """The picture is the first frame, and the others are those of diffusers within 1 of 255."""
    torch, diffusers, transformers = peers
    picture = np.random.default_rng(0).integers(0, 256, (16, 32, 3), np.uint8)
    ours, size = vdm_jax.from_pretrained(pictured), {"height": 16, "width": 32, "num_frames": 5}
    options = {**size, "num_inference_steps": 4, "guidance_scale": 3.0, "negative_prompt": "green"}
    found = ours("a red three moving left", image=picture, **options, seed=7, progress=False).videos
    np.testing.assert_array_equal(found[0, 0], picture)
    theirs = diffusers.WanImageToVideoPipeline(
        vae=diffusers.AutoencoderKLWan.from_pretrained(pictured / "vae"), expand_timesteps=True,
        text_encoder=transformers.UMT5EncoderModel.from_pretrained(pictured / "text_encoder"),
        tokenizer=transformers.T5Tokenizer.from_pretrained(pictured / "tokenizer"),
        scheduler=diffusers.UniPCMultistepScheduler.from_pretrained(pictured / "scheduler"),
        transformer=diffusers.WanTransformer3DModel.from_pretrained(pictured / "transformer"))
    theirs.set_progress_bar_config(disable=True)
    latents = noise_from_keys(sample_keys(7, np.arange(1), 0), 0, (1, 3, 8, 16, 2))
    with torch.no_grad():
        wanted = theirs(Image.fromarray(picture), "a red three moving left", **options, output_type="np",
                        latents=torch.from_numpy(np.array(latents).transpose(0, 4, 1, 2, 3).copy())).frames
    assert np.abs(found[:, 1:].astype(float) - 255 * wanted[:, 1:]).max() <= 1.5
    with refused("image", "texts alone"):
        pipeline("a", image=picture, **SIZE)
    with refused("image", "2 pictures for 1 prompts"):
        ours("a", image=[picture] * 2, **size)


@pytest.fixture(scope="module")
def peers():
    return pytest.importorskip("torch"), pytest.importorskip("diffusers"), pytest.importorskip("transformers")


@pytest.mark.full
@pytest.mark.parametrize("kind", ["one", "experts"])
def test_videos_of_diffusers(kind, folder, experts, peers):
    """From the same noise, within 1 of 255."""
    torch, diffusers, transformers = peers
    where = folder if kind == "one" else experts
    ours = vdm_jax.from_pretrained(where)
    parts = {"vae": diffusers.AutoencoderKLWan.from_pretrained(where / "vae"),
             "text_encoder": transformers.UMT5EncoderModel.from_pretrained(where / "text_encoder"),
             "tokenizer": transformers.T5Tokenizer.from_pretrained(where / "tokenizer"),
             "scheduler": diffusers.UniPCMultistepScheduler.from_pretrained(where / "scheduler"),
             "transformer": diffusers.WanTransformer3DModel.from_pretrained(where / "transformer")}
    if kind == "experts":
        parts |= {"boundary_ratio": 0.875, "transformer_2": diffusers.WanTransformer3DModel.from_pretrained(
            where / "transformer_2")}
    pipeline = diffusers.WanPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": 16, "width": 32, "num_frames": 5}  # they take multiples of 16
    latents = noise_from_keys(sample_keys(7, np.arange(1), 0), 0, (1, 3, 8, 16, 2))
    more = {"guidance_scale": 3.0} | ({"guidance_scale_2": 2.0} if kind == "experts" else {})
    with torch.no_grad():
        theirs = pipeline("a red three moving left", negative_prompt="green", **size, num_inference_steps=6, **more,
                          latents=torch.from_numpy(np.array(latents).transpose(0, 4, 1, 2, 3).copy()),
                          output_type="np").frames
    mine = {"guidance_scale": 2.0, "high_noise_guidance_scale": 3.0} if kind == "experts" else {"guidance_scale": 3.0}
    found = ours("a red three moving left", negative_prompt="green", **size, num_inference_steps=6, **mine, seed=7,
                 progress=False).videos
    assert np.abs(found.astype(float) - 255 * theirs).max() <= 1.5
