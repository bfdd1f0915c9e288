"""What MagicVideo (Zhou et al. 2022, arXiv 2211.11018) adds to an image U-Net: directed temporal attention and adaptors
of single frames."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.configuration import Size, config
from vdm_jax.errors import UserError
from vdm_jax.networks.layers import Convolution, Initializer, fan_in, zeros


@config
class Directed:
    """MagicVideo (Zhou et al. 2022, arXiv 2211.11018): a scale and a shift of each frame after the convolutions of
    residual blocks, and temporal attention, of which `LatentUNet.temporal_pattern` says who sees whom."""

    frames: Size = 16  # of a clip, each with scales and shifts of its own
    # Where attention is masked: before the softmax, as usual, or after it, so that weights do not sum to 1 (public
    # notes of the paper have the second)
    mask: Literal["before", "after"] = "before"
    # Spatial and temporal attention see the same and are summed; False: the temporal one comes after the spatial one
    parallel: bool = True


class AdaptedConvolution(nn.Module):
    """A spatial convolution and, of every frame of clips of one length, a learned scale and shift of each of its
    channels, which begin as 1 and 0: `S_i * conv(z_i) + B_i` (MagicVideo: Zhou et al. 2022, arXiv 2211.11018).

    Raises `UserError` for clips of another length.
    """

    features: int
    kernel: tuple[int, int, int] = (1, 3, 3)  # frames, rows, columns
    frames: int = 16  # of a clip
    kernel_init: Initializer = fan_in
    dtype: jnp.dtype = jnp.float32
    sharded_axis: str = "frames"  # what of the video the mesh splits, if it does

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 O"]:
        if x.shape[1] != self.frames:
            raise UserError(f"clips of {x.shape[1]} frames; permitted: {self.frames}, each of which has a scale and a "
                            "shift of its own")
        convolution = Convolution(self.features, self.kernel, kernel_init=self.kernel_init, dtype=self.dtype,
                                  sharded_axis=self.sharded_axis)
        nn.share_scope(self, convolution)  # whose parameters have the names of one without scale and shift
        y = convolution(x)
        scale, shift = (self.param(name, init, (self.frames, self.features))[:, None, None].astype(self.dtype)
                        for name, init in (("frame_scale", nn.initializers.ones_init()), ("frame_shift", zeros)))
        return y * scale + shift
