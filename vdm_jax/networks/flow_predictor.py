"""The network of MCDiff (Chen et al. 2023, arXiv 2304.14404): the next frame from the current one and strokes.

Two U-Nets: one completes the sparse motion of strokes to the optical flow of every pixel, from the frame as a picture
(section 3.2); the other denoises the latents of the next frame, with those of the current frame and the flow joined
along the channels (section 3.3). Its clips have two frames, of which the first is given; longer videos are made pair by
pair. Which layers both have is not known to us: they are U-Nets of this package, the first one at a constant noise
level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.conditions.conditioning import Conditioning, check_parts
from vdm_jax.conditions.frame_masks import FrameMask
from vdm_jax.conditions.frames import CurrentFrame
from vdm_jax.conditions.inputs import Input
from vdm_jax.conditions.strokes import CURRENT, FLOW, STROKES, WIDTH, DrawnStrokes
from vdm_jax.configuration import Positive, config
from vdm_jax.errors import UserError
from vdm_jax.networks.backbone import Backbone
from vdm_jax.networks.config import UNet
from vdm_jax.networks.unet import SpaceTimeUNet
from vdm_jax.video.arrays import resize

PLAIN = ("text", "classes", "scalars", "low_resolution", "conditioning_frames", "references", "conditions", "residual")
FRAMES = 2  # of a clip: the current one, which is given, and the next one


@config
class FlowPredictor(Backbone):
    """A network that completes strokes to the flow, and predicts the next frame from the current one and the flow."""

    completion: UNet  # of frame and strokes, pixels, to the flow, two channels
    unet: UNet  # of the noisy next frame, the current one and the flow
    # Whether the prediction sees the completed flow, so that both are trained as one (section 3.4), or in training the
    # flow of the clip, so that each is trained by itself
    joined: bool = False
    flow_weight: Positive = 1.0  # of the completion's loss next to that of the noise, lambda_F (value not known)
    still_weight: Positive = 0.1  # of a pixel that does not move, lambda of equation 1 (value not known)
    strokes: DrawnStrokes = DrawnStrokes()  # of training clips

    conditioning_frames = True
    in_place = True
    auxiliary = True
    precomputes = True
    remat_field = "unet.remat"

    def __post_init__(self):
        if self.completion.out_channels != 2:
            raise UserError(f"FlowPredictor.completion.out_channels={self.completion.out_channels}; permitted: 2, the "
                            "displacement to the right and down")
        for name in ("completion", "unet"):
            unet, plain = getattr(self, name), UNet(levels=self.unet.levels)
            for field in PLAIN:
                if getattr(unet, field) != getattr(plain, field):
                    raise UserError(f"FlowPredictor.{name}.{field}={getattr(unet, field)!r}; permitted: "
                                    f"{getattr(plain, field)!r}, since its input is stacked for it")
            if unet.frame_reduction > 1:
                raise UserError(f"FlowPredictor.{name} reduces frames by {unet.frame_reduction}; permitted: 1, since "
                                "it sees one")

    @property
    def conditions(self) -> tuple[Input, ...]:
        """The strokes."""
        return (Input(name=STROKES, width=WIDTH),)

    @property
    def flow_strokes(self) -> DrawnStrokes:
        """How strokes are drawn in training."""
        return self.strokes

    @property
    def out_channels(self) -> int:
        """Of the latents, which it takes and predicts."""
        return self.unet.out_channels

    @property
    def reduction(self) -> tuple[int, int]:
        """What height and width of the latents must be multiples of."""
        return self.unet.reduction

    @property
    def dtype(self) -> str:
        """Of the computation; parameters stay float32."""
        return self.unet.dtype

    @property
    def remat(self) -> str:
        """What the backward pass recomputes."""
        return self.unet.remat

    def check_stage(self, stage: Any) -> None:
        """Raise `UserError` for clips of more than two frames, pixels that the completion cannot halve, and training
        that gives other frames than the first or none."""
        where, training = f"Stage {stage.name!r}", stage.training
        if stage.shape[0] != FRAMES or stage.video.frames != FRAMES:
            raise UserError(f"{where}: video.frames={stage.video.frames} with a FlowPredictor; permitted: {FRAMES}, "
                            "the current frame and the next, in latents of one frame each; longer videos are sampled "
                            "pair by pair")
        for name, multiple in zip(("height", "width"), self.completion.reduction, strict=True):
            if getattr(stage.video, name) % multiple:
                raise UserError(f"{where}: video.{name}={getattr(stage.video, name)} is not a multiple of the "
                                f"completion's reduction {multiple}; permitted: {multiple}, {2 * multiple}, ...")
        wanted = (FrameMask(first=1, weight=mask.weight) for mask in training.masking)
        if not training.masking or tuple(training.masking) != tuple(wanted):
            raise UserError(f"{where}: training.masking={training.masking} with a FlowPredictor; permitted: "
                            "(FrameMask(first=1),)")
        if not isinstance(stage.source, CurrentFrame) or training.distillation is not None:
            raise UserError(f"{where}: source={stage.source}, training.distillation={training.distillation} with a "
                            "FlowPredictor; permitted: CurrentFrame() and None")

    def attended(self, frames: int, height: int, width: int) -> Iterator[int]:
        """Tokens of the sequences over which the layers of the prediction attend."""
        return self.unet.attended(1, height, width)

    def rematerialised(self, remat: str) -> FlowPredictor:
        """The same with another rematerialisation."""
        nets = {name: dataclasses.replace(getattr(self, name), remat=remat) for name in ("completion", "unet")}
        return dataclasses.replace(self, **nets)


class FlowPredictorModule(nn.Module):
    """Noisy latents of a pair of frames `[B, 2, H, W, C]` and their log-SNR to a prediction, which for the first frame
    is zero: it is given, and has no loss."""

    config: FlowPredictor

    def setup(self):
        self.completion = SpaceTimeUNet(self.config.completion)
        self.unet = SpaceTimeUNet(self.config.unet)

    def __call__(
        self, z: Float[Array, "B T H W C"], logsnr: Float[Array, " B"] | Float[Array, "B T"],
        conditioning: Conditioning | None = None, *, train: bool = False, images: int = 0,
    ) -> Float[Array, "B T H W C"]:
        """Raises `UserError` for conditioning that is missing, and other numbers of frames."""
        conditioning = Conditioning() if conditioning is None else conditioning
        check_parts(self.config, conditioning)
        if z.shape[1] != FRAMES or images:
            raise UserError(f"a video of {z.shape[1]} frames, {images} of them images, for a FlowPredictor; permitted: "
                            f"{FRAMES}, and no images")
        flow = resize(self._flow(conditioning, train), *z.shape[2:4], "area")
        x = jnp.concatenate([z[:, 1:], conditioning.conditioning_frames[:, :1], flow], axis=-1)
        found = self.unet(x, logsnr[:, 1:] if logsnr.ndim == 2 else logsnr, train=train)
        return jnp.concatenate([jnp.zeros_like(found), found], axis=1)

    def precompute(self, conditioning: Conditioning) -> Conditioning:
        """The conditioning with the completed flow."""
        return conditioning.adding({"features": {STROKES: (self.completed(conditioning),)}})

    def completed(self, conditioning: Conditioning, train: bool = False) -> Float[Array, "B 1 H W 2"]:
        """The flow from the current frame to the next, as shares of the limit of strokes."""
        frame, strokes = conditioning.inputs[CURRENT], conditioning.inputs[STROKES][:, :1]
        return self.completion(jnp.concatenate([frame, strokes], axis=-1), jnp.zeros(len(frame)), train=train)

    def auxiliary_loss(self, conditioning: Conditioning, *, train: bool = False) -> Float[Array, " B"]:
        """The weighted loss of the completed flow."""
        found = self.completed(conditioning, train)
        return self.config.flow_weight * flow_loss(found, conditioning.inputs[FLOW][:, :1], self.config.still_weight)

    def _flow(self, conditioning: Conditioning, train: bool) -> Float[Array, "B 1 H W 2"]:
        """What the prediction sees: the flow of the clip, or the completed one."""
        if STROKES in conditioning.features:
            return conditioning.features[STROKES][0]
        if FLOW in conditioning.inputs and not self.config.joined:
            return conditioning.inputs[FLOW][:, :1, ..., :2]
        return self.completed(conditioning, train)


def flow_loss(
    found: Float[Array, "B T H W 2"], wanted: Float[Array, "B T H W 3"], still_weight: float
) -> Float[Array, " B"]:
    """Mean over pixels of `w_p |d_p - f_p|`, the length of the error of the flow, with `w_p = lambda + |d_p| / max
    |d|`, so that what stands still does not decide (Chen et al. 2023, arXiv 2304.14404, equation 1). Pixels without a
    known displacement, where the mask of `wanted` is 0, do not count."""
    true, mask, axes = wanted[..., :2], wanted[..., 2] > 0.5, (1, 2, 3)
    lengths = jnp.where(mask, jnp.linalg.norm(true, axis=-1), 0)
    weights = still_weight + lengths / jnp.maximum(lengths.max(axes, keepdims=True), 1e-6)
    errors = jnp.sqrt(jnp.square(found - true).sum(-1) + 1e-12)  # whose gradient is finite at 0
    return jnp.where(mask, weights * errors, 0).sum(axes) / jnp.maximum(mask.sum(axes), 1)
