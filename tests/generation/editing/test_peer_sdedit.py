"""SDEdit against the image-to-image pipelines of diffusers: the same picture, noise and prompt, by strength."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pipelines.test_peer_pipelines import IMAGE_UNET, STABLE, saved, shaken, text_parts, text_to_image
from vdm_jax.diffusion import inversion
from vdm_jax.generation.editing.edit import edit
from vdm_jax.generation.editing.sdedit import SDEdit
from vdm_jax.generation.released.models import load_released, with_size

pytestmark = pytest.mark.full
NOISE = np.random.default_rng(0).normal(size=(1, 1, 8, 12, 4)).astype(np.float32)
PICTURE = np.random.default_rng(1).integers(0, 256, (1, 1, 16, 24, 3)).astype(np.uint8)
DDIM = {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def libraries(torch):
    return pytest.importorskip("diffusers"), pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def same_noise(torch, libraries, monkeypatch):
    """Both begin with NOISE on the mode of the latents; theirs are otherwise drawn from their distribution."""
    from diffusers.pipelines.controlnet import pipeline_controlnet_img2img as with_maps
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as plain

    for module in (with_maps, plain):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: as_theirs(torch, NOISE))
        monkeypatch.setattr(module, "retrieve_latents", lambda found, **_: found.latent_dist.mode())
    monkeypatch.setattr(inversion, "noise_from_keys", lambda *_: jnp.asarray(NOISE))


def as_theirs(torch, video):
    """The first frames as their batch of pictures."""
    return torch.from_numpy(video[:, 0].transpose(0, 3, 1, 2).copy())


def compared(wanted, folder, strength, steps, **given):
    """Ours, within 1/255 of theirs."""
    ours = with_size(load_released(folder / "in", jax.devices()[:1]), height=16, width=24)
    found = edit(ours, PICTURE, "a red three", method=SDEdit(strength=strength), steps=steps, guidance_scale=4.0,
                 **given).videos
    wanted = np.asarray(wanted).transpose(0, 2, 3, 1)[:, None]
    assert np.abs(found - 255 * wanted.astype(np.float64)).max() <= 1
    return found


def repaired(pipeline):
    """Theirs cuts a list that has the second timestep twice, so that it begins a step early and then evaluates the
    network at the timestep after that of its latents; here the list is of the steps that are made."""
    def timesteps(steps, strength, device):
        every = pipeline.scheduler.timesteps.unique().flip(0)[steps - int(steps * strength):]
        return every[[0, 1, *range(1, len(every))]], len(every)

    pipeline.get_timesteps = timesteps


@pytest.mark.parametrize("name, options, strength, steps", [
    ("DDIMScheduler", DDIM, 0.5, 5),
    ("DDIMScheduler", DDIM, 1.0, 3),
    ("EulerDiscreteScheduler", {}, 0.6, 5),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, 0.6, 5),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}, 0.3, 16),  # of 16 steps the last ones keep their order
    ("UniPCMultistepScheduler", {"disable_corrector": [3]}, 0.6, 6),
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, 0.8, 6),
])
def test_strength_begins_where_theirs_does(name, options, strength, steps, torch, libraries, tmp_path):
    theirs = text_to_image(torch, libraries, tmp_path, name, options, attention_head_dim=4)
    theirs = libraries[0].StableDiffusionImg2ImgPipeline(**theirs.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    if name == "PNDMScheduler":
        repaired(theirs)
    wanted = theirs("a red three", image=as_theirs(torch, PICTURE) / 255, strength=strength, num_inference_steps=steps,
                    guidance_scale=4.0, output_type="pt").images
    compared(wanted, tmp_path, strength, steps)


def test_control_nets_act_in_a_share_of_the_steps_that_are_made(torch, libraries, tmp_path):
    diffusers, _ = libraries
    heads = {"attention_head_dim": 4}
    own = {name: value for name, value in IMAGE_UNET.items() if name not in ("up_block_types", "sample_size")}
    branch = diffusers.ControlNetModel(**own, **heads, conditioning_embedding_out_channels=(8, 16))
    for _ in range(2):  # so that maps show
        branch = shaken(torch, branch)
    parts = {**text_parts(torch, libraries, tmp_path), "controlnet": branch,
             "unet": shaken(torch, diffusers.UNet2DConditionModel(**IMAGE_UNET, **heads)),
             "scheduler": diffusers.DDIMScheduler(**STABLE, **DDIM), "safety_checker": None, "feature_extractor": None,
             "requires_safety_checker": False}
    saved(diffusers.StableDiffusionControlNetPipeline(**parts), tmp_path)
    theirs = diffusers.StableDiffusionControlNetImg2ImgPipeline(**parts)
    theirs.set_progress_bar_config(disable=True)
    maps = np.random.default_rng(2).integers(0, 256, PICTURE.shape).astype(np.uint8)
    given = {"image": as_theirs(torch, PICTURE) / 255, "control_image": as_theirs(torch, maps) / 255, "strength": 0.7,
             "num_inference_steps": 6, "guidance_scale": 4.0, "output_type": "pt"}
    found = []
    for end in (0.5, 1.0):
        wanted = theirs("a red three", **given, controlnet_conditioning_scale=0.8, control_guidance_end=end).images
        found.append(compared(wanted, tmp_path, 0.7, 6, control=maps, control_scale=0.8, control_start=0.0,
                              control_end=end))
    assert np.abs(found[0].astype(int) - found[1]).max() > 2
