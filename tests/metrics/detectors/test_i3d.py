"""I3D: the names and shapes of its weights, and agreement with a network in PyTorch."""

import jax
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import generate_clip
from vdm_jax.metrics.detectors import i3d, weights
from vdm_jax.metrics.fvd import prepared


def test_every_published_array_has_its_place(trained):
    arrays = dict(weights.load(trained(weights.I3D)))
    params = i3d.parameters()
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, i3d.expected())
    # Folding in double precision: the first convolution and its norm, channel by channel.
    norm = {name: arrays[f"batch_stats/Conv3d_1a_7x7/BatchNorm_0/{name}"].reshape(-1) for name in ("mean", "var")}
    scale = 1 / np.sqrt(norm["var"].astype(np.float64) + 1e-3)
    np.testing.assert_allclose(params["Conv3d_1a_7x7"]["conv"]["bias"],
                               arrays["params/Conv3d_1a_7x7/BatchNorm_0/bias"] - norm["mean"] * scale, rtol=1e-5)
    gone = "params/Mixed_4d/Branch_1/Conv3d_0b_3x3/Conv_0/kernel"
    with refused("i3d.from_published.take", repr(gone)):
        i3d.from_published({name: array for name, array in arrays.items() if name != gone})
    with refused("i3d.from_published", "'extra'", "230"):
        i3d.from_published(arrays | {"extra": np.ones(1)})
    arrays["params/Conv3d_2b_1x1/Conv_0/kernel"] = np.ones((64, 64))
    with refused("i3d.from_published.take", "64", "1"):
        i3d.from_published(arrays)


@pytest.mark.parametrize(("frames", "stride", "kernel"), [(5, 2, 7), (4, 2, 3), (5, 1, 3)])
def test_folded_convolutions_are_convolutions_in_three_dimensions(frames, stride, kernel):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, frames, 6, 5, 3)).astype(np.float32)
    module = i3d.Convolution(4, (kernel,) * 3, (stride,) * 3)
    params = module.init(jax.random.key(0), x)
    expected = jax.lax.conv_general_dilated(x, params["params"]["kernel"], (stride,) * 3, "SAME",
                                            dimension_numbers=("NTHWC", "THWIO", "NTHWC"))
    np.testing.assert_allclose(module.apply(params, x), expected, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("clip", ["noise of 9 frames", "noise of 16 frames", "digits"])
def test_torch_agrees(trained, clip):
    torch = pytest.importorskip("torch", reason="compares with PyTorch (requirements/peers.txt)")
    arrays = {name: torch.tensor(array) for name, array in weights.load(trained(weights.I3D)).items()}
    functional = torch.nn.functional

    def padded(x, window, strides, value):
        sides = []
        for size, side, stride in zip(x.shape[:1:-1], window[::-1], strides[::-1], strict=True):
            around = max((-(-size // stride) - 1) * stride + side - size, 0)
            sides += [around // 2, around - around // 2]
        return functional.pad(x, sides, value=value)

    def pool(x, window, strides):
        return functional.max_pool3d(padded(x, window, strides, -torch.inf), window, strides)

    def unit(x, name, stride=1):
        kernel = arrays[f"params/{name}/Conv_0/kernel"].permute(4, 3, 0, 1, 2)
        x = functional.conv3d(padded(x, kernel.shape[2:], (stride,) * 3, 0.0), kernel, stride=stride)
        mean, var = (arrays[f"batch_stats/{name}/BatchNorm_0/{kind}"].reshape(-1) for kind in ("mean", "var"))
        bias = arrays[f"params/{name}/BatchNorm_0/bias"]
        return functional.relu(functional.batch_norm(x, mean, var, None, bias, eps=1e-3))

    def block(x, name):
        return torch.cat([
            unit(x, f"{name}/Branch_0/Conv3d_0a_1x1"),
            unit(unit(x, f"{name}/Branch_1/Conv3d_0a_1x1"), f"{name}/Branch_1/Conv3d_0b_3x3"),
            unit(unit(x, f"{name}/Branch_2/Conv3d_0a_1x1"), f"{name}/Branch_2/Conv3d_0b_3x3"),
            unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{name}/Branch_3/Conv3d_0b_1x1")], 1)

    if clip == "digits":
        digits = generate_clip(CaptionedDigits(), "test", 0).video
        video = np.asarray(prepared(digits[None], "bilinear_half_pixel"))
    else:
        frames = int(clip.split()[2])
        video = np.random.default_rng(0).uniform(-1, 1, (1, frames, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        x = pool(unit(torch.tensor(video).permute(0, 4, 1, 2, 3), "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
        x = pool(unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
        for name in ("3b", "3c", "pool 3", "4b", "4c", "4d", "4e", "4f", "pool 2", "5b", "5c"):
            side = int(name[-1]) if "pool" in name else 0
            x = pool(x, (side,) * 3, (2, 2, 2)) if side else block(x, f"Mixed_{name}")
        x = functional.avg_pool3d(x, (2, 7, 7), 1)
        kernel = arrays["params/Logits/Conv3d_0c_1x1/Conv_0/kernel"].permute(4, 3, 0, 1, 2)
        logits = functional.conv3d(x, kernel, arrays["params/Logits/Conv3d_0c_1x1/Conv_0/bias"]).mean((2, 3, 4))
    ours = jax.jit(i3d.I3D().apply)({"params": i3d.parameters()}, video)
    np.testing.assert_allclose(ours, logits.numpy(), atol=1e-4)
