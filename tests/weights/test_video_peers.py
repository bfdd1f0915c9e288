"""Video U-Nets, motion modules and ControlNets of diffusers: read here, outputs compared, written and read there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights.test_peers import IMAGE_UNET, UNET, close, frames, peer
from vdm_jax.networks.motion_adapter import join, part
from vdm_jax.weights.pretrained import Pretrained, load_pretrained, save_pretrained

pytestmark = pytest.mark.full
STACK = {**UNET, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "attention_head_dim": 8,
         "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")}
MOTION = {**UNET, "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"), "num_attention_heads": 4,
          "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"), "motion_num_attention_heads": 2,
          "motion_max_seq_length": 8}
ADAPTER = {"block_out_channels": (32, 64), "motion_layers_per_block": 1, "motion_num_attention_heads": 2,
           "motion_max_seq_length": 8}
# As many levels and blocks as the released models. Their deepest frames have one pixel here: groups of two channels
# would then be near +1 and -1 whatever they hold.
REAL = {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 2, "norm_num_groups": 8}
LEVELS = np.array([981.0, 3.0], np.float32)
SHAPES = [(3, 8, 12), (1, 8, 8), (2, 7, 10)]  # frames, rows, columns: several and one, and sides that do not halve


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def same_tensors(torch, found, wanted):
    """Weights are equal; codes of frames' numbers, which are computed on both sides, almost."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if name.endswith(".pe"):
            torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0)
        else:
            assert torch.equal(found[name], tensor), name


def check_way_back(torch, model, loaded, folder):
    """What we write is read there, and is what they wrote."""
    save_pretrained(folder, loaded)
    again = type(model).from_pretrained(folder).eval()
    same_tensors(torch, again.state_dict(), model.state_dict())
    return again


def latents(shape, channels=4, seed=0):
    """A batch of two clips and its text."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(2, *shape, channels)).astype(np.float32),
            rng.normal(size=(2, 1, 5, 24)).astype(np.float32))


def channels_second(torch, x):
    return torch.from_numpy(np.asarray(x).transpose(0, 4, 1, 2, 3).copy())


def theirs_of(torch, model, x, context, per_frame, **more):
    """Their output for our inputs, as our output is laid out."""
    text = np.repeat(context[:, 0], x.shape[1], axis=0) if per_frame else context[:, 0]
    return model(channels_second(torch, x), torch.from_numpy(LEVELS), torch.from_numpy(text),
                 **more).sample.permute(0, 2, 3, 4, 1)


def ours_of(loaded, x, context, **more):
    return jax.jit(lambda x: loaded.module.apply({"params": loaded.params}, x, LEVELS, context, **more))(x)


def real(types):
    """Options of a network with the released models' levels and blocks."""
    kinds = {name: [types[name][0 if name.startswith("down") else 1]] * 3 for name in ("down_block_types",
                                                                                       "up_block_types")}
    return {**types, **REAL, "down_block_types": (*kinds["down_block_types"], types["down_block_types"][1]),
            "up_block_types": (types["up_block_types"][0], *kinds["up_block_types"])}


@pytest.mark.parametrize("shape, options", [
    *((shape, STACK) for shape in SHAPES), ((2, 8, 8), real(STACK)),
], ids=["several", "one", "odd", "real"])
def test_modelscope(shape, options, torch, tmp_path):
    model = peer(torch, "diffusers", "UNet3DConditionModel", options)
    model.save_pretrained(tmp_path / "in")
    loaded = load_pretrained(tmp_path / "in")
    x, context = latents(shape)
    theirs = theirs_of(torch, model, x, context, False)
    close(ours_of(loaded, x, context), theirs)
    again = check_way_back(torch, model, loaded, tmp_path / "out")
    assert torch.equal(theirs_of(torch, again, x, context, False), theirs)


@pytest.mark.parametrize("shape, more", [
    (SHAPES[0], {"use_motion_mid_block": False}), (SHAPES[1], {}), (SHAPES[2], {"use_linear_projection": True}),
    ((2, 8, 8), real(MOTION)),
], ids=["v3", "v2", "linear", "real"])
def test_animatediff(shape, more, torch, tmp_path):
    model = peer(torch, "diffusers", "UNetMotionModel", {**MOTION, **more})
    model.save_pretrained(tmp_path / "in")
    loaded = load_pretrained(tmp_path / "in")
    x, context = latents(shape)
    theirs = theirs_of(torch, model, x, context, True)
    close(ours_of(loaded, x, context), theirs)
    again = check_way_back(torch, model, loaded, tmp_path / "out")
    torch.testing.assert_close(theirs_of(torch, again, x, context, True), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("middle", [True, False])
def test_an_image_network_and_a_motion_adapter_joined(middle, torch, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    image = peer(torch, "diffusers", "UNet2DConditionModel", {**IMAGE_UNET, "attention_head_dim": 4})
    adapter = peer(torch, "diffusers", "MotionAdapter", {**ADAPTER, "use_motion_mid_block": middle})
    image.save_pretrained(tmp_path / "image")
    adapter.save_pretrained(tmp_path / "adapter")
    first, second = load_pretrained(tmp_path / "image"), load_pretrained(tmp_path / "adapter")
    video = Pretrained(*join(first.config, first.params, second.config, second.params))
    x, context = latents(SHAPES[0])
    model = diffusers.UNetMotionModel.from_unet2d(image, adapter).eval()
    close(ours_of(video, x, context), theirs_of(torch, model, x, context, True))
    check_way_back(torch, model, video, tmp_path / "video")
    check_way_back(torch, adapter, Pretrained(*part(video.config, video.params)), tmp_path / "part")


@pytest.mark.parametrize("shape, options", [
    *((shape, IMAGE_UNET) for shape in SHAPES), ((2, 8, 8), real(IMAGE_UNET)),
], ids=["several", "one", "odd", "real"])
def test_control_net(shape, options, torch, tmp_path):
    options = {**options, "attention_head_dim": 4}
    image = peer(torch, "diffusers", "UNet2DConditionModel", options)
    own = {name: value for name, value in options.items() if name not in ("up_block_types", "sample_size")}
    model = peer(torch, "diffusers", "ControlNetModel", {**own, "conditioning_embedding_out_channels": (8, 16, 24)})
    image.save_pretrained(tmp_path / "image")
    model.save_pretrained(tmp_path / "in")
    first, loaded = load_pretrained(tmp_path / "image"), load_pretrained(tmp_path / "in")
    x, context = latents(shape)
    hint = np.random.default_rng(1).uniform(size=(2, shape[0], 4 * shape[1], 4 * shape[2], 3)).astype(np.float32)
    inputs = (torch.from_numpy(frames(x)), torch.from_numpy(np.repeat(LEVELS, shape[0])),
              torch.from_numpy(np.repeat(context[:, 0], shape[0], axis=0)))
    theirs = model(*inputs, torch.from_numpy(frames(hint)), conditioning_scale=0.7)
    ours = jax.jit(lambda x: loaded.module.apply({"params": loaded.params}, x, LEVELS, context, hint, scale=0.7))(x)
    for a, b in zip((*ours.skips, ours.middle), (*theirs.down_block_res_samples, theirs.mid_block_res_sample),
                    strict=True):
        close(frames(np.asarray(a)), b)
    prediction = image(*inputs, down_block_additional_residuals=theirs.down_block_res_samples,
                       mid_block_additional_residual=theirs.mid_block_res_sample).sample
    close(frames(np.asarray(ours_of(first, x, context, control=ours))), prediction)
    two = jax.tree.map(jnp.add, ours, ours)
    assert np.abs(ours_of(first, x, context, control=two) - ours_of(first, x, context)).max() > 0.01
    again = check_way_back(torch, model, loaded, tmp_path / "out")
    for a, b in zip(again(*inputs, torch.from_numpy(frames(hint)), conditioning_scale=0.7).down_block_res_samples,
                    theirs.down_block_res_samples, strict=True):
        assert torch.equal(a, b)
