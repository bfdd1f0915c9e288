"""C3D (Tran et al. 2015, arXiv 1412.0767), trained on Sports-1M and then on UCF101: the network behind the Inception
score and the Frechet distance that papers report on UCF101 (Saito et al. 2020, TGAN v2, arXiv 1811.09245).

It sees 16 frames of 112x112 pixels as Caffe stored them: blue first, in [0, 255], less the mean of its training clips.
Arithmetic is float32 at the highest precision of the device.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float, UInt8

from vdm_jax.errors import UserError
from vdm_jax.metrics.detectors import i3d, weights

FRAMES, SIDE = 16, 112  # that it sees
CLASSES = 101
_MEAN_SHAPE, _MEAN_CORNER = (3, FRAMES, 128, 171), 8  # stored mean; where TGAN v2 cuts 112x112 pixels from it

# Channels of the convolutions in multiples of the first one's; a number alone is a pooling of that many frames.
_LAYERS = (("conv1a", 1), 1, ("conv2a", 2), 2, ("conv3a", 4), ("conv3b", 4), 2, ("conv4a", 8), ("conv4b", 8), 2,
           ("conv5a", 8), ("conv5b", 8), 2)
# Names that ports to PyTorch give to the first two.
_ALSO = {"conv1": "conv1a", "conv2": "conv2a"}


class C3D(nn.Module):
    """Prepared clips [B, 16, 112, 112, 3] to the features before the classifier [B, hidden]. Sizes are those of the
    published network; tests take smaller ones."""

    width: int = 64  # channels of the first convolution
    hidden: int = 4096

    @nn.compact
    def __call__(self, clips: Float[Array, "B 16 H W 3"]) -> Float[Array, "B F"]:
        x = clips
        for layer in _LAYERS:
            if isinstance(layer, int):
                # Windows begin at the first pixel and the last one may be cut off, as in Caffe.
                x = nn.max_pool(x, (layer, 2, 2), (layer, 2, 2), "SAME")
            else:
                name, times = layer
                x = i3d.Unit(times * self.width, (3, 3, 3), name=name)(x)
        x = x.reshape(len(x), -1)
        for name in ("fc6", "fc7"):
            x = nn.relu(nn.Dense(self.hidden, precision=jax.lax.Precision.HIGHEST, name=name)(x))
        return x


def prepared(
    clips: UInt8[ArrayLike, "B 16 H W 3"], mean: Float[ArrayLike, "16 112 112 3"]
) -> Float[Array, "B 16 112 112 3"]:
    """What C3D sees of clips: resized between the centres of the corner pixels, blue first, less the mean (of that
    order). TGAN v2 multiplies [-1, 1] by 128, so white is 256."""
    rows, columns = (jnp.asarray(_between_corners(size)) for size in clips.shape[2:4])
    large = jnp.einsum("yh,bthwc,xw->btyxc", rows, jnp.asarray(clips, jnp.float32), columns,
                       precision=jax.lax.Precision.HIGHEST)
    return large[..., ::-1] * (256 / 255) - mean


def _between_corners(before: int) -> Float[np.ndarray, "112 before"]:
    """The matrix of linear interpolation where the first and the last pixels stay in place."""
    place = np.linspace(0, before - 1, SIDE)
    left = np.minimum(place.astype(int), max(before - 2, 0))
    matrix = np.zeros((SIDE, before), np.float32)
    np.add.at(matrix, (np.arange(SIDE), left), 1 - (place - left))
    np.add.at(matrix, (np.arange(SIDE), np.minimum(left + 1, before - 1)), place - left)
    return matrix


@functools.cache
def parameters() -> dict[str, Any]:
    """Trained parameters: `network` of `C3D`, `classifier` (kernel, bias) and `mean`.

    The mean is a file next to the weights, or the tensor `mean` of `c3d_ucf101.safetensors`. Raises `UserError` as
    `weights.load` does.
    """
    arrays = dict(weights.load(weights.C3D))
    mean = arrays.pop("mean", None)
    mean = weights.load(weights.C3D_MEAN).get("mean") if mean is None else mean
    return from_published(arrays, mean)


def from_published(arrays: Mapping[str, np.ndarray], mean: np.ndarray | None, width: int = 64, hidden: int = 4096,
                   ) -> dict[str, Any]:
    """The parameters from arrays `conv1a/W`, `conv1a/b` (TGAN v2) or `conv1.weight`, `conv1.bias` (PyTorch).

    Raises `UserError` naming the first array that is missing, too many, or of another shape.
    """
    arrays = {_canonical(name): array for name, array in arrays.items()}
    if mean is None or np.size(mean) != np.prod(_MEAN_SHAPE):
        raise UserError(f"the mean of C3D is {None if mean is None else list(np.shape(mean))}; permitted: "
                        f"{list(_MEAN_SHAPE)}")
    shapes = _expected(width, hidden)
    sizes = {name: leaf["conv"]["kernel"].shape if "conv" in leaf else leaf["kernel"].shape
             for name, leaf in shapes.items()} | {"fc8": (hidden, CLASSES)}
    params: dict[str, Any] = {}
    for name, size in sizes.items():
        theirs = (size[4], size[3], *size[:3]) if len(size) == 5 else size[::-1]
        for kind, shape in ((f"{name}.weight", theirs), (f"{name}.bias", size[-1:])):
            if kind not in arrays or arrays[kind].shape != shape:
                there = f"has shape {arrays[kind].shape}" if kind in arrays else "is missing"
                raise UserError(f"array {kind!r} of the C3D weights {there}; permitted: {shape}")
        weight, bias = (np.asarray(arrays.pop(f"{name}.{kind}"), np.float32) for kind in ("weight", "bias"))
        if len(size) == 5:
            params[name] = {"conv": {"kernel": weight.transpose(2, 3, 4, 1, 0), "bias": bias}}
        elif name == "fc6":  # its inputs are channels, rows, columns there and rows, columns, channels here
            turned = weight.reshape(hidden, -1, 4, 4).transpose(2, 3, 1, 0)
            params[name] = {"kernel": turned.reshape(size), "bias": bias}
        else:
            params[name] = {"kernel": weight.T, "bias": bias}
    if arrays:
        raise UserError(f"array {min(arrays)!r} is not part of C3D; permitted: {2 * len(sizes)} known arrays")
    seen = slice(_MEAN_CORNER, _MEAN_CORNER + SIDE)
    cut = np.reshape(mean, _MEAN_SHAPE)[:, :, seen, seen].transpose(1, 2, 3, 0)
    classifier = params.pop("fc8")
    return {"network": params, "classifier": classifier, "mean": np.asarray(cut, np.float32)}


def _canonical(name: str) -> str:
    module, _, kind = name.replace("/", ".").rpartition(".")
    return f"{_ALSO.get(module, module)}.{ {'W': 'weight', 'b': 'bias'}.get(kind, kind)}"


@functools.cache
def _expected(width: int, hidden: int) -> dict[str, Any]:
    clip = jax.ShapeDtypeStruct((1, FRAMES, SIDE, SIDE, 3), jnp.float32)
    return jax.eval_shape(lambda x: C3D(width, hidden).init(jax.random.key(0), x), clip)["params"]
