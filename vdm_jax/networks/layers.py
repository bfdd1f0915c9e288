"""Layers with canonical 3-D kernels, executed in the folded forms that compilers like.

A 1 x k x k kernel runs as a 2-D convolution with time folded into the batch, a k x 1 x 1 kernel as a 1-D convolution
with space folded into the batch, a full kernel as one 2-D convolution over time-concatenated channels. The parameters
keep the canonical shape `(kt, kh, kw, Cin, Cout)` whatever the execution, so weights mean the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from vdm_jax.networks.sharded_convolution import sharded_convolve
from vdm_jax.parallel.compiling import target_platform
from vdm_jax.parallel.rules import batch_parts, shard_along

Initializer = Callable[..., Array]
fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
zeros = nn.initializers.zeros_init()
PIECE = 3072  # positions whose share of a kernel's gradient is computed at a time on CPU
WINDOW = 256  # positions of a frame from which on that pays


def convolve(
    x: Float[Array, "B T H W C"], kernel: Float[Array, "kt kh kw C O"], strides: tuple[int, int] = (1, 1),
    causal: bool = False, replicate: bool = False,
) -> Float[Array, "B T H2 W2 O"]:
    """'Same' convolution over space and time with a canonical kernel; spatial strides only. A causal one sees no later
    frames: the last tap is then the frame itself. Frames beyond the ends of a clip are zero, or the first and the last
    one again (`replicate`)."""
    kt, kh, kw, _, _ = kernel.shape
    around = (kt - 1, 0) if causal else ((kt - 1) // 2, kt // 2)  # frames of padding
    batch, frames, height, width = x.shape[:4]
    if replicate:
        x, around = jnp.pad(x, ((0, 0), around, (0, 0), (0, 0), (0, 0)), mode="edge"), (0, 0)
    if kt == kh == kw == 1 and strides == (1, 1):
        return x @ kernel[0, 0, 0]
    if kt > 1 and kh == kw == 1 and strides == (1, 1):
        y = lax.conv_general_dilated(
            rearrange(x, "b t h w c -> (b h w) t c"), kernel[:, 0, 0], (1,), [around],
            dimension_numbers=("NWC", "WIO", "NWC"))
        return rearrange(y, "(b h w) t c -> b t h w c", b=batch, h=height, w=width)
    if kt > 1:  # neighbouring frames become channels
        pad = jnp.pad(x, ((0, 0), around, (0, 0), (0, 0), (0, 0)))
        x = jnp.concatenate([pad[:, i : i + frames] for i in range(kt)], axis=-1)
        kernel = rearrange(kernel, "kt kh kw c o -> 1 kh kw (kt c) o")
    y = convolve_frames(rearrange(x, "b t h w c -> (b t) h w c"), kernel[0], strides)
    return rearrange(y, "(b t) h w c -> b t h w c", b=batch)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def convolve_frames(
    x: Float[Array, "N H W C"], kernel: Float[Array, "kh kw C O"], strides: tuple[int, int]
) -> Float[Array, "N H2 W2 O"]:
    """'Same' convolution of frames. On CPU its gradient with respect to the kernel is a sum over pieces of rows.

    XLA computes that gradient as a convolution with a window as large as the frame. On a CPU, pieces that stay in the
    cache take as long as the forward pass, the whole 2.4 to 2.7 times as long at 32x32 and 64x64
    (`experiments/baselines/`). The rule is a tangent, so forward mode and higher derivatives work too.
    """
    return _whole(x, kernel, strides)


def _tangent(strides: tuple[int, int], primals: tuple[Array, Array], tangents: tuple) -> tuple[Array, Array]:
    """Plain convolutions, which the policies of rematerialisation know."""
    (x, kernel), (dx, dkernel) = primals, tangents
    y, dy = _whole(x, kernel, strides), 0
    if not isinstance(dx, SymbolicZero):
        dy += _whole(dx, kernel, strides)
    if not isinstance(dkernel, SymbolicZero):
        dy += _in_pieces(x, dkernel, strides)
    return y, dy


convolve_frames.defjvp(_tangent, symbolic_zeros=True)


def _whole(x: Array, kernel: Array, strides: tuple[int, int]) -> Array:
    kh, kw = kernel.shape[:2]
    return lax.conv_general_dilated(x, kernel, strides, [((kh - 1) // 2, kh // 2), ((kw - 1) // 2, kw // 2)],
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _in_pieces(x: Array, kernel: Array, strides: tuple[int, int]) -> Array:
    """The same values, written so that the transpose with respect to the kernel adds up pieces of rows."""
    kh, height = kernel.shape[0], x.shape[1]
    rows = _rows_per_piece(x.shape)
    if strides != (1, 1) or rows >= height:
        return _whole(x, kernel, strides)
    x = jnp.pad(x, ((0, 0), ((kh - 1) // 2, kh // 2), (0, 0), (0, 0)))
    sides = (0, 0), ((kernel.shape[1] - 1) // 2, kernel.shape[1] // 2)
    return jnp.concatenate([
        lax.conv_general_dilated(x[:, row : min(row + rows, height) + kh - 1], kernel, (1, 1), sides,
                                 dimension_numbers=("NHWC", "HWIO", "NHWC"))
        for row in range(0, height, rows)], axis=1)


def _rows_per_piece(shape: tuple[int, int, int, int]) -> int:
    """Rows of a piece of about `PIECE` positions per device on CPU; all rows elsewhere, where a device may hold a part
    of them, and of small frames, whose windows are small."""
    frames, height, width, _ = shape
    mesh = jax.sharding.get_abstract_mesh()
    if target_platform() != "cpu" or mesh.shape.get("context", 1) > 1 or height * width < WINDOW:
        return height
    parts = 1 if mesh.empty else batch_parts(mesh)
    return max(PIECE * parts // (frames * width), 2)


def identity(causal: bool) -> Initializer:
    """Initial value of a `(kt, 1, 1, C, C)` kernel that leaves every frame as it is.

    Of a causal convolution that is the last tap: with the centre one it would delay by `(kt - 1) / 2` frames.
    """

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        tap = shape[0] - 1 if causal else (shape[0] - 1) // 2
        return jnp.zeros(shape, dtype).at[tap, 0, 0].set(jnp.eye(*shape[-2:], dtype=dtype))

    return init


class Convolution(nn.Module):
    """Convolution with a canonical kernel `(kt, kh, kw)` and 'same' padding.

    With `temporal` above 1 it is a pseudo-3D convolution (Make-A-Video: Singer et al. 2022, arXiv 2209.14792, section
    3.2.1): a convolution over that many frames follows, which starts as the identity. The last `images` frames are
    independent and pass it by; frames that do not exist (`frame_valid`) are as the padding beyond the clip's ends.
    """

    features: int
    kernel: tuple[int, int, int] = (1, 3, 3)  # frames, rows, columns
    strides: tuple[int, int] = (1, 1)  # rows, columns
    kernel_init: Initializer = fan_in
    dtype: jnp.dtype = jnp.float32
    sharded_axis: str = "frames"  # what of the video the mesh splits, if it does
    causal: bool = False  # over frames
    temporal: int = 1  # frames of the convolution that follows
    use_bias: bool = True
    replicate: bool = False  # frames beyond the ends of a clip are its first and last one, not zero

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], images: int = 0, frame_valid: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B T H2 W2 O"]:
        kernel = self.param("kernel", self.kernel_init, (*self.kernel, x.shape[-1], self.features))
        bias = self.param("bias", zeros, (self.features,)) if self.use_bias else None
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        own = partial(convolve, replicate=self.replicate)
        y = sharded_convolve(own, x, kernel, self.strides, self.sharded_axis, self.causal, self.replicate)
        y = y if bias is None else y + bias.astype(self.dtype)
        if self.temporal == 1:
            return y
        clip, stills = y[:, : y.shape[1] - images], y[:, y.shape[1] - images :]
        if frame_valid is not None:
            clip = jnp.where(frame_valid[:, : clip.shape[1], None, None, None], clip, 0)
        clip = Convolution(self.features, (self.temporal, 1, 1), kernel_init=identity(self.causal), dtype=self.dtype,
                           sharded_axis=self.sharded_axis, causal=self.causal, name="temporal")(clip)
        return jnp.concatenate([clip, stills], axis=1) if images else clip


class GroupNorm(nn.Module):
    """Group normalisation with statistics per frame or per clip, in float32 (Wu & He 2018, arXiv 1803.08494).

    `modulation` is an optional `(scale, shift)` pair `[B, 1|T, 1, 1, C]` applied as `y * (1 + scale) + shift`. All
    affine parts are folded into one multiply-add per element, so that the layer reads the activation twice.
    """

    groups: int = 8  # at most; lowered to the largest divisor of the channels
    over: str = "frame"
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], modulation: tuple[Array, Array] | None = None
    ) -> Float[Array, "B T H W C"]:
        channels = x.shape[-1]
        groups = next(g for g in range(min(self.groups, channels), 0, -1) if channels % g == 0)
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", zeros, (channels,))
        axes = (2, 3) if self.over == "frame" else (1, 2, 3)
        x32 = x.astype(jnp.float32)

        def grouped(a: Array) -> Array:  # mean over the group, spread back to its channels
            mean = a.reshape(*a.shape[:-1], groups, channels // groups).mean(-1, keepdims=True)
            return jnp.broadcast_to(mean, (*mean.shape[:-1], channels // groups)).reshape(a.shape)

        mean = grouped(x32.mean(axes, keepdims=True))
        variance = grouped(jnp.square(x32).mean(axes, keepdims=True)) - jnp.square(mean)
        gain = lax.rsqrt(jnp.maximum(variance, 0.0) + self.epsilon) * scale
        offset = bias - mean * gain
        if modulation is not None:
            gain, offset = gain * (1 + modulation[0]), offset * (1 + modulation[0]) + modulation[1]
        return (x32 * gain + offset).astype(x.dtype)


class Dense(nn.Module):
    """Affine map of the last axis."""

    features: int
    use_bias: bool = True
    kernel_init: Initializer = fan_in
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... O"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        return y + self.param("bias", zeros, (self.features,)).astype(self.dtype) if self.use_bias else y


class PartedDense(nn.Module):
    """Several affine maps of the last axis by one kernel `(C, parts O)`, to features or to heads `(K, D)`, each split
    over the mesh by its first dimension.

    The kernel is split before the product: after it, devices would hold some of one part's features next to some of
    another's, and would have to exchange tokens, of which there are more.
    """

    parts: int
    shape: tuple[int, ...]  # of the output of each: features, or heads and channels per head
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> tuple[Float[Array, " ..."], ...]:
        shape, total = (self.parts, *self.shape), self.parts * math.prod(self.shape)
        axis, first, letters = ("heads" if len(self.shape) == 2 else "mlp"), -len(self.shape), "kd"[: len(self.shape)]
        kernel = self.param("kernel", fan_in, (x.shape[-1], total)).astype(self.dtype)
        kernel = shard_along(kernel.reshape(-1, *shape), axis, dim=2, must=False)
        y = jnp.einsum(f"...c,cp{letters}->...p{letters}", x.astype(self.dtype), kernel)
        if self.use_bias:
            y = y + self.param("bias", zeros, (total,)).astype(self.dtype).reshape(shape)
        y = shard_along(y, axis, dim=first, must=False)
        return tuple(lax.index_in_dim(y, i, axis=y.ndim + first - 1, keepdims=False) for i in range(self.parts))


def add_residual(x: Float[Array, " ..."], change: Float[Array, " ..."]) -> Float[Array, " ..."]:
    """`x + change` as a value of its own, which later layers read rather than recompute.

    XLA on CPU otherwise fuses the whole chain of residual additions, forward and backward, into every layer that
    reads the stream: work that grows with the square of the depth.
    """
    return lax.optimization_barrier(x + change)


def space_to_depth(x: Float[Array, "B T H W C"], patch: int) -> Float[Array, "B T H2 W2 C2"]:
    """Fold patches of `patch x patch` pixels into channels."""
    return rearrange(x, "b t (h p) (w q) c -> b t h w (p q c)", p=patch, q=patch)


def depth_to_space(x: Float[Array, "B T H W C"], patch: int) -> Float[Array, "B T H2 W2 C2"]:
    """Inverse of `space_to_depth`."""
    return rearrange(x, "b t h w (p q c) -> b t (h p) (w q) c", p=patch, q=patch)


def time_to_depth(x: Float[Array, "B T H W C"], frames: int) -> Float[Array, "B T2 H W C2"]:
    """Fold every `frames` frames into channels."""
    return rearrange(x, "b (t p) h w c -> b t h w (p c)", p=frames)


def depth_to_time(x: Float[Array, "B T H W C"], frames: int) -> Float[Array, "B T2 H W C2"]:
    """Inverse of `time_to_depth`."""
    return rearrange(x, "b t h w (p c) -> b (t p) h w c", p=frames)


def mean_pool(x: Float[Array, "B T H W C"], stride: tuple[int, int]) -> Float[Array, "B T H2 W2 C"]:
    """Mean over blocks of `stride` pixels."""
    return rearrange(x, "b t (h p) (w q) c -> b t h p w q c", p=stride[0], q=stride[1]).mean((3, 5))


def nearest(x: Float[Array, "B T H W C"], stride: tuple[int, int]) -> Float[Array, "B T H2 W2 C"]:
    """Repeat each pixel `stride` times in height and width."""
    batch, frames, height, width, channels = x.shape
    shape = (batch, frames, height, stride[0], width, stride[1], channels)
    y = jnp.broadcast_to(x[:, :, :, None, :, None], shape)
    return y.reshape(batch, frames, height * stride[0], width * stride[1], channels)


silu = jax.nn.silu
