"""LoRAs, ControlNets, T2I-Adapters and image prompts on small pipelines of diffusers: the same pictures from noise."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import vdm_jax
from tests.pipelines.test_peer_pipelines import (
    IMAGE_UNET,
    STABLE,
    check_folders,
    libraries,  # noqa: F401  (a fixture)
    saved,
    shaken,
    text_parts,
    text_to_image,
    text_to_video,
    torch,  # noqa: F401  (a fixture)
    video_of,
)
from tests.refusals import refused
from tests.weights.folders import tensors_of
from vdm_jax.networks.image_prompt import ImageProjection, ImagePromptAdapter, places
from vdm_jax.weights.lora_files import read_lora, target_of, write_lora
from vdm_jax.weights.pretrained import save_original

pytestmark = pytest.mark.full
COMMON = {"height": 16, "width": 24, "num_inference_steps": 4, "guidance_scale": 5.0}
DDIM = {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
PROMPTS = ["a red three", "moving left"]
RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=(2, 1, 8, 12, 4)).astype(np.float32)


def their_noise(torch, noise):  # noqa: F811
    return torch.from_numpy(noise.transpose(0, 4, 1, 2, 3).copy())


def close(torch, found, wanted):  # noqa: F811
    assert np.abs(found - 255 * video_of(torch, wanted).astype(np.float64)).max() <= 1


def frames_of(torch, videos):  # noqa: F811
    """Their videos `[B, T, C, H, W]` as ours."""
    return videos.detach().numpy().transpose(0, 1, 3, 4, 2)


def lora_tensors(targets, layout, seed, ranks=(3, 2)):
    """A LoRA file's tensors for some modules of each network, as the other programs call them: alpha 1 in kohya's."""
    rng, found = np.random.default_rng(seed), {}
    kinds = {"unet": ("to_q", "to_v", "ff.net.0.proj", "proj_in", "resnets.0.conv1", "time_emb_proj", "conv_in"),
             "text_encoder": ("q_proj", "out_proj", "fc1")}
    for network, target in targets.items():
        for theirs, ours in target.modules.items():
            if not theirs.endswith(kinds[network]):
                continue
            shape, rank = target.shapes[f"{ours}/kernel"], ranks[0]
            convolution = len(shape) == 5
            down = rng.normal(size=(rank, shape[-2], *(shape[1:3] if convolution else ()))).astype(np.float32)
            up = 0.2 * rng.normal(size=(shape[-1], rank, *((1, 1) if convolution else ()))).astype(np.float32)
            if layout == "kohya":
                name = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[network] + theirs.replace(".", "_")
                found |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up,
                          f"{name}.alpha": np.array(1.0, np.float32)}
            else:
                found |= {f"{network}.{theirs}.lora_A.weight": down, f"{network}.{theirs}.lora_B.weight": up}
    return found


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_lora_files(layout, torch, libraries, tmp_path):  # noqa: F811
    pytest.importorskip("peft")
    theirs = text_to_image(torch, libraries, tmp_path, "DDIMScheduler", DDIM, attention_head_dim=4)
    ours = vdm_jax.from_pretrained(tmp_path / "in")
    targets = {name: target_of(ours.models[name].config) for name in ("unet", "text_encoder")}
    for number in range(2):
        save_file(lora_tensors(targets if number else {"unet": targets["unet"]}, layout, number),
                  tmp_path / f"{number}.safetensors")
        theirs.load_lora_weights(tmp_path, weight_name=f"{number}.safetensors", adapter_name=f"n{number}")
    theirs.set_adapters(["n0", "n1"], [0.7, -0.4])
    given = {"latents": their_noise(torch, NOISE)[:, :, 0], "output_type": "pt"}
    wanted = theirs(PROMPTS, **COMMON, **given).images
    plain = ours(PROMPTS, **COMMON, latents=NOISE).videos
    files = {tmp_path / "0.safetensors": 0.7, tmp_path / "1.safetensors": -0.4}
    ours.use_loras(files)
    found = ours(PROMPTS, **COMMON, latents=NOISE).videos
    close(torch, found, wanted)
    assert np.abs(found.astype(int) - plain).max() > 5
    theirs.unload_lora_weights()
    ours.use_loras({})
    np.testing.assert_array_equal(ours(PROMPTS, **COMMON, latents=NOISE).videos, plain)
    # What is written here is read there.
    adapters = read_lora(tmp_path / "1.safetensors", targets)
    write_lora(tmp_path / "out.safetensors", {name: (targets[name], adapters[name]) for name in adapters}, layout)
    theirs.load_lora_weights(tmp_path, weight_name="out.safetensors", adapter_name="again")
    ours.use_loras({tmp_path / "1.safetensors": 1.0})
    close(torch, ours(PROMPTS, **COMMON, latents=NOISE).videos, theirs(PROMPTS, **COMMON, **given).images)
    if layout == "kohya":
        assert load_file(tmp_path / "out.safetensors").keys() == load_file(tmp_path / "1.safetensors").keys()


def test_motion_lora(torch, libraries, tmp_path):  # noqa: F811
    pytest.importorskip("peft")
    theirs = text_to_video(torch, libraries, tmp_path, "animatediff")
    ours = vdm_jax.from_pretrained(tmp_path / "in")
    target = target_of(ours.models["unet"].config)
    motion = target._replace(modules={name: path for name, path in target.modules.items()
                                      if "motion" in name and "attn" in name})  # as MotionLoRA has them
    save_file(lora_tensors({"unet": motion}, "diffusers", 0), tmp_path / "pan.safetensors")
    theirs.load_lora_weights(tmp_path, weight_name="pan.safetensors", adapter_name="pan")
    theirs.set_adapters(["pan"], [0.8])
    noise = np.random.default_rng(0).normal(size=(1, 4, 8, 8, 4)).astype(np.float32)
    common = {"height": 16, "width": 16, "num_inference_steps": 3, "guidance_scale": 4.0, "num_frames": 4}
    wanted = theirs("a red three", **common, latents=their_noise(torch, noise), output_type="pt").frames
    before = ours("a red three", **common, latents=noise).videos
    ours.use_loras({tmp_path / "pan.safetensors": 0.8})
    found = ours("a red three", **common, latents=noise).videos
    assert np.abs(found - 255 * frames_of(torch, wanted).astype(np.float64)).max() <= 1
    assert np.abs(found.astype(int) - before).max() > 5


def branch(torch, diffusers):  # noqa: F811
    own = {name: value for name, value in IMAGE_UNET.items() if name not in ("up_block_types", "sample_size")}
    net = diffusers.ControlNetModel(**own, attention_head_dim=4, conditioning_embedding_out_channels=(8, 16))
    for _ in range(2):  # so that maps show
        net = shaken(torch, net)
    return net


@pytest.mark.parametrize(("nets", "options"), [
    (1, {"control_guidance_start": 0.25, "control_guidance_end": 0.75}),
    (1, {"guess_mode": True, "controlnet_conditioning_scale": 0.8}),
    (2, {"controlnet_conditioning_scale": [1.0, 0.5], "control_guidance_start": [0.0, 0.5],
         "control_guidance_end": [0.75, 1.0]}),
    (2, {"guess_mode": True}),
])
def test_control_nets(nets, options, torch, libraries, tmp_path):  # noqa: F811
    diffusers, _ = libraries
    branches = [branch(torch, diffusers) for _ in range(nets)]
    with torch.no_grad():
        for net in branches[1:]:  # another one
            for parameter in net.parameters():
                parameter.mul_(0.8)
    theirs = saved(diffusers.StableDiffusionControlNetPipeline(
        **text_parts(torch, libraries, tmp_path), controlnet=branches if nets > 1 else branches[0],
        unet=shaken(torch, diffusers.UNet2DConditionModel(**IMAGE_UNET, attention_head_dim=4)),
        scheduler=diffusers.DDIMScheduler(**STABLE, **DDIM),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False), tmp_path)
    ours = vdm_jax.from_pretrained(tmp_path / "in")
    maps = [Image.fromarray(RNG.integers(0, 256, (16, 24, 3)).astype(np.uint8)) for _ in range(nets)]
    image = maps if nets > 1 else maps[0]
    wanted = theirs(PROMPTS, image=image, **COMMON, **options, output_type="pt",
                    latents=their_noise(torch, NOISE)[:, :, 0]).images
    found = ours(PROMPTS, image=image, **COMMON, **options, latents=NOISE).videos
    close(torch, found, wanted)
    plain = ours(PROMPTS, image=image, **COMMON, latents=NOISE).videos
    assert np.abs(found.astype(int) - plain).max() > 2
    ours.save_pretrained(tmp_path / "out")
    check_folders(tmp_path / "in", tmp_path / "out")


def test_animatediff_with_control_nets(torch, libraries, tmp_path):  # noqa: F811
    diffusers, _ = libraries
    adapter = shaken(torch, diffusers.MotionAdapter(
        block_out_channels=(32, 64), motion_layers_per_block=1, motion_num_attention_heads=2, motion_max_seq_length=8))
    theirs = saved(diffusers.AnimateDiffControlNetPipeline(
        **text_parts(torch, libraries, tmp_path), motion_adapter=adapter,
        controlnet=[branch(torch, diffusers) for _ in range(2)],
        unet=shaken(torch, diffusers.UNet2DConditionModel(**IMAGE_UNET, attention_head_dim=4)),
        scheduler=diffusers.EulerDiscreteScheduler(**{**STABLE, "beta_schedule": "linear"},
                                                   timestep_spacing="linspace")), tmp_path)
    ours = vdm_jax.from_pretrained(tmp_path / "in")
    maps = [[Image.fromarray(RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8)) for _ in range(4)] for _ in range(2)]
    noise = np.random.default_rng(0).normal(size=(1, 4, 8, 8, 4)).astype(np.float32)
    common = {"height": 16, "width": 16, "num_inference_steps": 4, "guidance_scale": 4.0, "num_frames": 4,
              "controlnet_conditioning_scale": [0.9, 0.4], "control_guidance_end": [1.0, 0.5]}
    wanted = theirs("a red three", conditioning_frames=maps, **common, latents=their_noise(torch, noise),
                    output_type="pt").frames
    found = ours("a red three", conditioning_frames=maps, **common, latents=noise).videos
    assert np.abs(found - 255 * frames_of(torch, wanted).astype(np.float64)).max() <= 1
    other = ours("a red three", conditioning_frames=[maps[0][::-1], maps[1]], **common, latents=noise).videos
    assert np.abs(other.astype(int) - found).max() > 2
    ours.save_pretrained(tmp_path / "out")
    check_folders(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(("light", "scales"), [(False, 0.8), (True, 1.0), (False, [1.0, 0.3])])
def test_t2i_adapters(light, scales, torch, libraries, tmp_path):  # noqa: F811
    diffusers, _ = libraries
    count = len(scales) if isinstance(scales, list) else 1
    sizes = {"channels": [32], "adapter_type": "light_adapter"} if light else {"channels": [32, 64]}
    unet = {**IMAGE_UNET, "block_out_channels": (32, 32)} if light else IMAGE_UNET
    adapters = [shaken(torch, diffusers.T2IAdapter(**sizes, in_channels=1 if light else 3, downscale_factor=2,
                                                   num_res_blocks=2)) for _ in range(count)]
    theirs = saved(diffusers.StableDiffusionAdapterPipeline(
        **text_parts(torch, libraries, tmp_path), adapter=adapters if count > 1 else adapters[0],
        unet=shaken(torch, diffusers.UNet2DConditionModel(**unet, attention_head_dim=4)),
        scheduler=diffusers.DDIMScheduler(**STABLE, **DDIM),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False), tmp_path)
    ours = vdm_jax.from_pretrained(tmp_path / "in")
    maps = [Image.fromarray(RNG.integers(0, 256, (16, 24) if light else (16, 24, 3)).astype(np.uint8))
            for _ in range(count)]
    image = maps if count > 1 else maps[0]
    wanted = theirs("a red three", image=image, **COMMON, adapter_conditioning_scale=scales, output_type="np",
                    latents=their_noise(torch, NOISE[:1])[:, :, 0]).images
    found = ours("a red three", image=image, **COMMON, adapter_conditioning_scale=scales, latents=NOISE[:1]).videos
    assert np.abs(found - 255 * wanted[:, None].astype(np.float64)).max() <= 1
    none = ours("a red three", image=image, **COMMON, adapter_conditioning_scale=0.0, latents=NOISE[:1]).videos
    assert np.abs(found.astype(int) - none).max() > 2
    ours.save_pretrained(tmp_path / "out")
    check_folders(tmp_path / "in", tmp_path / "out")


PROJECTIONS = {
    "summary": ImageProjection(width=20, tokens=4, token_channels=32),
    "plus": ImageProjection(width=24, tokens=4, token_channels=32, layers=4, hidden=64, heads=1),
    "full": ImageProjection(width=24, tokens=1, token_channels=32, perceptron=24),
    "faces": ImageProjection(width=12, tokens=4, token_channels=32, perceptron=24, vectors="faces")}


def image_prompt_adapter(folder, unet, kind):
    """An adapter's file with random weights, those of faces with a LoRA."""
    adapter = ImagePromptAdapter(projection=PROJECTIONS[kind], layers=tuple(places(unet).values()),
                                 rank=3 * (kind == "faces"))
    tensors = {name: 0.3 * tensor for name, tensor in tensors_of(adapter, seed=3).items()}
    folder.mkdir()
    save_file(tensors, folder / "ip-adapter.safetensors")
    return folder / "ip-adapter.safetensors"


def image_encoder(torch, transformers, folder):  # noqa: F811
    shaken(torch, transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=4,
        projection_dim=20))).save_pretrained(folder / "image_encoder")


@pytest.mark.parametrize("kind", ["summary", "plus", "full"])
def test_image_prompts(kind, torch, libraries, tmp_path):  # noqa: F811
    theirs = text_to_image(torch, libraries, tmp_path, "DDIMScheduler", DDIM, attention_head_dim=4)
    ours = vdm_jax.from_pretrained(tmp_path / "in")
    file = image_prompt_adapter(tmp_path / "adapter", ours.models["unet"].config, kind)
    image_encoder(torch, libraries[1], tmp_path / "adapter")
    theirs.load_ip_adapter(str(tmp_path / "adapter"), subfolder="", weight_name=file.name)
    theirs.set_ip_adapter_scale(0.6)
    picture = Image.fromarray(RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8))
    given = {"latents": their_noise(torch, NOISE)[:, :, 0], "output_type": "pt"}
    wanted = theirs(PROMPTS, ip_adapter_image=picture, **COMMON, **given).images
    plain = ours(PROMPTS, **COMMON, latents=NOISE).videos
    ours.use_image_prompts(file)
    found = ours(PROMPTS, image_prompt=picture, image_prompt_scale=0.6, **COMMON, latents=NOISE).videos
    close(torch, found, wanted)
    assert np.abs(found.astype(int) - plain).max() > 5
    for given in ({}, {"image_prompt": picture, "image_prompt_scale": 0}):  # the same bits
        np.testing.assert_array_equal(ours(PROMPTS, **given, **COMMON, latents=NOISE).videos, plain)
    save_original(tmp_path / "out.safetensors", ours.image_prompts.adapter)
    for name, tensor in load_file(tmp_path / "out.safetensors").items():
        np.testing.assert_array_equal(tensor, load_file(file)[name])
    ours.save_pretrained(tmp_path / "out")
    check_folders(tmp_path / "in", tmp_path / "out")


def test_vectors_of_faces_with_their_lora(torch, libraries, tmp_path):  # noqa: F811
    """Two faces, as any recogniser might give them; theirs come with those of no face."""
    theirs = text_to_image(torch, libraries, tmp_path, "DDIMScheduler", DDIM, attention_head_dim=4)
    ours = vdm_jax.from_pretrained(tmp_path / "in")
    file = image_prompt_adapter(tmp_path / "adapter", ours.models["unet"].config, "faces")
    theirs.load_ip_adapter(str(tmp_path / "adapter"), subfolder="", weight_name=file.name, image_encoder_folder=None)
    theirs.set_ip_adapter_scale(0.7)
    faces = RNG.normal(size=(2, 12)).astype(np.float32)
    both = torch.from_numpy(np.stack([np.zeros_like(faces), faces]))
    given = {"latents": their_noise(torch, NOISE[:1])[:, :, 0], "output_type": "pt"}
    wanted = theirs(PROMPTS[0], ip_adapter_image_embeds=[both], **COMMON, **given).images
    ours.use_image_prompts(file)
    np.save(tmp_path / "faces.npy", faces)
    for face in (faces, tmp_path / "faces.npy"):
        found = ours(PROMPTS[0], image_prompt=face, image_prompt_scale=0.7, **COMMON, latents=NOISE[:1]).videos
        close(torch, found, wanted)
    assert np.abs(found.astype(int) - ours(PROMPTS[0], **COMMON, latents=NOISE[:1]).videos).max() > 5
    with refused("image_prompt", "[2, 5]", "[M, 12]"):
        ours(PROMPTS[0], image_prompt=faces[:, :5], **COMMON, latents=NOISE[:1])


def test_animatediff_with_an_image_prompt(torch, libraries, tmp_path):  # noqa: F811
    theirs = text_to_video(torch, libraries, tmp_path, "animatediff")
    ours = vdm_jax.from_pretrained(tmp_path / "in")
    file = image_prompt_adapter(tmp_path / "adapter", ours.models["unet"].config, "summary")
    image_encoder(torch, libraries[1], tmp_path / "adapter")
    theirs.load_ip_adapter(str(tmp_path / "adapter"), subfolder="", weight_name=file.name)
    theirs.set_ip_adapter_scale(0.8)
    ours.use_image_prompts(file)
    picture = Image.fromarray(RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8))
    noise = np.random.default_rng(0).normal(size=(1, 4, 8, 8, 4)).astype(np.float32)
    common = {"height": 16, "width": 16, "num_inference_steps": 3, "guidance_scale": 4.0, "num_frames": 4}
    wanted = theirs("a red three", ip_adapter_image=picture, **common, latents=their_noise(torch, noise),
                    output_type="pt").frames
    found = ours("a red three", image_prompt=picture, image_prompt_scale=0.8, **common, latents=noise).videos
    assert np.abs(found - 255 * frames_of(torch, wanted).astype(np.float64)).max() <= 1
    assert np.abs(found.astype(int) - ours("a red three", **common, latents=noise).videos).max() > 5


@pytest.mark.parametrize("of_latents", [True, False])
def test_animatediff_with_sparse_control(of_latents, torch, libraries, tmp_path):  # noqa: F811
    diffusers, _ = libraries
    adapter = shaken(torch, diffusers.MotionAdapter(
        block_out_channels=(32, 64), motion_layers_per_block=1, motion_num_attention_heads=2, motion_max_seq_length=8))
    own = {name: value for name, value in IMAGE_UNET.items() if name not in ("up_block_types", "sample_size")}
    branch = diffusers.SparseControlNetModel(**{
        **own, "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion")}, attention_head_dim=4,
        motion_max_seq_length=8, motion_num_attention_heads=2, conditioning_channels=4 if of_latents else 3,
        use_simplified_condition_embedding=of_latents, conditioning_embedding_out_channels=(8, 16))
    for _ in range(2):  # so that maps show
        branch = shaken(torch, branch)
    parts = text_parts(torch, libraries, tmp_path)
    with torch.no_grad():  # they draw from what the autoencoder says of a picture: without deviation
        parts["vae"].quant_conv.weight[4:] = 0
        parts["vae"].quant_conv.bias[4:] = -60
    theirs = saved(diffusers.AnimateDiffSparseControlNetPipeline(
        **parts, motion_adapter=adapter, controlnet=branch,
        unet=shaken(torch, diffusers.UNet2DConditionModel(**IMAGE_UNET, attention_head_dim=4)),
        scheduler=diffusers.EulerDiscreteScheduler(**{**STABLE, "beta_schedule": "linear"},
                                                   timestep_spacing="linspace")), tmp_path)
    ours = vdm_jax.from_pretrained(tmp_path / "in")
    maps = [Image.fromarray(RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8)) for _ in range(2)]
    noise = np.random.default_rng(0).normal(size=(1, 4, 8, 8, 4)).astype(np.float32)
    common = {"height": 16, "width": 16, "num_inference_steps": 4, "guidance_scale": 4.0, "num_frames": 4,
              "controlnet_conditioning_scale": 0.9, "controlnet_frame_indices": [0, 2]}
    wanted = theirs("a red three", conditioning_frames=maps, **common, latents=their_noise(torch, noise),
                    output_type="pt").frames
    found = ours("a red three", conditioning_frames=maps, **common, latents=noise).videos
    assert np.abs(found - 255 * frames_of(torch, wanted).astype(np.float64)).max() <= 1
    other = ours("a red three", conditioning_frames=maps[::-1], **common, latents=noise).videos
    assert np.abs(other.astype(int) - found).max() > 2
    ours.save_pretrained(tmp_path / "out")
    check_folders(tmp_path / "in", tmp_path / "out")
