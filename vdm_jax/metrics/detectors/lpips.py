"""LPIPS, the learned distance of two pictures (Zhang et al. 2018, arXiv 1801.03924), version 0.1, on AlexNet or VGG16.

Features after each of five layers are made unit vectors over the channels; their squared differences are weighted by
the trained heads, averaged over positions and added up. Arithmetic is float32 at the highest precision of the device.
The distance has a gradient everywhere, so that it also serves as a loss.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vdm_jax.configuration import check_value
from vdm_jax.errors import UserError
from vdm_jax.metrics.detectors import weights

Backbone = Literal["alexnet", "vgg16"]
FILES = {"alexnet": weights.ALEXNET, "vgg16": weights.VGG16}
LEAST_SIDE = {"alexnet": 31, "vgg16": 16}  # pixels; smaller pictures leave nothing after the strides

# The statistics of ImageNet for pictures in [-1, 1].
_MEAN, _DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

# (channels, side of the kernel, stride, padding); 'pool' is a maximum over 3x3 (AlexNet) or 2x2 (VGG16), stride 2.
_LAYERS = {
    "alexnet": ((64, 11, 4, 2), "pool", (192, 5, 1, 2), "pool", (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)),
    "vgg16": (*((64, 3, 1, 1),) * 2, "pool", *((128, 3, 1, 1),) * 2, "pool", *((256, 3, 1, 1),) * 3, "pool",
              *((512, 3, 1, 1),) * 3, "pool", *((512, 3, 1, 1),) * 3),
}
_WINDOW = {"alexnet": 3, "vgg16": 2}
_FEATURES = {"alexnet": (0, 1, 2, 3, 4), "vgg16": (1, 3, 6, 9, 12)}  # convolutions whose output is compared
_SCOPE = {"alexnet": "AlexNet_0", "vgg16": "VGG16_0"}  # in the published files


class Features(nn.Module):
    """What is compared: the outputs of five layers, from fine to coarse."""

    backbone: Backbone = "alexnet"

    @nn.compact
    def __call__(self, image: Float[Array, "N H W 3"]) -> list[Float[Array, "N H2 W2 C"]]:
        x = (image - jnp.array(_MEAN)) / jnp.array(_DEVIATION)
        outputs = []
        for layer in _LAYERS[self.backbone]:
            if layer == "pool":
                x = nn.max_pool(x, (_WINDOW[self.backbone],) * 2, (2, 2))
            else:
                channels, side, stride, padding = layer
                x = nn.relu(nn.Conv(channels, (side, side), (stride, stride), padding, name=f"Conv_{len(outputs)}",
                                    precision=jax.lax.Precision.HIGHEST)(x))
                outputs.append(x)
        return [outputs[number] for number in _FEATURES[self.backbone]]


def distance(
    params: Mapping[str, Any], one: Float[Array, "N H W 3"], other: Float[Array, "N H W 3"],
    backbone: Backbone = "alexnet",
) -> Float[Array, " N"]:
    """LPIPS of pictures in [-1, 1], picture by picture; `params` as `parameters` gives them.

    Raises:
      UserError: pictures of different shapes, or smaller than the backbone can see.
    """
    least = LEAST_SIDE[_checked(backbone)]
    if one.shape != other.shape or one.ndim != 4 or min(one.shape[1:3]) < least or one.shape[3] != 3:
        raise UserError(f"LPIPS {backbone} of pictures {list(one.shape)} and {list(other.shape)}; permitted: equal "
                        f"shapes [N, H, W, 3], H and W from {least} pixels")
    features = Features(backbone)
    total = jnp.zeros(len(one))
    for number, (a, b) in enumerate(zip(*(features.apply({"params": params["backbone"]}, x) for x in (one, other)),
                                        strict=True)):
        total += jnp.einsum("nhwc,c->nhw", (_unit(a) - _unit(b)) ** 2, params["heads"][number],
                            precision=jax.lax.Precision.HIGHEST).mean((1, 2))
    return total


def _unit(x: Array) -> Array:
    # The maximum keeps the root's gradient finite where all channels are zero, and changes no value there.
    return x / (jnp.sqrt(jnp.maximum((x**2).sum(-1, keepdims=True), 1e-20)) + 1e-10)


@functools.cache
def parameters(backbone: Backbone = "alexnet") -> dict[str, Any]:
    """Trained parameters: `backbone` of `Features`, `heads` as five vectors. Raises `UserError` as `weights.load`."""
    return from_published(weights.load(FILES[_checked(backbone)]), backbone)


def from_published(arrays: Mapping[str, np.ndarray], backbone: Backbone) -> dict[str, Any]:
    """The parameters from the arrays of the published file, by their names there. Raises `UserError` naming the first
    array that is missing, too many, or of another shape."""
    shapes = expected(backbone)
    names = {f"{_SCOPE[backbone]}/{layer}/{kind}": shape for layer, kinds in shapes.items()
             for kind, shape in kinds.items()}
    channels = [shapes[f"Conv_{number}"]["bias"][0] for number in _FEATURES[backbone]]
    heads = {f"NetLinLayer_{place}/Conv_0/kernel": (1, 1, count, 1) for place, count in enumerate(channels)}
    for name, shape in (names | heads).items():
        if name not in arrays or arrays[name].shape != shape:
            found = f"has shape {arrays[name].shape}" if name in arrays else "is missing"
            raise UserError(f"array {name!r} of the LPIPS weights {found}; permitted: {shape}")
    if left := sorted(set(arrays) - set(names) - set(heads)):
        raise UserError(f"array {left[0]!r} is not part of LPIPS {backbone}; permitted: "
                        f"{len(names) + len(heads)} known arrays")
    layers = {layer: {kind: np.asarray(arrays[f"{_SCOPE[backbone]}/{layer}/{kind}"], np.float32) for kind in kinds}
              for layer, kinds in shapes.items()}
    return {"backbone": layers, "heads": [np.asarray(arrays[name], np.float32).reshape(-1) for name in heads]}


def abstract_parameters(backbone: Backbone = "alexnet") -> dict[str, Any]:
    """The shapes of `parameters`, without their file."""
    shapes = expected(backbone)
    heads = [shapes[f"Conv_{number}"]["bias"] for number in _FEATURES[backbone]]
    return jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), {"backbone": shapes, "heads": heads},
                        is_leaf=lambda leaf: isinstance(leaf, tuple))


def expected(backbone: Backbone) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of the backbone's parameters, by layer."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    tree = jax.eval_shape(lambda x: Features(backbone).init(jax.random.key(0), x), image)["params"]
    return jax.tree.map(lambda leaf: leaf.shape, tree)


def _checked(backbone: str) -> str:
    check_value(backbone, Backbone, "backbone")
    return backbone
