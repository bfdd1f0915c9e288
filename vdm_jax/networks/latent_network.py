"""The open latent U-Nets as networks of stages: what they take, made of log-SNR and `Conditioning`.

Parameters are those of the U-Net by the same names, so that weights of `vdm-jax convert` are weights of a stage. Those
of a ControlNet stand next to them as `control_net_NAME`, by the name of its condition, the projection of a condition
that enters as tokens as `condition_NAME`, that of image prompts as `image_projection`, and the network that sees a
reference picture as `reference_net`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vdm_jax.attention import WithExtraKeys
from vdm_jax.conditions.conditioned import FrameNoise
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.image_prompt import IMAGE_PROMPT, NULL, SCALE
from vdm_jax.conditions.inputs import Input, check_conditions
from vdm_jax.conditions.reference import PICTURE, SEEN, Reference
from vdm_jax.conditions.scalars import WEIGHT
from vdm_jax.configuration import CountOrZero, NonNegative, WidthOrZero, config
from vdm_jax.diffusion.beta_tables import (
    LinearBetaSchedule,
    ListedBetaSchedule,
    ScaledLinearBetaSchedule,
    SquaredCosineBetaSchedule,
)
from vdm_jax.errors import UserError
from vdm_jax.networks import latent_inputs
from vdm_jax.networks.backbone import Backbone
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.networks.control_net import ControlNet, ControlNetNetwork
from vdm_jax.networks.image_prompt import ImageProjection, ImageProjectionNetwork
from vdm_jax.networks.latent_checks import check_adaptors, check_branches, check_frames
from vdm_jax.networks.latent_unet import LatentUNet, image_unet, reference_net_of
from vdm_jax.networks.latent_unet_blocks import Control, ImagePrompt
from vdm_jax.networks.latent_unet_network import LatentUNetNetwork, reference_tokens
from vdm_jax.networks.layers import Dense
from vdm_jax.networks.picture_adapter import PictureAdapter, PictureAdapterNetwork
from vdm_jax.networks.pose_guider import PoseGuider, PoseGuiderNetwork
from vdm_jax.networks.skips import Deep
from vdm_jax.networks.sound import SoundTokens, grouped
from vdm_jax.networks.sparse_control import SparseControlNet, SparseControlNetNetwork
from vdm_jax.networks.t2i_adapter import T2IAdapter, T2IAdapterNetwork

SCALARS = ("fps", "motion", "noise")
Timesteps = LinearBetaSchedule | ScaledLinearBetaSchedule | SquaredCosineBetaSchedule | ListedBetaSchedule


@config
class LatentNetwork(Backbone):
    """An open latent U-Net as the network of a stage."""

    unet: LatentUNet
    # The table whose timesteps give it the noise level; None: ln(sigma / alpha) / 4, as in Stable Video Diffusion
    timesteps: Timesteps | None = ScaledLinearBetaSchedule()
    # Tokens it attends to, as embeddings made beforehand, of text or of a picture. Hidden tokens, and all of the null
    # caption, are zeros: it takes no mask. None: one token of zeros
    text: EmbeddedText | None = None
    # In the order in which they enter: "fps" (it receives one less), "motion" (the bucket of how much moves) and
    # "noise" (standard deviation of that on the first frame), as in Stable Video Diffusion (2311.15127). And
    # "guidance", the weight of the guidance, of latent consistency models
    scalars: tuple[str, ...] = ()
    # Bucket of clips of which nothing else is said; how motion maps to buckets is not published
    motion: NonNegative = 127.0
    first_frame: bool = False  # takes the latents of the first frame, repeated over all, as further channels
    low_resolution: bool = False  # takes a low-resolution video as further channels
    # Table whose timestep, a class of the U-Net, says how noisy that video is; None: it receives none
    low_resolution_steps: LinearBetaSchedule | ScaledLinearBetaSchedule | None = None
    # Takes conditioning latents and their mask: the temporal "layers" see them (Video LDM, 2304.08818, section 3.2), or
    # they are "in_place" of the noisy ones, with the mask as a further channel (LVDM, 2211.13221, section 3.3)
    frame_conditioning: Literal["none", "layers", "in_place"] = "none"
    # Conditioning latents are noised to a timestep, in training one below `frame_noise_steps`, in sampling
    # `frame_noise_step`, which a class of the U-Net says (LVDM's conditional latent perturbation) unless it says the
    # rate. 0: they stay as they are
    frame_noise_steps: CountOrZero = 0
    frame_noise_step: CountOrZero = 100
    # Further conditions, as further channels, as tokens after those of the text, or as residuals
    conditions: tuple[Input, ...] = ()
    # One for each of these that enters as residuals, in their order; `control_net_of(unet)` has the sizes. A
    # T2I-Adapter or a pose guider sees the map alone, and gives its features once per video
    control_nets: tuple[ControlNet | T2IAdapter | SparseControlNet | PoseGuider, ...] = ()
    # Of the condition `image_prompt`, for a U-Net with `image_prompt`; None: takes none, or its vectors as tokens after
    # those of the text, as they are
    image_projection: ImageProjection | None = None
    # A second U-Net of its image layers sees a reference picture, whose features a `WithExtraKeys` spatial pattern sees
    reference_net: bool = False
    # Of the condition `image_prompt`, whose hidden states and the latents of the reference picture become its tokens
    picture_adapter: PictureAdapter | None = None
    # Class of the U-Net that says which of several frame rates it makes; None: no such classes
    rate: WidthOrZero | None = None

    def __post_init__(self):
        text, unet = self.text, self.unet
        if text is not None and (text.width != unet.token_channels or text.project):
            raise UserError(f"LatentNetwork.text={text} for a U-Net of token_channels={unet.token_channels}; "
                            "permitted: that width, and project=0")
        numbers = [name for name in self.scalars if name != WEIGHT]
        if any(name not in SCALARS for name in numbers) or len(set(numbers)) != unet.scalars:
            raise UserError(f"LatentNetwork.scalars={self.scalars} for a U-Net of {unet.scalars}; permitted: as many "
                            f"of {', '.join(SCALARS)}")
        if (WEIGHT in self.scalars) != bool(unet.weight_channels):
            raise UserError(f"LatentNetwork.scalars={self.scalars} for a U-Net of weight_channels="
                            f"{unet.weight_channels}; permitted: {WEIGHT!r} exactly with weight_channels")
        if "noise" in self.scalars and not self.first_frame:
            raise UserError("LatentNetwork.scalars has 'noise', that on the first frame, with first_frame=False; "
                            "permitted: first_frame=True")
        check_conditions("LatentNetwork", self.conditions, ("channels", "tokens", "residuals"), latent=True)
        check_branches(self)
        check_frames(self)
        classes = 0 if self.low_resolution_steps is None else self.low_resolution_steps.steps
        own = bool(self.frame_noise_steps) or self.rate is not None
        if not own and (unet.classes != classes or (classes and not self.low_resolution)):
            raise UserError(f"LatentNetwork.low_resolution_steps={self.low_resolution_steps} with low_resolution="
                            f"{self.low_resolution} for a U-Net of {unet.classes} classes; permitted: a table of as "
                            "many steps for a network that takes a low-resolution video")

    @property
    def conditioning_frames(self) -> bool:
        """Whether it takes conditioning frames."""
        return self.frame_conditioning != "none"

    @property
    def crosses_text(self) -> bool:
        """Whether it reads text, always by cross-attention."""
        return self.text is not None

    @property
    def out_channels(self) -> int:
        """Of the latents, which it takes and predicts."""
        return self.unet.out_channels

    @property
    def reduction(self) -> tuple[int, int]:
        """What height and width of the latents must be multiples of: odd sides are halved and doubled again."""
        return 1, 1

    @property
    def dtype(self) -> str:
        """Of the computation; parameters stay float32."""
        return self.unet.dtype

    @property
    def extrapolates(self) -> bool:
        """Whether temporal attention sees a window of frames (Make-Your-Video: Xing et al. 2023, arXiv 2306.00943)."""
        fixed = self.unet.mix_frames or self.unet.directed  # parameters of each frame
        return self.unet.video and not fixed and self.unet.temporal_pattern.bounded_frames()

    @property
    def skips(self) -> int:
        """Skip connections."""
        return len(self.unet.widths) * (self.unet.blocks + 1)

    @property
    def adapters(self) -> tuple[T2IAdapter, ...]:
        """Those of its `control_nets` that see maps alone."""
        return tuple(net for net in self.control_nets if isinstance(net, T2IAdapter))

    @property
    def precomputes(self) -> bool:
        """Features of T2I-Adapters and pose guiders, and those of a reference picture."""
        return bool(self.adapters) or self.reference_net or any(
            isinstance(net, PoseGuider) for net in self.control_nets)

    @property
    def token_inputs(self) -> tuple[Input, ...]:
        """Conditions whose tokens follow those of the text; an image prompt has keys and values of its own."""
        return tuple(entry for entry in self.entering("tokens")
                     if entry.name != IMAGE_PROMPT or self.image_projection is None)

    remat_field = "unet.remat"

    @property
    def remat(self) -> str:
        """What the backward pass recomputes."""
        return self.unet.remat

    @property
    def scalar_defaults(self) -> dict[str, float]:
        """The motion bucket."""
        return {"motion": self.motion}

    @property
    def in_place(self) -> bool:
        """Whether conditioning frames take the place of noisy ones."""
        return self.frame_conditioning == "in_place"

    @property
    def reference_picture(self) -> bool:
        """Whether it takes a reference picture."""
        return self.reference_net or self.picture_adapter is not None

    @property
    def frame_noise(self) -> FrameNoise | None:
        """How conditioning frames are noised."""
        steps, step = self.frame_noise_steps, self.frame_noise_step
        return FrameNoise(steps, step, self.timesteps, told=self.rate is None) if steps else None

    @property
    def references(self) -> tuple[Reference, ...]:
        """With a `WithExtraKeys` spatial pattern, the features that the spatial attention of every transformer sees,
        where they come from outside."""
        given = {} if self.reference_net else self.unet.referenced
        return tuple(Reference(name=name, width=width) for name, width in given.items())

    def check_stage(self, stage: Any) -> None:
        """Raise `UserError` where the U-Net has other input channels than what is stacked for it."""
        check_adaptors(self, stage)
        latent, channels = stage.latent, self.out_channels
        low = (3 if latent is None or latent.low_resolution == "pixels" else channels) * self.low_resolution
        wanted = channels + low + channels * self.first_frame + self.in_place
        wanted += sum(entry.stacked for entry in self.entering("channels"))
        factor = 1 if latent is None else latent.autoencoder.factor
        for net in self.control_nets:
            if net.factor != factor and not (isinstance(net, SparseControlNet) and net.of_latents):
                made = f"factor={net.factor}" if isinstance(net, T2IAdapter) else f"{len(net.hint_widths)} hint_widths"
                raise UserError(f"Stage {stage.name!r}: network.control_nets of {made}, which reduce maps by "
                                f"{net.factor}, for latents of {factor} pixels a side; permitted: "
                                f"as many hint_widths as reduce by {factor}, each but the first by 2")
        if self.picture_adapter is not None:
            self.picture_adapter.check(stage.name, stage.shape[1:])
        if self.unet.in_channels != wanted:
            raise UserError(f"Stage {stage.name!r}: network.unet.in_channels={self.unet.in_channels}; permitted: "
                            f"{wanted}, for the noisy latents and what is joined to them")

    def attended(self, frames: int, height: int, width: int) -> Iterator[int]:
        """Tokens of the sequences over which its layers attend, but for those of one position over frames."""
        unet = self.unet
        for level, (attends,
                    only_cross_attention) in enumerate(zip(unet.attention, unet.only_cross_attention, strict=True)):
            tokens = (height >> level) * (width >> level)
            for pattern in (unet.temporal_pattern, *(() if only_cross_attention else (unet.spatial_pattern,))):
                if attends and pattern.layout != "positions":
                    yield tokens * (frames if pattern.layout == "all" else 1)

    def rematerialised(self, remat: str) -> LatentNetwork:
        """The same with another rematerialisation."""
        nets = tuple(dataclasses.replace(net, unet=dataclasses.replace(net.unet, remat=remat))
                     if isinstance(net, ControlNet | SparseControlNet) else net for net in self.control_nets)
        return dataclasses.replace(self, unet=dataclasses.replace(self.unet, remat=remat), control_nets=nets)


BRANCHES: dict[type, Any] = {
    ControlNet: ControlNetNetwork, PoseGuider: PoseGuiderNetwork, SparseControlNet: SparseControlNetNetwork,
    T2IAdapter: T2IAdapterNetwork}
MAPS_ALONE = T2IAdapterNetwork, PoseGuiderNetwork  # branches that see maps alone


class LatentNetworkModule(nn.Module):
    """Noisy latents `[B, T, H, W, C]` and their log-SNR, `[B]` or per frame `[B, T]`, to a prediction.

    `images` says how many frames at the end are independent images (joint training): they go through the network
    without its temporal layers, and the clip's own frames through all of it. `deep` is where the features inside a skip
    connection come from.
    """

    config: LatentNetwork

    def setup(self):
        spec = self.config
        self.unet = LatentUNetNetwork(spec.unet)
        self.control_net = {
            entry.name: BRANCHES[type(net)](net)
            for entry, net in zip(spec.entering("residuals"), spec.control_nets, strict=True)}
        width, dtype = spec.unet.token_channels, jnp.dtype(spec.dtype)
        self.condition = {entry.name: SoundTokens(width, dtype) if entry.condition.form == "frames" else
                          Dense(width, use_bias=False, dtype=dtype) for entry in spec.token_inputs
                          if entry.name != IMAGE_PROMPT}
        if spec.image_projection is not None:
            self.image_projection = ImageProjectionNetwork(spec.image_projection, dtype)
        if spec.picture_adapter is not None:
            self.picture_adapter = PictureAdapterNetwork(spec.picture_adapter, dtype)
        if spec.reference_net:
            self.reference_net = LatentUNetNetwork(reference_net_of(spec.unet))
        nn.share_scope(self, self.unet)

    def __call__(
        self, z: Float[Array, "B T H W C"], logsnr: Float[Array, " B"] | Float[Array, "B T"],
        conditioning: Conditioning | None = None, *, train: bool = False, images: int = 0, deep: Deep | None = None,
    ) -> Float[Array, "B T H W O"]:
        """Raises `UserError` for conditioning that is missing, and padded frames, which the network cannot hide."""
        spec = self.config
        conditioning = Conditioning() if conditioning is None else conditioning
        latent_inputs.check_inputs(spec, z, logsnr, conditioning)
        if images and isinstance(spec.unet.spatial_pattern, WithExtraKeys):
            raise UserError(f"{images} independent images for a U-Net whose spatial_pattern sees references; "
                            "permitted: 0")
        if images and not spec.unet.token_channels:
            raise UserError(f"{images} independent images for a U-Net of token_channels=0, which has no attention of "
                            "its own within them; permitted: 0")
        if images and any(entry.window > 1 for entry in spec.conditions):
            raise UserError(f"{images} independent images for a network that sees maps of several frames "
                            "(Input.window); permitted: 0")
        conditioning_latents = latent_inputs.conditioning_latents(spec, conditioning)
        x = latent_inputs.stacked(spec, z, conditioning, conditioning_latents)
        tokens = self._tokens(len(z), conditioning)
        level = -logsnr / 8 if spec.timesteps is None else spec.timesteps.timestep(logsnr)
        told = {"scalars": latent_inputs.scalars(spec, conditioning),
                "classes": latent_inputs.classes(spec, conditioning, len(z)),
                "weight": conditioning.scalars[WEIGHT] if WEIGHT in spec.scalars else None}
        control = self._control(x, level, tokens, conditioning, told["classes"])
        features = self._features(conditioning)
        clip = x.shape[1] - images
        of_clip = conditioning_latents[:, :clip] if spec.frame_conditioning == "layers" else None
        references, seen = self._references(tokens, conditioning), conditioning.scalars.get(SEEN)
        of_frames = level.ndim == 2
        y = self.unet(x[:, :clip], level[:, :clip] if of_frames else level, tokens[:, :1] if images else tokens,
                      conditioning_latents=of_clip, references=references, control=control, features=features,
                      train=train, deep=deep, image=self._image(conditioning), guide=self._guide(conditioning),
                      reference_seen=None if seen is None else seen > 0, **told)
        if not images:
            return y
        alone = LatentUNetNetwork(image_unet(spec.unet), parent=None).apply(
            {"params": self.variables["params"]}, x[:, clip:], level[:, clip:] if of_frames else level,
            tokens[:, 1:] if spec.text is not None else tokens, **told)
        return jnp.concatenate([y, alone], axis=1)

    def _tokens(self, batch: int, conditioning: Conditioning) -> Float[Array, "B G L E"] | None:
        """Tokens of the text and of conditions; where there are none, one of zeros."""
        spec, parts = self.config, []
        if not spec.unet.token_channels:
            return None
        if spec.text is not None:
            parts.append(jnp.where(conditioning.text_mask[..., None], conditioning.embeddings, 0))
        for entry in spec.token_inputs:
            value = conditioning.inputs[entry.name]
            if entry.name == IMAGE_PROMPT and spec.picture_adapter is not None:
                value = self._picture(value, conditioning)
            parts.append(self.condition[entry.name](value) if entry.name in self.condition else value)
        if not parts:
            return jnp.zeros((batch, 1, 1, spec.unet.token_channels))
        return functools.reduce(grouped, parts)

    def _picture(
        self, states: Float[Array, "B 1 M C"], conditioning: Conditioning
    ) -> Float[Array, "B 1 M C"]:
        """Tokens of a picture, of what an encoder and the autoencoder make of it; of the null value of the first where
        the picture is left out."""
        seen = conditioning.scalars.get(SEEN)
        if seen is not None:
            states = jnp.where(seen[:, None, None, None] > 0, states, conditioning.inputs.get(NULL, 0))
        return self.picture_adapter(states, conditioning.inputs[PICTURE])

    def _image(self, conditioning: Conditioning) -> ImagePrompt | None:
        """The image prompt, where there is one."""
        features = conditioning.inputs.get(IMAGE_PROMPT)
        if features is None or self.config.image_projection is None:
            return None
        scale = conditioning.scalars.get(SCALE, jnp.ones(len(features)))
        return ImagePrompt(self.image_projection(features), scale)

    def _references(
        self, tokens: Float[Array, "B G L E"] | None, conditioning: Conditioning
    ) -> dict[str, Float[Array, "B _ _ _"]] | None:
        """What the reference network attends from at timestep 0, of all pictures as one group, or what is given or was
        made of them before."""
        spec = self.config
        if not spec.reference_net or conditioning.references:
            return conditioning.references or None
        picture = conditioning.inputs[PICTURE]
        inputs = picture, jnp.zeros(len(picture)), None if tokens is None else tokens[:, :1]
        if self.is_initializing():
            self.reference_net(*inputs)
        _, state = LatentUNetNetwork(reference_net_of(spec.unet), parent=None).apply(
            {"params": self.variables["params"]["reference_net"]}, *inputs, mutable=["intermediates"])
        tokens = reference_tokens(state["intermediates"])
        return {name: tokens[name].reshape(len(picture), 1, -1, width) for name, width in spec.unet.referenced.items()}

    def _control(
        self, x: Float[Array, "B T H W C"], level: Float[Array, " B"] | Float[Array, "B T"],
        tokens: Float[Array, "B G L E"] | None, conditioning: Conditioning, classes: Int[Array, " B"] | None,
    ) -> Control | None:
        """The sum of what ControlNets make of their conditions, each by a factor and in guess mode where that is asked
        for."""
        found = [net(x, level, tokens, conditioning.inputs[name], classes=classes,
                     scale=conditioning.scalars.get(f"{name}_scale", 1.0), guess=conditioning.scalars.get(
                         f"{name}_guess")) for name, net in self.control_net.items()
                 if not isinstance(net, MAPS_ALONE) and name in conditioning.inputs]
        return jax.tree.map(lambda *parts: sum(parts), *found) if found else None

    def precompute(self, conditioning: Conditioning) -> Conditioning:
        """The conditioning with the features that T2I-Adapters and pose guiders make of their maps, and the reference
        network of its picture."""
        features = {name: net(conditioning.inputs[name]) for name, net in self.control_net.items()
                    if isinstance(net, MAPS_ALONE) and name in conditioning.inputs}
        references = {}
        if self.config.reference_net:
            batch = len(conditioning.inputs[PICTURE])
            references = self._references(self._tokens(batch, conditioning), conditioning)
        return conditioning.adding({"features": features, "references": references})

    def _made_of_maps(self, names: list[str], conditioning: Conditioning) -> dict[str, tuple[Array, ...]]:
        """What branches that see maps alone make of theirs, computed here where it was not before; nothing of maps that
        are not there."""
        return {name: conditioning.features[name] if name in conditioning.features else self.control_net[name](
            conditioning.inputs[name]) for name in names if name in conditioning.inputs}

    def _guide(self, conditioning: Conditioning) -> Float[Array, "B T H W C"] | None:
        """The weighted sum of what pose guiders make of their maps."""
        names = [name for name, net in self.control_net.items() if isinstance(net, PoseGuiderNetwork)]
        total: Any = None
        for name, (features,) in self._made_of_maps(names, conditioning).items():
            scale = jnp.reshape(conditioning.scalars.get(f"{name}_scale", jnp.ones(1)), (-1, 1, 1, 1, 1))
            part = scale.astype(features.dtype) * features
            total = part if total is None else total + part
        return total

    def _features(self, conditioning: Conditioning) -> tuple[Float[Array, "B T _ _ _"], ...] | None:
        """The weighted sum of the features of T2I-Adapters, computed here where they were not before."""
        adapters = [name for name, net in self.control_net.items() if isinstance(net, T2IAdapterNetwork)]
        made = self._made_of_maps(adapters, conditioning)
        if not made:
            return None
        sums: list[Any] = [0.0] * len(self.config.unet.widths)
        for name, features in made.items():
            scale = jnp.reshape(conditioning.scalars.get(f"{name}_scale", jnp.ones(1)), (-1, 1, 1, 1, 1))
            sums = [total + scale.astype(x.dtype) * x for total, x in zip(sums, features, strict=True)]
        return tuple(sums)
