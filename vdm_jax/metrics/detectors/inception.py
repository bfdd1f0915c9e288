"""Inception-v3 (Szegedy et al. 2016, arXiv 1512.00567), the network behind FID and the Inception score.

Scores are those of one set of weights, `inception-2015-12-05`, in its 'fid' form: averages do not count the padding,
and the last block takes a maximum where the others take an average. The weights that torchvision publishes, in the
'torchvision' form, are another network. Batch statistics are folded into the convolutions when weights are read.
Arithmetic is float32 at the highest precision of the device.
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

Variant = Literal["fid", "torchvision"]
FILES = {"fid": weights.INCEPTION, "torchvision": weights.INCEPTION_TORCHVISION}
CLASSES = {"fid": 1008, "torchvision": 1000}

SIDE = 299  # pixels of height and of width
_EPSILON = 1e-3  # of the batch norms
# Parts of files that are no part of what is computed here: the second classifier, and counts of batches.
_LEFT_OUT = ("AuxLogits.", "num_batches_tracked")


class Unit(nn.Module):
    """Convolution, into which the batch norm is folded, then ReLU."""

    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 O"]:
        return nn.relu(nn.Conv(self.channels, self.kernel, self.stride, self.padding, name="conv",
                               precision=jax.lax.Precision.HIGHEST)(x))


class Inception(nn.Module):
    """Pictures [B, 299, 299, 3] in [-1, 1] to features after the last pooling [B, 2048] and logits of the classes."""

    variant: Variant = "fid"

    def _chain(self, x: Array, block: str, *units: tuple) -> Array:
        """Units one after the other: (name, channels, and where they are not (1, 1): kernel, stride, padding)."""
        for name, *spec in units:
            x = Unit(*spec, name=f"{block}.{name}" if block else name)(x)
        return x

    def _average(self, x: Array) -> Array:
        return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=self.variant == "torchvision")

    def _fine(self, x: Array, block: str, pooled: int) -> Array:  # 35x35
        return jnp.concatenate([
            self._chain(x, block, ("branch1x1", 64)),
            self._chain(x, block, ("branch5x5_1", 48), ("branch5x5_2", 64, (5, 5))),
            self._chain(x, block, ("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, (3, 3)),
                        ("branch3x3dbl_3", 96, (3, 3))),
            self._chain(self._average(x), block, ("branch_pool", pooled))], axis=-1)

    def _middle(self, x: Array, block: str, inner: int) -> Array:  # 17x17
        row, column = (1, 7), (7, 1)
        return jnp.concatenate([
            self._chain(x, block, ("branch1x1", 192)),
            self._chain(x, block, ("branch7x7_1", inner), ("branch7x7_2", inner, row), ("branch7x7_3", 192, column)),
            self._chain(x, block, ("branch7x7dbl_1", inner), ("branch7x7dbl_2", inner, column),
                        ("branch7x7dbl_3", inner, row), ("branch7x7dbl_4", inner, column),
                        ("branch7x7dbl_5", 192, row)),
            self._chain(self._average(x), block, ("branch_pool", 192))], axis=-1)

    def _coarse(self, x: Array, block: str, pooled: Array) -> Array:  # 8x8
        one = self._chain(x, block, ("branch3x3_1", 384))
        two = self._chain(x, block, ("branch3x3dbl_1", 448), ("branch3x3dbl_2", 384, (3, 3)))
        return jnp.concatenate([
            self._chain(x, block, ("branch1x1", 320)),
            self._chain(one, block, ("branch3x3_2a", 384, (1, 3))),
            self._chain(one, block, ("branch3x3_2b", 384, (3, 1))),
            self._chain(two, block, ("branch3x3dbl_3a", 384, (1, 3))),
            self._chain(two, block, ("branch3x3dbl_3b", 384, (3, 1))),
            self._chain(pooled, block, ("branch_pool", 192))], axis=-1)

    def _to_middle(self, x: Array, block: str) -> Array:
        return jnp.concatenate([
            self._chain(x, block, ("branch3x3", 384, (3, 3), 2, "VALID")),
            self._chain(x, block, ("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, (3, 3)),
                        ("branch3x3dbl_3", 96, (3, 3), 2, "VALID")),
            nn.max_pool(x, (3, 3), (2, 2))], axis=-1)

    def _to_coarse(self, x: Array, block: str) -> Array:
        return jnp.concatenate([
            self._chain(x, block, ("branch3x3_1", 192), ("branch3x3_2", 320, (3, 3), 2, "VALID")),
            self._chain(x, block, ("branch7x7x3_1", 192), ("branch7x7x3_2", 192, (1, 7)),
                        ("branch7x7x3_3", 192, (7, 1)), ("branch7x7x3_4", 192, (3, 3), 2, "VALID")),
            nn.max_pool(x, (3, 3), (2, 2))], axis=-1)

    @nn.compact
    def __call__(self, images: Float[Array, "B 299 299 3"]) -> tuple[Float[Array, "B 2048"], Float[Array, "B C"]]:
        x = self._chain(images, "", ("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
                        ("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"), ("Conv2d_2b_3x3", 64, (3, 3)))
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = self._chain(x, "", ("Conv2d_3b_1x1", 80), ("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"))
        x = nn.max_pool(x, (3, 3), (2, 2))
        for block, pooled in {"Mixed_5b": 32, "Mixed_5c": 64, "Mixed_5d": 64}.items():
            x = self._fine(x, block, pooled)
        x = self._to_middle(x, "Mixed_6a")
        for block, inner in {"Mixed_6b": 128, "Mixed_6c": 160, "Mixed_6d": 160, "Mixed_6e": 192}.items():
            x = self._middle(x, block, inner)
        x = self._to_coarse(x, "Mixed_7a")
        x = self._coarse(x, "Mixed_7b", self._average(x))
        last = nn.max_pool(x, (3, 3), padding="SAME") if self.variant == "fid" else self._average(x)
        pooled = self._coarse(x, "Mixed_7c", last).mean((1, 2))
        logits = nn.Dense(CLASSES[self.variant], precision=jax.lax.Precision.HIGHEST, name="fc")(pooled)
        return pooled, logits


@functools.cache
def parameters(variant: Variant = "fid") -> dict[str, Any]:
    """The trained parameters of `Inception`. Raises `UserError` as `weights.load` does."""
    check_value(variant, Variant, "variant")
    return from_published(weights.load(FILES[variant]), variant)


def from_published(arrays: Mapping[str, np.ndarray], variant: Variant) -> dict[str, Any]:
    """The parameters from the tensors of torchvision's `Inception3`, by their names there.

    Raises `UserError` naming the first tensor that is missing, too many, or of another shape.
    """
    arrays = {name: array for name, array in arrays.items() if not any(part in name for part in _LEFT_OUT)}
    used: set[str] = set()

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in arrays or arrays[name].shape != shape:
            there = f"has shape {arrays[name].shape}" if name in arrays else "is missing"
            raise UserError(f"tensor {name!r} of the Inception weights {there}; permitted: {shape}")
        used.add(name)
        return np.asarray(arrays[name], np.float64)

    params: dict[str, Any] = {}
    for name, tree in expected(variant).items():
        if name == "fc":
            kernel, bias = take("fc.weight", tree["kernel"].shape[::-1]).T, take("fc.bias", tree["bias"].shape)
            params[name] = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
            continue
        height, width, inputs, channels = tree["conv"]["kernel"].shape
        weight = take(f"{name}.conv.weight", (channels, inputs, height, width)).transpose(2, 3, 1, 0)
        scale, bias, mean, variance = (take(f"{name}.bn.{kind}", (channels,)) for kind in
                                       ("weight", "bias", "running_mean", "running_var"))
        scale = scale / np.sqrt(variance + _EPSILON)
        params[name] = {"conv": {"kernel": (weight * scale).astype(np.float32),
                                 "bias": (bias - mean * scale).astype(np.float32)}}
    if left := sorted(set(arrays) - used):
        raise UserError(f"tensor {left[0]!r} is not part of Inception ({variant}); permitted: {len(used)} known ones")
    return params


@functools.cache
def expected(variant: Variant) -> dict[str, Any]:
    """Names and shapes of the parameters."""
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    return jax.eval_shape(lambda x: Inception(variant).init(jax.random.key(0), x), image)["params"]
