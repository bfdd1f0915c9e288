"""Small pipelines of diffusers with random weights: saved there, read here, the same pictures from the same noise."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from PIL import Image

import vdm_jax
from tests.refusals import refused
from tests.weights.test_tokenizers import write_clip
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.generation.one_stage import sample_keys
from vdm_jax.generation.released.pictures import for_encoder, open_pictures

pytestmark = pytest.mark.full
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
UNET = {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32, "sample_size": 16}
IMAGE_UNET = {**UNET, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
              "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
VIDEO_UNET = {**UNET, "in_channels": 8, "addition_time_embed_dim": 16, "projection_class_embeddings_input_dim": 48,
              "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
              "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
              "num_attention_heads": (2, 4), "num_frames": 3}
VAE = {"block_out_channels": (32, 64), "layers_per_block": 1, "latent_channels": 4,
       "down_block_types": ("DownEncoderBlock2D",) * 2}
VIDEO = {**STABLE, "interpolation_type": "linear", "prediction_type": "v_prediction", "sigma_max": 700.0,
         "sigma_min": 0.002, "steps_offset": 1, "timestep_spacing": "leading", "timestep_type": "continuous",
         "use_karras_sigmas": True}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def libraries(torch):
    return pytest.importorskip("diffusers"), pytest.importorskip("transformers")


def shaken(torch, model):
    """Their model with weights of which none are zero or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def text_parts(torch, libraries, folder, pad="<|endoftext|>"):
    """What begins and ends a pipeline with a text."""
    diffusers, transformers = libraries
    vocabulary = write_clip(folder / "tokenizer", pad=pad, length=16)
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1))
    return {"vae": shaken(torch, diffusers.AutoencoderKL(**VAE, up_block_types=("UpDecoderBlock2D",) * 2)),
            "text_encoder": shaken(torch, text),
            "tokenizer": transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")}


def saved(pipeline, folder):
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder / "in")
    return pipeline


def text_to_image(torch, libraries, folder, name, options, *, prediction="epsilon", pad="<|endoftext|>", **unet):
    """A pipeline like Stable Diffusion, saved."""
    diffusers, _ = libraries
    return saved(diffusers.StableDiffusionPipeline(
        **text_parts(torch, libraries, folder, pad),
        unet=shaken(torch, diffusers.UNet2DConditionModel(**IMAGE_UNET, **unet)),
        scheduler=getattr(diffusers, name)(**STABLE, **options, prediction_type=prediction),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False), folder)


def text_to_video(torch, libraries, folder, kind):
    """A pipeline like ModelScope's or AnimateDiff's, saved."""
    diffusers, _ = libraries
    parts = text_parts(torch, libraries, folder)
    if kind.startswith("modelscope"):
        unet = shaken(torch, diffusers.UNet3DConditionModel(**{
            **UNET, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "attention_head_dim": 8,
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")}))
        bounds = {"thresholding": True, "dynamic_thresholding_ratio": 0.7, "sample_max_value": 1.5}
        scheduler = diffusers.DDIMScheduler(**STABLE, clip_sample=False, steps_offset=1, set_alpha_to_one=False,
                                            **(bounds if "bounded" in kind else {}))
        return saved(diffusers.TextToVideoSDPipeline(**parts, unet=unet, scheduler=scheduler), folder)
    adapter = shaken(torch, diffusers.MotionAdapter(
        block_out_channels=(32, 64), motion_layers_per_block=1, motion_num_attention_heads=2,
        motion_max_seq_length=8, motion_norm_num_groups=16 if "groups" in kind else 32))
    scheduler = diffusers.EulerDiscreteScheduler(**{**STABLE, "beta_schedule": "linear"}, timestep_spacing="linspace")
    return saved(diffusers.AnimateDiffPipeline(
        **parts, unet=shaken(torch, diffusers.UNet2DConditionModel(**IMAGE_UNET, attention_head_dim=4)),
        motion_adapter=adapter, scheduler=scheduler), folder)


def video_of(torch, pictures):
    """Their batch of pictures as videos of one frame."""
    return np.asarray(pictures.detach().cpu() if torch.is_tensor(pictures) else pictures).transpose(0, 2, 3, 1)[:, None]


def check_folders(first, second):
    """Every file says the same."""
    for path in first.rglob("*"):
        other = second / path.relative_to(first)
        if path.suffix == ".json":
            assert json.loads(other.read_text()) == json.loads(path.read_text()), path
        elif path.is_file() and path.suffix != ".safetensors":
            assert other.read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize("name, options, prediction, guidance", [
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, "epsilon", 7.5),
    ("DDIMScheduler", {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}, "v_prediction", 3.0),
    ("DPMSolverMultistepScheduler", {}, "epsilon", 1.0),
    ("EulerDiscreteScheduler", {}, "epsilon", 4.0),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, "epsilon", 4.0),
])
def test_text_to_image(name, options, prediction, guidance, torch, libraries, tmp_path):
    second = prediction == "v_prediction"  # 2.x: linear maps, heads by level, another padding
    more = {"use_linear_projection": True, "attention_head_dim": (2, 4)} if second else {"attention_head_dim": 4}
    theirs = text_to_image(torch, libraries, tmp_path, name, options, prediction=prediction,
                           pad="!" if second else "<|endoftext|>", **more)
    ours = vdm_jax.from_pretrained(tmp_path / "in")
    prompts, negative = ["a red three", "moving, moving and moving left of a red three"], ["red", "three!"]
    noise = np.random.default_rng(0).normal(size=(2, 1, 8, 12, 4)).astype(np.float32)
    wanted = {}
    for kind in ("latent", "pt"):
        wanted[kind] = theirs(prompts, negative_prompt=negative, height=16, width=24, num_inference_steps=5,
                              guidance_scale=guidance, output_type=kind,
                              latents=torch.from_numpy(noise[:, 0].transpose(0, 3, 1, 2).copy())).images
    latents = []
    ours.watch = lambda step, z: latents.append(z)
    found = ours(prompts, negative_prompt=negative, height=16, width=24, num_inference_steps=5,
                 guidance_scale=guidance, latents=noise)
    reference = video_of(torch, wanted["latent"])
    np.testing.assert_allclose(np.asarray(latents[-1]), reference, atol=2e-4 * np.abs(reference).max())
    assert np.abs(found.videos - 255 * video_of(torch, wanted["pt"]).astype(np.float64)).max() <= 1
    assert found.videos.shape == (2, 1, 16, 24, 3)


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_control_net(scale, torch, libraries, tmp_path):
    diffusers, _ = libraries
    heads = {"attention_head_dim": 4}
    own = {name: value for name, value in IMAGE_UNET.items() if name not in ("up_block_types", "sample_size")}
    branch = diffusers.ControlNetModel(**own, **heads, conditioning_embedding_out_channels=(8, 16))
    for _ in range(2):  # so that maps show
        branch = shaken(torch, branch)
    theirs = saved(diffusers.StableDiffusionControlNetPipeline(
        **text_parts(torch, libraries, tmp_path), controlnet=shaken(torch, branch),
        unet=shaken(torch, diffusers.UNet2DConditionModel(**IMAGE_UNET, **heads)),
        scheduler=diffusers.DDIMScheduler(**STABLE, steps_offset=1, set_alpha_to_one=False, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False), tmp_path)
    ours = vdm_jax.from_pretrained(tmp_path / "in")
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 1, 8, 12, 4)).astype(np.float32)
    maps = [Image.fromarray(rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)) for _ in range(2)]
    prompts, common = ["a red three", "moving left"], {
        "height": 16, "width": 24, "num_inference_steps": 4, "guidance_scale": 5.0,
        "controlnet_conditioning_scale": scale}
    wanted = theirs(prompts, image=maps, **common, output_type="pt",
                    latents=torch.from_numpy(noise[:, 0].transpose(0, 3, 1, 2).copy())).images
    found = ours(prompts, image=maps, **common, latents=noise)
    assert np.abs(found.videos - 255 * video_of(torch, wanted).astype(np.float64)).max() <= 1
    assert np.abs(found.videos.astype(int) - ours(prompts, image=maps[::-1], **common, latents=noise).videos).max() > 2
    ours.save_pretrained(tmp_path / "out")
    check_folders(tmp_path / "in", tmp_path / "out")


def test_the_folder_of_pictures_goes_there_and_back(torch, libraries, tmp_path):
    diffusers, _ = libraries
    theirs = text_to_image(torch, libraries, tmp_path, "PNDMScheduler", {"skip_prk_steps": True}, attention_head_dim=4)
    vdm_jax.from_pretrained(tmp_path / "in").save_pretrained(tmp_path / "out")
    check_folders(tmp_path / "in", tmp_path / "out")
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None)
    for part in ("unet", "vae", "text_encoder"):
        found = getattr(again, part).state_dict()
        for name, tensor in getattr(theirs, part).state_dict().items():
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("kind", ["modelscope", "modelscope bounded", "animatediff", "animatediff of other groups"])
def test_text_to_video(kind, torch, libraries, tmp_path):
    theirs = text_to_video(torch, libraries, tmp_path, kind)
    ours = vdm_jax.from_pretrained(tmp_path / "in")
    noise = np.random.default_rng(0).normal(size=(1, 3, 8, 12, 4)).astype(np.float32)
    common = {"negative_prompt": "red", "height": 16, "width": 24, "num_frames": 3, "num_inference_steps": 4,
              "guidance_scale": 5.0}
    wanted = theirs("a red three", **common, output_type="np",
                    latents=torch.from_numpy(noise.transpose(0, 4, 1, 2, 3).copy())).frames
    found = ours("a red three", **common, latents=noise)
    assert np.abs(found.videos - 255 * np.asarray(wanted, np.float64)).max() <= 1
    ours.save_pretrained(tmp_path / "out")
    check_folders(tmp_path / "in", tmp_path / "out")
    again = type(theirs).from_pretrained(tmp_path / "out")
    for name, tensor in theirs.unet.state_dict().items():
        torch.testing.assert_close(again.unet.state_dict()[name], tensor, atol=1e-5 * name.endswith(".pe"), rtol=0)


@pytest.fixture(scope="module")
def video(torch, libraries, tmp_path_factory):
    """A pipeline like Stable Video Diffusion, and its folder."""
    diffusers, transformers = libraries
    folder = tmp_path_factory.mktemp("video")
    encoder = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=224,
        patch_size=56, projection_dim=32))
    extractor = transformers.CLIPImageProcessor(size={"shortest_edge": 224}, crop_size=224)
    pipeline = diffusers.StableVideoDiffusionPipeline(
        vae=shaken(torch, diffusers.AutoencoderKLTemporalDecoder(**{**VAE, "layers_per_block": 2})),
        image_encoder=shaken(torch, encoder),
        unet=shaken(torch, diffusers.UNetSpatioTemporalConditionModel(**VIDEO_UNET)),
        scheduler=diffusers.EulerDiscreteScheduler(**VIDEO), feature_extractor=extractor)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder / "in")
    return pipeline, folder


def picture(height, width, seed=0):
    from PIL import Image

    rows = np.random.default_rng(seed).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    return Image.fromarray(rows).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("frames, chunk, guidance, count", [(3, None, 3.0, 2), (4, 2, 1.0, 1), (1, None, 1.0, 1)])
def test_image_to_video(frames, chunk, guidance, count, torch, video, monkeypatch):
    theirs, folder = video
    ours = vdm_jax.from_pretrained(folder / "in")
    images = [picture(48, 40, seed) for seed in range(count)]
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(count, frames, 8, 12, 4)).astype(np.float32)
    on_picture = rng.normal(size=(count, 16, 24, 3)).astype(np.float32)
    module = __import__(type(theirs).__module__, fromlist=["x"])
    monkeypatch.setattr(module, "randn_tensor",
                        lambda shape, **_: torch.from_numpy(on_picture.transpose(0, 3, 1, 2).copy()).reshape(shape))
    common = {"height": 16, "width": 24, "num_frames": frames, "num_inference_steps": 4,
              "max_guidance_scale": guidance, "fps": 9, "motion_bucket_id": 80, "noise_aug_strength": 0.1,
              "decode_chunk_size": chunk}
    their_noise = torch.from_numpy(noise.transpose(0, 1, 4, 2, 3).copy())
    wanted = {kind: theirs(images, **common, output_type=kind, latents=their_noise).frames for kind in ("latent", "np")}
    latents = []
    ours.watch = lambda step, z: latents.append(z)
    found = ours(images, **common, latents=noise, image_noise=on_picture)
    reference = wanted["latent"].numpy().transpose(0, 1, 3, 4, 2)
    np.testing.assert_allclose(np.asarray(latents[-1]), reference, atol=2e-4 * np.abs(reference).max())
    assert np.abs(found.videos - 255 * np.asarray(wanted["np"], np.float64)).max() <= 1
    assert found.fps == {"video": 9.0}


def test_the_folder_of_videos_goes_there_and_back(torch, libraries, video, tmp_path):
    theirs, folder = video
    vdm_jax.from_pretrained(folder / "in").save_pretrained(tmp_path / "out")
    check_folders(folder / "in", tmp_path / "out")
    again = libraries[0].StableVideoDiffusionPipeline.from_pretrained(tmp_path / "out")
    for part in ("unet", "vae", "image_encoder"):
        found = getattr(again, part).state_dict()
        for name, tensor in getattr(theirs, part).state_dict().items():
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("height, width", [(300, 500), (100, 90), (224, 224), (576, 1024)])
def test_pictures_for_the_encoder(height, width, torch, video):
    theirs, _ = video
    module = __import__(type(theirs).__module__, fromlist=["x"])
    image = picture(height, width)
    pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 255).permute(2, 0, 1)[None]
    wanted = (module._resize_with_antialiasing(pixels * 2 - 1, (224, 224)) + 1) / 2
    found = for_encoder(open_pictures(image), 224, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    np.testing.assert_allclose(found[0], wanted[0].permute(1, 2, 0).numpy(), atol=2e-5)


def latent_consistency(torch, libraries, folder):
    """A pipeline like that of released latent consistency models, whose U-Net takes the weight, saved."""
    diffusers, _ = libraries
    unet = shaken(torch, diffusers.UNet2DConditionModel(**IMAGE_UNET, attention_head_dim=4, time_cond_proj_dim=16))
    return saved(diffusers.LatentConsistencyModelPipeline(
        **text_parts(torch, libraries, folder), unet=unet, scheduler=diffusers.LCMScheduler(**STABLE),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False), folder)


@pytest.mark.parametrize("scale", [1.0, 8.5], ids=["any U-Net", "the weight is an input"])
def test_latent_consistency(scale, torch, libraries, tmp_path, monkeypatch):
    if scale > 1:
        theirs = latent_consistency(torch, libraries, tmp_path)
    else:
        theirs = text_to_image(torch, libraries, tmp_path, "LCMScheduler", {}, attention_head_dim=4)
    ours = vdm_jax.from_pretrained(tmp_path / "in")
    keys = sample_keys(3, np.arange(1), 0)
    module, drawn = __import__(type(theirs.scheduler).__module__, fromlist=["x"]), iter(range(1, 9))
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: torch.from_numpy(np.array(noise_from_keys(
        keys, next(drawn), (1, 1, 8, 8, 4)))[:, 0].transpose(0, 3, 1, 2).copy()))
    noise = np.array(jax.jit(lambda keys: noise_from_keys(keys, 0, (1, 1, 8, 8, 4)))(keys))
    wanted = theirs("a red three", height=16, width=16, num_inference_steps=3, guidance_scale=scale, output_type="pt",
                    latents=torch.from_numpy(noise[:, 0].transpose(0, 3, 1, 2).copy())).images
    found = ours("a red three", height=16, width=16, num_inference_steps=3, guidance_scale=scale, seed=3)
    assert np.abs(found.videos - 255 * video_of(torch, wanted).astype(np.float64)).max() <= 1
    if scale > 1:
        other = ours("a red three", height=16, width=16, num_inference_steps=3, guidance_scale=1.0, seed=3)
        assert (other.videos != found.videos).any()
        with refused("negative_prompt", "'blue'", "takes the weight of guidance"):
            ours("a red three", negative_prompt="blue", height=16, width=16)


