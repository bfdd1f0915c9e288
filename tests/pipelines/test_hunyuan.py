"""The pipeline of HunyuanVideo: a small folder as a callable and as a generator, compared with the sampler written out;
in full, the videos of diffusers from the same noise."""

from __future__ import annotations

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import vdm_jax
from tests.pipelines.checks import check_a_video_of_a_text, check_steps_reuse_what_the_blocks_have_added
from tests.pipelines.folders import write_pipeline
from tests.refusals import refused
from tests.weights.test_tokenizers import write_clip
from vdm_jax.attention.positions import RotaryAxes
from vdm_jax.commands import generate_command
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.inputs import Input
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.data.text_encoding import CaptionEncoder
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.generation.one_stage import sample_keys
from vdm_jax.generation.released.hunyuan import ASKED, CUT
from vdm_jax.generation.released.models import read_released
from vdm_jax.networks.autoencoders.hunyuan import HunyuanAutoencoder
from vdm_jax.networks.encoders.clip_text import CLIPText
from vdm_jax.networks.encoders.llama import LlamaText
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.transformer.members import hunyuan
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.stages.latent import decode

SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": False, "shift": 7.0,
             "num_train_timesteps": 1000}
VAE = HunyuanAutoencoder(widths=(2, 4, 4), blocks=1, groups=2, latent_channels=2, scale=0.7)
TRANSFORMER = hunyuan(width=16, heads=2, layers=1, single_layers=1, text_refiner=1, out_channels=2,
                      text=EmbeddedText(width=8), rotary=RotaryAxes(dims=(4, 2, 2), bases=(256.0,) * 3),
                      conditions=(Input(name="pooled_text", width=6),))
LLAMA = LlamaText(vocabulary=128, width=8, layers=3, heads=2, key_heads=1, head_dim=4, hidden=16)
SIZE = {"height": 8, "width": 16, "num_frames": 5}  # latents of 2x2x4
PROMPTS = ("a red three moving left", "a green seven")


def write_words(folder):
    """A tokenizer of whole words, by which the text around a prompt begins with as many tokens as Llama's."""
    package = pytest.importorskip("tokenizers", reason="tokenizers come with the extra [pretrained]")
    special = ["<pad>", "<s>", "<unk>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    before = package.pre_tokenizers.Whitespace()
    text = " ".join((*ASKED, *PROMPTS))
    for token in special:
        text = text.replace(token, " ")
    words = special + sorted({word for word, _ in before.pre_tokenize_str(text)})
    made = package.Tokenizer(package.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = before
    made.add_special_tokens(special)
    made.post_processor = package.processors.TemplateProcessing(
        single="<s> <s> <s> <s> $A", special_tokens=[("<s>", 1)])
    folder.mkdir(parents=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "<|eot_id|>", "pad_token": "<pad>"}))
    assert len(made.encode(ASKED[0]).ids) == CUT and len(words) <= LLAMA.vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Like the released one."""
    where = tmp_path_factory.mktemp("hunyuan") / "hunyuan"
    write_words(where / "tokenizer")
    vocabulary = write_clip(where / "tokenizer_2", length=77)
    clip = CLIPText(vocabulary=len(vocabulary), width=6, layers=1, heads=2, hidden=16,
                    end_token=vocabulary.index("<|endoftext|>"))
    write_pipeline(where, "HunyuanVideoPipeline", {
        "transformer": TRANSFORMER, "vae": VAE, "text_encoder": LLAMA, "text_encoder_2": clip}, SCHEDULER, {})
    index = json.loads((where / "model_index.json").read_text())
    index |= {"tokenizer": ["transformers", "LlamaTokenizerFast"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
              "text_encoder_2": ["transformers", "CLIPTextModel"]}
    (where / "model_index.json").write_text(json.dumps(index))
    return where


@pytest.fixture(scope="module")
def pipeline(folder):
    return vdm_jax.from_pretrained(folder)


def test_what_the_authors_sample_with(folder):
    stage = read_released(folder).stages[0]
    assert (*stage.video.shape[:3], stage.video.fps) == (129, 720, 1280, 24)
    assert (stage.sampling.steps, stage.sampling.guidance, stage.takes_weight) == (50, 5.0, True)
    assert (stage.sampling.scheduler.flow.grid, stage.sampling.scheduler.flow.shift) == ("linear", 7.0)


def test_texts_are_asked_for(pipeline):
    """What stands around a text is seen by its tokens and cut off; CLIP reads the text alone."""
    found = pipeline.encoder.texts(PROMPTS)
    assert found["embeddings"].shape == (2, 6, 8) and found["pooled_text"].shape == (2, 6)  # with the token at the end
    np.testing.assert_array_equal(found["text_mask"].sum(1), [6, 4])
    assert np.abs(found["embeddings"][1, 4:]).max() == 0 < np.abs(found["embeddings"][1, :4]).max()
    assert np.abs(found["pooled_text"][0] - found["pooled_text"][1]).max() > 0
    with refused("negative_prompt", "green", "takes the weight of guidance"):
        pipeline.encoder.texts(PROMPTS, ["green"])


def test_a_video_of_a_text(pipeline, folder, tmp_path):
    changes = ({"prompt": ["a green seven"]}, {"seed": 4}, {"guidance": 0.0})
    check_a_video_of_a_text(pipeline, folder, tmp_path / "out", 24.0, changes, **SIZE)


def test_the_sampler_written_out(pipeline):
    """Euler's steps from 1, shifted by 7, of one estimate that is conditioned on the weight of the guidance."""
    found = pipeline("a red three", **SIZE, num_inference_steps=3, guidance_scale=4.0, seed=7, progress=False).videos
    stage, params = pipeline.stage(5, 8, 16), pipeline.models["transformer"].params
    texts, module = pipeline.encoder.texts(["a red three"]), network_module(stage.network)
    conditioning = Conditioning(
        embeddings=texts["embeddings"][:, None], text_mask=texts["text_mask"][:, None],
        inputs={"pooled_text": jnp.asarray(texts["pooled_text"])}, scalars={"guidance": jnp.full(1, 3.0)})
    z = noise_from_keys(sample_keys(7, np.arange(1), 0), 0, (1, 2, 2, 4, 2))
    sigmas = [7 * t / (1 + 6 * t) for t in (1, 2 / 3, 1 / 3)] + [0.0]
    for sigma, after in zip(sigmas, sigmas[1:], strict=False):
        level = jnp.full(1, 2 * np.log((1 - sigma + 1e-30) / sigma), jnp.float32)
        z = z + (after - sigma) * module.apply({"params": params}, z, level, conditioning)
    wanted = 127.5 * (np.asarray(decode(stage.latent, pipeline.models["vae"].params, z)) + 1)
    assert np.abs(found - wanted).max() <= 1


def test_steps_may_reuse_what_the_blocks_have_added(pipeline):
    check_steps_reuse_what_the_blocks_have_added(pipeline, **SIZE)


def test_tiles_are_asked_for(pipeline):
    """One that covers the frame changes nothing, smaller ones what norms and borders see."""
    options = {**SIZE, "width": 24, "num_inference_steps": 1, "seed": 3, "progress": False}
    plain, one, several = (pipeline("a red three", **options, decode_tile_size=size).videos.astype(int)
                           for size in (None, 24, 16))
    np.testing.assert_array_equal(one, plain)
    assert 0 < np.abs(several - plain).max()
    for size, overlap in ((16, 4), (20, 4), (32, 8)):  # a quarter, in whole latents
        assert pipeline.stage(5, 8, 24, tile=size).latent.overlap == overlap
    for size in (18, 12):
        with refused("decode_tile_size", f"={size}", "multiples of 4 from 16 on"):
            pipeline("a", **options, decode_tile_size=size)


def test_over_several_devices(pipeline, folder):
    """Encoders, transformer and autoencoder on a mesh."""
    options = {**SIZE, "num_inference_steps": 1, "seed": 3, "progress": False}
    shared = vdm_jax.from_pretrained(folder, mesh=MeshSpec(data=2, fsdp=2, tensor=2))
    found, wanted = (one(list(PROMPTS), **options).videos.astype(int) for one in (shared, pipeline))
    assert np.abs(found - wanted).max() <= 1


def test_the_command_writes_a_video(folder, tmp_path):
    size = ["--height", "8", "--width", "16", "--num-frames", "5", "--num-inference-steps", "1"]
    assert generate_command.main([str(folder), "--prompt", "a red three", *size, "--dtype", "bfloat16", "--out",
                                  str(tmp_path / "a.gif")]) == 0
    assert (tmp_path / "a.gif").stat().st_size > 0
    with refused("generate_command.call_arguments", "--negative-prompt", "HunyuanVideoPipeline"):
        generate_command.main([str(folder), "--prompt", "a", *size, "--negative-prompt", "b"])


def test_refusals(pipeline, folder, tmp_path):
    with refused("video.frames", "frames=6", "1, 5, 9"):
        pipeline("a", **{**SIZE, "num_frames": 6})
    with refused("t5_transformers.flow_sampling", "scheduler=DDIMScheduler", "FlowMatchEulerDiscreteScheduler"):
        vdm_jax.from_pretrained(folder, scheduler="ddim")
    with refused("text_encoding.CaptionEncoder.__init__", "LlamaText", "CLIP or T5"):
        CaptionEncoder(folder)
    wide = dataclasses.replace(TRANSFORMER, text=EmbeddedText(width=4))
    (tmp_path / "other").mkdir()
    index = write_pipeline(tmp_path / "other" / "a", "HunyuanVideoPipeline", {
        "transformer": wide, "vae": VAE, "text_encoder": LLAMA,
        "text_encoder_2": CLIPText(vocabulary=20, width=6, layers=1, heads=2, hidden=16)}, SCHEDULER, {})
    with refused("hunyuan.networks_of", "text=EmbeddedText(width=4", "permitted"):
        read_released(index)


@pytest.mark.full
def test_videos_of_diffusers(folder):
    """From the same noise, within 1 of 255: of two prompts, with other guidance, in pieces that are blended."""
    torch, diffusers, transformers = (pytest.importorskip(name) for name in ("torch", "diffusers", "transformers"))
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer" / "tokenizer.json"), pad_token="<pad>", padding_side="right")
    theirs = diffusers.HunyuanVideoPipeline(
        vae=diffusers.AutoencoderKLHunyuanVideo.from_pretrained(folder / "vae"),
        text_encoder=transformers.LlamaModel.from_pretrained(folder / "text_encoder"), tokenizer=words,
        text_encoder_2=transformers.CLIPTextModel.from_pretrained(folder / "text_encoder_2"),
        tokenizer_2=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        transformer=diffusers.HunyuanVideoTransformer3DModel.from_pretrained(folder / "transformer"))
    theirs.set_progress_bar_config(disable=True)
    latents = np.array(noise_from_keys(sample_keys(7, np.arange(2), 0), 0, (2, 6, 4, 8, 2))).transpose(0, 4, 1, 2, 3)
    options = {"height": 16, "width": 32, "num_frames": 21, "num_inference_steps": 6, "guidance_scale": 4.0}
    with torch.no_grad():
        wanted = theirs(list(PROMPTS), **options, latents=torch.from_numpy(latents.copy()), output_type="np").frames
    found = vdm_jax.from_pretrained(folder)(list(PROMPTS), **options, seed=7, progress=False).videos
    assert wanted.std() > 0.02 and np.abs(found.astype(float) - 255 * wanted).max() <= 1.5
