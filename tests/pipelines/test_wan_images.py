"""Wan's image-to-video folders: of the first frame, of first and last frame, and of two experts that see no tokens of
pictures; in full, the videos of diffusers from the same noise."""

from __future__ import annotations

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vdm_jax
from tests.pipelines.folders import write_pipeline
from tests.pipelines.test_wan import SCHEDULER, VAE
from tests.refusals import refused
from tests.weights.folders import tensors_of, write
from tests.weights.test_tokenizers import write_t5
from vdm_jax.commands.main import main
from vdm_jax.conditions.frame_masks import FrameMask, MaskedVideo, masked_first_frame
from vdm_jax.conditions.inputs import Input
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.errors import UserError
from vdm_jax.generation.one_stage import sample_keys
from vdm_jax.generation.released.models import load_released, read_released, with_size
from vdm_jax.networks.encoders.clip_vision import CLIPVision
from vdm_jax.networks.encoders.t5 import T5Encoder
from vdm_jax.networks.transformer.config import wan

TEXT = T5Encoder(vocabulary=128, width=8, layers=1, heads=2, head_dim=6, hidden=16, offsets_per_layer=True)
CLIP = CLIPVision(size=8, patch=4, width=8, layers=2, heads=2, hidden=16, project=0)  # 5 tokens of a picture
PROCESSOR = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}, "do_center_crop": True}
EXPERT = wan(width=16, heads=2, hidden=12, layers=2, text=EmbeddedText(width=8), out_channels=2, level_channels=8,
             frame_conditioning="channels", mask_channels=2)
FIRST = dataclasses.replace(EXPERT, conditions=(Input(name="image_tokens", width=8),))
NETWORKS = {"first": FIRST, "both": dataclasses.replace(FIRST, image_places=10), "experts": EXPERT}
SIZE = {"height": 8, "width": 16, "num_frames": 5}  # latents of 3x4x8


def write_images(folder, kind):
    """A folder like those of Wan from pictures."""
    (folder / "tokenizer").mkdir(parents=True)
    write_t5(folder / "tokenizer")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    parts = {"transformer": NETWORKS[kind], "vae": VAE, "text_encoder": TEXT}
    parts |= {"image_encoder": CLIP} if kind != "experts" else {}
    write_pipeline(folder, "WanImageToVideoPipeline", parts, SCHEDULER, {})
    fields = json.loads((folder / "model_index.json").read_text())
    fields |= {"tokenizer": ["transformers", "T5TokenizerFast"], "boundary_ratio": None, "expand_timesteps": False}
    if kind == "experts":
        tensors = {name: 0.2 * tensor for name, tensor in tensors_of(EXPERT, seed=9).items()}
        write(folder / "transformer_2", EXPERT, tensors)
        fields |= {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.9,
                   "image_encoder": [None, None], "image_processor": [None, None]}
    else:
        (folder / "image_processor").mkdir()
        (folder / "image_processor" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
        fields["image_processor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(fields))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind."""
    root = tmp_path_factory.mktemp("wan_images")
    return {kind: write_images(root / kind, kind) for kind in NETWORKS}


@pytest.fixture(scope="module")
def pipeline(folders):
    return vdm_jax.from_pretrained(folders["first"])


def pictures(seed=0, height=8, width=16):
    return np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), np.uint8)


def test_what_the_authors_sample_with(folders):
    stages = {kind: read_released(folder).stages[0] for kind, folder in folders.items()}
    assert [(s.video.height, s.sampling.steps, s.sampling.guidance, s.sampling.high_noise_guidance, s.network.boundary)
            for s in stages.values()] == [(480, 40, 4.0, None, None), (720, 50, 4.0, None, None),
                                          (480, 40, 2.5, 2.5, 0.9)]
    assert FrameMask(first=1, last=1) in stages["both"].training.masking


def test_a_video_of_a_picture(pipeline, folders, tmp_path):
    """The callable, the generator of runs and what is saved make the same one, and the picture tells."""
    options, (picture, other) = {**SIZE, "num_inference_steps": 2, "seed": 3, "guidance_scale": 2.0}, pictures()
    found = pipeline("a red three", picture, progress=False, **options).videos
    assert found.shape == (1, 5, 8, 16, 3) and found.std() > 0
    assert np.abs(found.astype(int) - pipeline("a red three", other, **options).videos).max() > 0
    generator = with_size(load_released(folders["first"]), 5, 8, 16)
    given = masked_first_frame(jnp.asarray(picture[None] / 127.5 - 1, jnp.float32), 5)
    again = generator(["a red three"], seed=3, steps=2, guidance_scale=2.0, masked_video=given).videos
    assert np.abs(again.astype(int) - found).max() <= 1
    pipeline.save_pretrained(tmp_path / "out")
    same = vdm_jax.from_pretrained(tmp_path / "out")("a red three", picture, **options).videos
    np.testing.assert_array_equal(same, found)
    with refused("script.long_requests", "image_tokens"):
        generator.long(["a red three"], frames=9, masked_video=given)


def test_videos_are_those_of_their_own_pictures(pipeline):
    """Several prompts, several videos of each: in the order of the prompts."""
    options, two = {**SIZE, "num_inference_steps": 1, "guidance_scale": 1.0}, list(pictures())
    noise = np.random.default_rng(1).normal(size=(1, 3, 4, 8, 2)).astype(np.float32)
    alone = [pipeline("a", one, latents=noise, **options).videos[0].astype(int) for one in two]
    found = pipeline(["a", "a"], two, num_per_prompt=2, latents=np.repeat(noise, 4, axis=0), **options).videos
    for row, wanted in zip(found, [alone[0], alone[0], alone[1], alone[1]], strict=True):
        assert np.abs(row - wanted).max() <= 1


def test_the_commands_take_pictures(folders, tmp_path):
    for name, pixels in zip(("a", "b"), pictures(), strict=True):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    first, last = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    size = ["--height", "8", "--width", "16", "--num-frames", "3", "--num-inference-steps", "1"]
    out = tmp_path / "out.gif"
    assert main(["generate", str(folders["both"]), "--prompt", "a", "--image", first, "--last-image", last,
                 "--out", str(out), *size]) == 0 and out.is_file()
    assert main(["generate", str(folders["both"]), "--prompt", "a", "--image", first, *size]) == 2
    sampled = tmp_path / "sampled.gif"
    assert main(["sample", str(folders["first"]), "a", "--image", first, "--num-frames", "3", "--height", "8",
                 "--width", "16", "--steps", "1", "--out", str(sampled)]) == 0 and sampled.is_file()


@pytest.mark.parametrize("given", [{"height": -8}, {"width": 0}, {"num_frames": -1}, {"num_frames": 0},
                                   {"num_frames": "9"}, {"fps": 0}, {"height": 2.5}])
def test_sizes_are_checked_before_pictures_are_brought_to_them(given, pipeline):
    (name, value), = given.items()
    with pytest.raises(UserError) as error:
        pipeline("a", pictures()[0], **{**SIZE, **given})
    assert f"{name}={value!r}" in str(error.value)


def test_tokens_of_pictures_that_are_given_are_kept(pipeline, monkeypatch):
    """They are not made anew of the frames that are given with them."""
    tokens, given = np.ones((1, 5, 8), np.float32), masked_first_frame(jnp.zeros((1, 8, 16, 3)), 5)
    generator = pipeline.generator.of(pipeline.generator.experiment, pipeline.generator.params)
    monkeypatch.setattr(generator, "encoder", pipeline.encoder)
    request = generator.request(["a"], {"image_tokens": tokens}, generator.experiment.stages, masked_video=given)
    np.testing.assert_array_equal(request.get("image_tokens"), tokens)


def test_refusals(pipeline, folders, tmp_path):
    picture, other = pictures()
    with refused("last_image", "first frame", "permitted: None"):
        pipeline("a", picture, last_image=other, **SIZE)
    with refused("image", "2 pictures for 1 prompts"):
        pipeline("a", [picture, other], **SIZE)
    both = load_released(folders["both"])
    with refused("encoders.ReleasedEncoder.__call__", "first and the last"):
        with_size(both, 5, 8, 16)(["a"], masked_video=masked_first_frame(jnp.zeros((1, 8, 16, 3)), 5))
    given = masked_first_frame(jnp.zeros((1, 8, 16, 3)), 5)
    with refused("encoders.ReleasedEncoder.__call__", "without the first frame") as error:
        pipeline.encoder(["a"], None, MaskedVideo(given.video, given.mask[:, ::-1]))
    assert "last" not in str(error.value)
    plain = tmp_path / "plain"
    write_images(plain, "experts")
    fields = json.loads((plain / "model_index.json").read_text())
    (plain / "model_index.json").write_text(json.dumps(fields | {"_class_name": "WanPipeline"}))
    with refused("transformers.networks_of", "frame_conditioning=channels", "none"):
        read_released(plain)


@pytest.mark.full
@pytest.mark.parametrize(("kind", "last"), [("first", False), ("both", True), ("experts", False), ("experts", True)])
def test_videos_of_diffusers(kind, last, folders):
    """From the same noise, within 1 of 255; pictures of another aspect are resized, and cut for CLIP, as theirs are."""
    torch, diffusers, transformers = (pytest.importorskip(name) for name in ("torch", "diffusers", "transformers"))
    where = folders[kind]
    first, end = pictures(2, 24, 36)
    frames = 5 if kind != "experts" else 9  # which are encoded in two pieces
    size = {"height": 16, "width": 32, "num_frames": frames}
    parts = {"vae": diffusers.AutoencoderKLWan.from_pretrained(where / "vae"),
             "text_encoder": transformers.UMT5EncoderModel.from_pretrained(where / "text_encoder"),
             "tokenizer": transformers.T5Tokenizer.from_pretrained(where / "tokenizer"),
             "scheduler": diffusers.UniPCMultistepScheduler.from_pretrained(where / "scheduler"),
             "transformer": diffusers.WanTransformer3DModel.from_pretrained(where / "transformer")}
    if kind == "experts":
        parts |= {"boundary_ratio": 0.9, "transformer_2": diffusers.WanTransformer3DModel.from_pretrained(
            where / "transformer_2")}
    else:
        parts |= {"image_encoder": transformers.CLIPVisionModel.from_pretrained(where / "image_encoder"),
                  "image_processor": transformers.CLIPImageProcessor.from_pretrained(where / "image_processor")}
    theirs = diffusers.WanImageToVideoPipeline(**parts)
    theirs.set_progress_bar_config(disable=True)
    latents = noise_from_keys(sample_keys(7, np.arange(1), 0), 0, (1, frames // 2 + 1, 8, 16, 2))
    common = {"negative_prompt": "green", "num_inference_steps": 6, **size}
    ends = {"last_image": Image.fromarray(end)} if last else {}
    more = {"guidance_scale": 3.0} | ({"guidance_scale_2": 2.0} if kind == "experts" else {})
    with torch.no_grad():
        wanted = theirs(Image.fromarray(first), "a red three moving left", **common, **more, **ends,
                        latents=torch.from_numpy(np.array(latents).transpose(0, 4, 1, 2, 3).copy()),
                        output_type="np").frames
    mine = {"guidance_scale": 2.0, "high_noise_guidance_scale": 3.0} if kind == "experts" else {"guidance_scale": 3.0}
    found = vdm_jax.from_pretrained(where)("a red three moving left", first, **common, **mine, **ends, seed=7,
                                           progress=False).videos
    assert np.abs(found.astype(float) - 255 * wanted).max() <= 1.5
