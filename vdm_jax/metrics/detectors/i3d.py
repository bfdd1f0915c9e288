"""I3D, the network behind the Frechet video distance: Inception inflated to three dimensions (Carreira and Zisserman
2017, arXiv 1705.07750), trained on Kinetics-400, with the weights of the module `deepmind/i3d-kinetics-400/1`.

The batch statistics are fixed, so they are folded into the convolutions when the weights are read. Arithmetic is
float32 at the highest precision of the device: lower ones move scores.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vdm_jax.errors import UserError
from vdm_jax.metrics.detectors import weights

SIDE = 224  # pixels of height and of width
LEAST_FRAMES = 9  # fewer leave less than the last pooling window, of 2 frames, after three strides of 2
CLASSES = 400
_EPSILON = 1e-3  # of the batch norms

# Channels of an Inception block: 1x1x1; 1x1x1 then 3x3x3; 1x1x1 then 3x3x3; pooling then 1x1x1.
_MIXED = {
    "3b": (64, 96, 128, 16, 32, 32), "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64), "4c": (160, 112, 224, 24, 64, 64), "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64), "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128), "5c": (384, 192, 384, 48, 128, 128),
}


class Convolution(nn.Module):
    """'Same' convolution as TensorFlow pads it: the odd element comes last. Neighbouring frames become channels, and
    frames a batch, which a CPU does more than twice as fast as a convolution in three dimensions."""

    channels: int
    kernel: tuple[int, int, int] = (1, 1, 1)
    strides: tuple[int, int, int] = (1, 1, 1)

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        (batch, frames), taps, stride = x.shape[:2], self.kernel[0], self.strides[0]
        shape = (*self.kernel, x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        if taps > 1:
            count = -(-frames // stride)
            around = max((count - 1) * stride + taps - frames, 0)
            x = jnp.pad(x, ((0, 0), (around // 2, around - around // 2), (0, 0), (0, 0), (0, 0)))
            x = jnp.concatenate([x[:, i : i + (count - 1) * stride + 1 : stride] for i in range(taps)], axis=-1)
        y = jax.lax.conv_general_dilated(
            rearrange(x, "b t h w c -> (b t) h w c"), rearrange(kernel, "kt kh kw c o -> kh kw (kt c) o"),
            self.strides[1:], "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST)
        return rearrange(y, "(b t) h w c -> b t h w c", b=batch) + bias


class Unit(nn.Module):
    """Convolution, into which the batch norm is folded, then ReLU."""

    channels: int
    kernel: tuple[int, int, int] = (1, 1, 1)
    strides: tuple[int, int, int] = (1, 1, 1)

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        return nn.relu(Convolution(self.channels, self.kernel, self.strides, name="conv")(x))


class Mixed(nn.Module):
    """An Inception block: four branches side by side."""

    channels: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W O"]:
        one, before_two, two, before_three, three, four = self.channels
        pooled = nn.max_pool(x, (3, 3, 3), padding="SAME")
        return jnp.concatenate([
            Unit(one, name="Branch_0/Conv3d_0a_1x1")(x),
            Unit(two, (3, 3, 3), name="Branch_1/Conv3d_0b_3x3")(Unit(before_two, name="Branch_1/Conv3d_0a_1x1")(x)),
            Unit(three, (3, 3, 3), name="Branch_2/Conv3d_0b_3x3")(
                Unit(before_three, name="Branch_2/Conv3d_0a_1x1")(x)),
            Unit(four, name="Branch_3/Conv3d_0b_1x1")(pooled),
        ], axis=-1)


class I3D(nn.Module):
    """Videos in [-1, 1] to class logits averaged over time (the tensor `RGB/inception_i3d/Mean:0`)."""

    @nn.compact
    def __call__(self, video: Float[Array, "B T 224 224 3"]) -> Float[Array, "B 400"]:
        def mixed(x: Array, group: str) -> Array:
            for name, channels in _MIXED.items():
                x = Mixed(channels, name=f"Mixed_{name}")(x) if name.startswith(group) else x
            return x

        x = Unit(64, (7, 7, 7), (2, 2, 2), name="Conv3d_1a_7x7")(video)
        x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
        x = Unit(64, name="Conv3d_2b_1x1")(x)
        x = Unit(192, (3, 3, 3), name="Conv3d_2c_3x3")(x)
        x = mixed(nn.max_pool(x, (1, 3, 3), (1, 2, 2), "SAME"), "3")
        x = mixed(nn.max_pool(x, (3, 3, 3), (2, 2, 2), "SAME"), "4")
        x = mixed(nn.max_pool(x, (2, 2, 2), (2, 2, 2), "SAME"), "5")
        x = nn.avg_pool(x, (2, 7, 7))
        x = Convolution(CLASSES, name="Logits/Conv3d_0c_1x1")(x)
        return x.mean((1, 2, 3))


@functools.cache
def parameters() -> dict[str, Any]:
    """The trained parameters of `I3D`. Raises `UserError` as `weights.load` does."""
    return from_published(weights.load(weights.I3D))


def from_published(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters of `I3D` from the arrays of the published file, by their names there.

    Raises `UserError` naming the first array that is missing, too many, or of another shape.
    """
    arrays = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    used: set[str] = set()

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in arrays or arrays[name].shape not in (shape, (1, 1, 1, 1, *shape)):
            found = f"has shape {arrays[name].shape}" if name in arrays else "is missing"
            raise UserError(f"array {name!r} of the I3D weights {found}; permitted: {shape}")
        used.add(name)
        return arrays[name].reshape(shape)

    def convolution(path: tuple[str, ...], kernel: Any) -> dict[str, np.ndarray]:
        name = "/".join(path)
        weight, channels = take(f"params/{name}/Conv_0/kernel", kernel.shape), kernel.shape[-1:]
        if path[0].startswith("Logits"):
            return {"kernel": weight, "bias": take(f"params/{name}/Conv_0/bias", channels)}
        norm = f"{name}/BatchNorm_0"
        scale = 1 / np.sqrt(take(f"batch_stats/{norm}/var", channels) + _EPSILON)
        bias = take(f"params/{norm}/bias", channels) - take(f"batch_stats/{norm}/mean", channels) * scale
        return {"kernel": weight * scale, "bias": bias}

    def fill(tree: Any, path: tuple[str, ...]) -> Any:
        if "kernel" in tree:
            return {name: array.astype(np.float32) for name, array in convolution(path, tree["kernel"]).items()}
        return {name: fill(inner, (*path, name) if name != "conv" else path) for name, inner in tree.items()}

    result = fill(expected(), ())
    if left := sorted(set(arrays) - used):
        raise UserError(f"array {left[0]!r} is not part of I3D; permitted: {len(used)} known arrays")
    return result


def expected() -> dict[str, Any]:
    """Names and shapes of the parameters."""
    video = jax.ShapeDtypeStruct((1, LEAST_FRAMES, SIDE, SIDE, 3), jnp.float32)
    return jax.eval_shape(lambda v: I3D().init(jax.random.key(0), v), video)["params"]
