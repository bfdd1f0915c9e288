"""The video transformer: one module for all of its configs."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.attention import counting
from vdm_jax.attention.patterns import independent_frames_mask
from vdm_jax.attention.positions import RotaryCoordinates
from vdm_jax.conditions.conditioning import Conditioning, check_parts
from vdm_jax.conditions.image_tokens import IMAGE_TOKENS
from vdm_jax.conditions.inputs import check_entries
from vdm_jax.conditions.pooled_text import POOLED_TEXT
from vdm_jax.conditions.scalars import WEIGHT
from vdm_jax.errors import UserError
from vdm_jax.networks.blocks.attention import Tokens
from vdm_jax.networks.blocks.feed_forward import ACTIVATIONS
from vdm_jax.networks.blocks.positions import frame_numbers
from vdm_jax.networks.blocks.sinusoids import grid_sinusoids, sinusoids, weighted_sinusoids
from vdm_jax.networks.layers import Dense, fan_in, silu, zeros
from vdm_jax.networks.remat import rematerialised
from vdm_jax.networks.skips import Deep
from vdm_jax.networks.sound import SoundTokens, grouped
from vdm_jax.networks.text import TextConditioner
from vdm_jax.networks.transformer.blocks import BRANCHES, BlockInputs, Modulation, modulated, selected, shifted
from vdm_jax.networks.transformer.caching import through_blocks
from vdm_jax.networks.transformer.config import AddedSinusoids, VideoTransformer
from vdm_jax.networks.transformer.joint import SMALL, TextRefiner, norm_of, perceptron
from vdm_jax.networks.transformer.levels import CLEAN, is_noisy, level_number
from vdm_jax.networks.transformer.past import Past, past_numbers
from vdm_jax.networks.transformer.turns import SingleTurn, Stream, Turn
from vdm_jax.networks.unet import ClassEmbedding, encode_level
from vdm_jax.parallel.rules import shard_along


class VideoTransformerModule(nn.Module):
    """Noisy videos or latents `[B, T, H, W, C]` and their log-SNR, `[B]` or per frame `[B, T]`, to a prediction.

    `images` says how many frames at the end are independent images (joint training): they attend to themselves alone.
    Raises `UserError` for conditioning that is missing and for sizes that do not divide.
    """

    config: VideoTransformer

    @nn.compact
    def __call__(
        self, z: Float[Array, "B T H W C"], logsnr: Float[Array, " B"] | Float[Array, "B T"],
        conditioning: Conditioning | None = None, *, train: bool = False, images: int = 0, past: Past | None = None,
        deep: Deep | None = None,
    ) -> Float[Array, "B T H W O"]:
        """With `past` the video is one block of frames, which sees what is kept of those before (`past.py`). `deep` is
        where what the blocks but the first `deep.branch` ones add to the tokens comes from (`caching.py`)."""
        spec = self.config
        conditioning = Conditioning() if conditioning is None else conditioning
        check_inputs(spec, z, logsnr, conditioning, images)
        forced = 0
        if conditioning.history is not None:
            forced = z.shape[1] // spec.patch[0]
            z, logsnr, conditioning = with_history(z, logsnr, conditioning, spec.patch[0])
        stacked, given = stack_inputs(spec, z, conditioning)
        x = Patches(spec, name="patches")(stacked)
        numbers = np.tile(np.arange(forced), 2) if forced else past_numbers(past, x.shape[1])
        if spec.rotary is None:
            x = x + positions(x.shape[1:4], spec.width, images, numbers, past, spec.sinusoids).astype(x.dtype)
        x = shard_along(x, spec.sharded_axis)
        clean = None if given is None else patches_given(given, spec.patch)
        vector, text = Embedding(spec, name="embedding")(z.shape[1], logsnr, conditioning, images)
        image = None
        if spec.image_tokens is not None:
            image = ImageEmbedding(spec, name="image")(conditioning.inputs[IMAGE_TOKENS]), None
        valid = valid_tokens(conditioning.frame_valid, spec.patch[0])
        inputs = BlockInputs(vector, clean, text, image, valid, numbers, None if past is None else past.numbers >= 0)
        if spec.modulation == "shared":
            shared = Dense(BRANCHES * spec.width, name="modulation")(silu(vector))
            inputs = inputs.replace(level=shared.reshape(*vector.shape[:2], BRANCHES, spec.width))
        tokens = Stream(x, text[0] if spec.text_in_sequence else None)
        if deep is None:
            x, _ = self._blocks(tokens, inputs, images, forced, past)
        else:
            x = through_blocks(spec, self.variables["params"], tokens, inputs, images, deep)
        if forced:  # the noisy half
            x, vector = x[:, forced:], vector[:, vector.shape[1] // 2 :] if vector.shape[1] > 1 else vector
        return self._out(x, vector, clean)

    def _out(
        self, x: Float[Array, "B T H W C"], vector: Float[Array, "B F E"], clean: Bool[Array, "B T H W"] | None
    ) -> Float[Array, "B T2 H2 W2 O"]:
        """What the tokens predict, patch by patch."""
        spec = self.config
        shift, scale = (selected(part, clean) for part in Modulation(spec, 2, name="out_modulated")(vector))
        shift, scale = (scale, shift) if spec.out_scale_first else (shift, scale)
        if spec.norm == "affine":
            x = norm_of(spec, "out_norm")(norm_of(spec, "final_norm")(x))
            x = shifted(x, shift, scale, jnp.float32)
        else:
            x = modulated(x, shift, scale, spec.epsilon, jnp.float32)
        values = Dense(int(np.prod(spec.patch)) * spec.out_channels, kernel_init=zeros, name="out")(x)
        p, q, r = spec.patch
        order = "(p q r c)" if spec.patch_order == "channels_last" else "(c p q r)"
        return rearrange(values, f"b t h w {order} -> b (t p) (h q) (w r) c", p=p, q=q, r=r)

    def _blocks(
        self, tokens: Stream, inputs: BlockInputs, images: int, forced: int, past: Past | None
    ) -> Stream:
        """All blocks, by a scan over their parameters, which have the blocks as their first axis: the program does not
        grow with the depth."""
        spec = self.config
        turns = spec.layers // len(spec.patterns)
        body = rematerialised(self, Turn, spec.remat, scanned=True)
        scan = nn.scan(body, variable_axes={"params": 0, "intermediates": 0, "kept": 0}, split_rngs={"params": True},
                       in_axes=(nn.broadcast, 0), length=turns)
        with counting.loop(turns):
            before = None if past is None else past.kept
            tokens, _ = scan(spec, images, forced, name="blocks")(tokens, inputs, before)
        if not spec.single_layers:
            return tokens
        body, turns = rematerialised(self, SingleTurn, spec.remat, scanned=True), spec.single_layers // len(
            spec.patterns)
        scan = nn.scan(body, variable_axes={"params": 0, "intermediates": 0, "kept": 0}, split_rngs={"params": True},
                       in_axes=nn.broadcast, length=turns)
        with counting.loop(turns):
            return scan(spec, name="single_blocks")(tokens, inputs)[0]


class Experts(nn.Module):
    """Two video transformers, one for noise levels from a boundary on and one for those below. Of a batch on one side
    of it, as in sampling, one is computed."""

    config: VideoTransformer

    def setup(self):
        self.high, self.low = (VideoTransformerModule(self.config.expert) for _ in range(2))

    def __call__(
        self, z: Float[Array, "B T H W C"], logsnr: Float[Array, " B"], conditioning: Conditioning | None = None, *,
        train: bool = False, images: int = 0,
    ) -> Float[Array, "B T H W O"]:
        noisy = is_noisy(logsnr, self.config.boundary)
        both = self.is_initializing() or counting.calls() is not None  # counted is a batch on both sides
        found = []
        for expert, where in ((self.high, noisy), (self.low, ~noisy)):
            def run(expert: nn.Module, z: Array, logsnr: Array, conditioning: Conditioning | None) -> Array:
                return expert(z, logsnr, conditioning, train=train, images=images)

            def skip(expert: nn.Module, z: Array, logsnr: Array, conditioning: Conditioning | None) -> Array:
                return jnp.zeros(z.shape, jnp.float32)

            if both:
                found.append(run(expert, z, logsnr, conditioning))
            else:
                found.append(nn.cond(where.any(), run, skip, expert, z, logsnr, conditioning))
        return jnp.where(noisy.reshape(-1, 1, 1, 1, 1), *found)


class Patches(nn.Module):
    """A token of each patch: a convolution whose strides are its size."""

    config: VideoTransformer

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        p, q, r = spec.patch
        kernel = self.param("kernel", fan_in, (p, q, r, x.shape[-1], spec.width)).astype(dtype)
        bias = self.param("bias", zeros, (spec.width,)).astype(dtype)
        x = rearrange(x, "b (t p) (h q) (w r) c -> b t h w (p q r c)", p=p, q=q, r=r).astype(dtype)
        return x @ kernel.reshape(-1, spec.width) + bias


class Embedding(nn.Module):
    """The vector of the noise level, `[B, F, C]` with F = 1, one for each frame or, with conditioning frames in place,
    one more of no noise, joined by what else enters with it; and the tokens that the blocks attend to."""

    config: VideoTransformer

    @nn.compact
    def __call__(
        self, frames: int, logsnr: Array, conditioning: Conditioning, images: int
    ) -> tuple[Float[Array, "B F C"], Tokens | None]:
        spec = self.config
        number = level_number(logsnr, spec.level_encoding, spec.timesteps)
        number = number if number.ndim == 2 else number[:, None]
        if spec.in_place:
            number = jnp.concatenate([number, jnp.zeros_like(number[:, :1])], axis=1)
        code = sinusoids(number, spec.level_channels, order="cos_sin", endpoint=False)
        vector = Dense(self.channels, kernel_init=SMALL, name="level_in")(code)
        vector = Dense(self.channels, kernel_init=SMALL, name="level_out")(silu(vector))
        text = None
        if spec.text is not None:
            tokens, mask, pooled = self._text(conditioning, number)
            if images:  # the clip's caption for its frames, then one per image
                repeats = np.array([frames - images] + [1] * images)
                tokens, mask, pooled = (a if a is None else jnp.repeat(a, repeats, axis=1, total_repeat_length=frames)
                                        for a in (tokens, mask, pooled))
            text = tokens, mask
            vector = vector if pooled is None else self._joined_levels(vector, pooled)
        if spec.low_resolution:
            vector = vector + self._number("augmentation", encode_level(conditioning.augmentation, "inv_cos"))
        for name in spec.scalars:
            vector = vector + self._number(name, conditioning.scalars[name])
        if spec.classes:
            vector = vector + ClassEmbedding(spec.classes, self.channels, name="label")(conditioning.labels)[:, None]
        for entry in spec.entering("vector"):
            value = conditioning.inputs[entry.name]
            if entry.name == POOLED_TEXT:
                value = perceptron(self.channels, "pooled", value)
            else:
                value = Dense(self.channels, name=f"condition_{entry.name}")(value)
            vector = vector + value[:, None]
        return vector, self._with_conditions(text, conditioning)

    def _with_conditions(
        self, text: Tokens | None, conditioning: Conditioning
    ) -> tuple[Float[Array, "B G2 L2 E2"], Bool[Array, "B G2 L2"] | None] | None:
        """Tokens of the text, if there are any, and after them those of conditions."""
        spec = self.config
        for entry in (entry for entry in spec.entering("tokens") if entry.name != IMAGE_TOKENS):
            build = SoundTokens if entry.condition.form == "frames" else functools.partial(Dense, use_bias=False)
            width = spec.width if text is None else text[0].shape[-1]
            value = build(width, dtype=jnp.dtype(spec.dtype), name=f"condition_{entry.name}")(
                conditioning.inputs[entry.name])
            seen = jnp.ones(value.shape[:3], bool)
            if text is not None:
                mask = jnp.ones(text[0].shape[:3], bool) if text[1] is None else text[1]
                value, seen = grouped(text[0], value), grouped(mask, seen)
            text = value, seen
        return text

    @property
    def channels(self) -> int:
        """Of the vector."""
        return self.config.level_width or self.config.width

    def _number(self, name: str, value: Float[Array, " B"]) -> Float[Array, "B 1 C"]:
        if name == WEIGHT and self.config.guidance_perceptron:
            code = sinusoids(1000 * (1 + value), self.config.level_channels, order="cos_sin", endpoint=False)
            return perceptron(self.channels, "scale", code)[:, None]
        return Dense(self.channels, name=name)(sinusoids(value, self.config.level_channels))[:, None]

    def _joined_levels(self, vector: Array, pooled: Float[Array, "B G C"]) -> Float[Array, "B F C"]:
        """Captions of frames make the vector one of frames; that of no noise has their mean."""
        if not self.config.in_place or pooled.shape[1] == 1:
            return vector + pooled
        return jnp.concatenate([vector[:, :-1] + pooled, vector[:, -1:] + pooled.mean(1, keepdims=True)], axis=1)

    def _text(
        self, conditioning: Conditioning, number: Float[Array, "B F"]
    ) -> tuple[Array, Array | None, Array | None]:
        """Tokens `[B, G, L, C]`, their mask (None: all are seen) and the pooled vector, where there is one."""
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        if spec.text_tokens == "pooled":
            tokens, mask, pooled = TextConditioner(spec.text, spec.width, dtype, name="text")(conditioning)
        else:
            mask, pooled = conditioning.text_mask, None
            tokens = jnp.where(mask[..., None], conditioning.embeddings, 0)
            if spec.text_tokens == "padded":
                rest = spec.text_length - tokens.shape[2]
                tokens, mask = jnp.pad(tokens, ((0, 0), (0, 0), (0, rest), (0, 0))), None
        if spec.text_refiner:
            return TextRefiner(spec, name="text_refiner")(tokens, conditioning.text_mask, number), mask, pooled
        if spec.text_perceptron or spec.text_in_sequence:
            tokens = Dense(spec.width, kernel_init=SMALL, dtype=dtype, name="text_in")(tokens)
        if spec.text_perceptron:
            tokens = ACTIVATIONS["gelu_new"](tokens)
            tokens = Dense(spec.width, kernel_init=SMALL, dtype=dtype, name="text_out")(tokens)
        return tokens, mask, pooled


class ImageEmbedding(nn.Module):
    """Tokens of pictures in the width of the blocks: learned positions, norm, perceptron, norm."""

    config: VideoTransformer

    @nn.compact
    def __call__(self, tokens: Float[Array, "B 1 M E"]) -> Float[Array, "B 1 M C"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        if spec.image_places:
            shape = (1, spec.image_places, tokens.shape[-1])
            tokens = tokens + self.param("places", zeros, shape)[:, : tokens.shape[2]]
        x = nn.LayerNorm(1e-5, dtype=jnp.float32, name="norm_in")(tokens)
        x = Dense(tokens.shape[-1], dtype=dtype, name="image_in")(x)
        x = Dense(spec.width, dtype=dtype, name="image_out")(ACTIVATIONS["gelu"](x))
        return nn.LayerNorm(1e-5, dtype=jnp.float32, name="norm_out")(x).astype(dtype)


def positions(
    shape: tuple[int, int, int], channels: int, images: int, numbers: Int[np.ndarray | Array, " T"] | None = None,
    past: Past | None = None, added: AddedSinusoids | None = None,
) -> Float[Array, "1 T H W C"]:
    """Sinusoids of frame, row and column, each in a third of the channels or as `added` says; an appended image counts
    as frame 0, and frames may have `numbers` of their own."""
    if added is not None:
        return jnp.asarray(weighted_sinusoids(shape, channels, added.shares, added.scales))[None]
    frames, height, width = shape
    mask = independent_frames_mask(frames - images, images) if images else None
    of_frames = frame_numbers(frames, mask) if numbers is None else numbers if past is None else np.arange(past.total)
    code = jnp.asarray(grid_sinusoids((of_frames, np.arange(height), np.arange(width)), channels))
    return (code if past is None else code[numbers])[None]


def with_history(
    z: Float[Array, "B T H W C"], logsnr: Float[Array, " B"] | Float[Array, "B T"], conditioning: Conditioning,
    patch: int,
) -> tuple[Float[Array, "B T2 H W C"], Float[Array, "B F"], Conditioning]:
    """The clean clip and after it the noisy one, a level for each frame of their tokens, and what conditions them."""
    frames = z.shape[1]
    level = jnp.broadcast_to(logsnr if logsnr.ndim == 2 else logsnr[:, None], (len(z), frames // patch))
    both = jnp.concatenate([conditioning.history.astype(z.dtype), z], axis=1)
    levels = jnp.concatenate([jnp.full_like(level, CLEAN), level], axis=1)
    return both, levels, conditioning.replace(history=None).twice(frames)


def stack_inputs(
    spec: VideoTransformer, z: Float[Array, "B T H W C"], conditioning: Conditioning
) -> tuple[Float[Array, "B T H W S"], Bool[Array, "B T H W"] | None]:
    """The noisy video and what is joined to it along the channels, in the order of `VideoTransformer.stacked`; with
    conditioning frames in place they stand in it, and their mask comes along."""
    parts, given = [z], None
    if spec.in_place:
        mask = conditioning.conditioning_mask
        parts, given = [jnp.where(mask > 0, conditioning.conditioning_frames, z)], mask[..., 0] > 0
    if spec.low_resolution:
        parts.append(conditioning.low_resolution)
    if spec.frame_conditioning == "channels":
        parts += [conditioning.conditioning_mask, conditioning.conditioning_frames]
    parts += [conditioning.inputs[entry.name] for entry in spec.entering("channels")]
    return jnp.concatenate(parts, axis=-1), given


def patches_given(given: Bool[Array, "B T H W"], patch: tuple[int, int, int]) -> Bool[Array, "B T2 H2 W2"]:
    """Patches all of whose values are given."""
    p, q, r = patch
    return rearrange(given, "b (t p) (h q) (w r) -> b t h w (p q r)", p=p, q=q, r=r).all(-1)


def valid_tokens(valid: Bool[Array, "B T"] | None, frames: int) -> Bool[Array, "B T2"] | None:
    """Patches of which a frame exists."""
    return None if valid is None else valid.reshape(len(valid), -1, frames).any(-1)


def check_inputs(
    spec: VideoTransformer, z: Float[Array, "B T H W C"], logsnr: Float[Array, " ..."], conditioning: Conditioning,
    images: int = 0,
) -> None:
    """Raise `UserError` when sizes do not divide, a part the network needs is absent, captions do not fit, or frames
    are padded or independent where its attention cannot tell them apart (at trace time)."""
    for name, size, multiple in zip(("frames", "height", "width"), z.shape[1:4], spec.patch, strict=True):
        if size % multiple:
            raise UserError(f"video {name}={size} is not a multiple of the patch {multiple}; permitted: {multiple}, "
                            f"{2 * multiple}, {3 * multiple}, ...")
    if logsnr.shape not in (z.shape[:1], z.shape[:2]) or (logsnr.ndim == 2 and spec.patch[0] > 1):
        per_frame = "" if spec.patch[0] > 1 else f", or {z.shape[:2]}, one per frame"
        raise UserError(f"noise levels of shape {logsnr.shape} for a video of shape {z.shape} in patches of "
                        f"{spec.patch}; permitted: {z.shape[:1]}, one per clip{per_frame}")
    check_parts(spec, conditioning)
    check_entries(spec.conditions, z, conditioning)
    across = spec.sharded_axis == "width"
    if (images or conditioning.history is not None) and (
            spec.sinusoids is not None or isinstance(spec.rotary, RotaryCoordinates)):
        raise UserError(f"images={images} or a clean clip in sight with sinusoids={spec.sinusoids}, rotary="
                        f"{spec.rotary}, which count frames by their place; permitted: neither",
                        "VideoTransformer.rotary")
    if images and (spec.patch[0] > 1 or across):
        raise UserError(f"images={images} with patch={spec.patch}, sharded_axis={spec.sharded_axis!r}; permitted: "
                        "images=0, or patches of 1 frame and another axis")
    if conditioning.frame_valid is not None and across:
        raise UserError("clips with padded frames for a VideoTransformer of sharded_axis='width', whose attention "
                        "tells no frames apart; permitted: clips of one length, or another axis")
    if conditioning.history is not None and conditioning.history.shape != z.shape:
        raise UserError(f"Conditioning.history has shape {conditioning.history.shape}; permitted: {z.shape}")
    if spec.image_places and conditioning.inputs[IMAGE_TOKENS].shape[2] > spec.image_places:
        raise UserError(f"{conditioning.inputs[IMAGE_TOKENS].shape[2]} image tokens with VideoTransformer.image_places="
                        f"{spec.image_places}; permitted: up to {spec.image_places}", "VideoTransformer.image_places")
    if spec.text is None:
        return
    groups, length = conditioning.text_mask.shape[1:]
    joint = spec.text_in_sequence
    if joint and (images or logsnr.ndim == 2):
        raise UserError(f"images={images} and noise levels of shape {logsnr.shape} for a VideoTransformer of "
                        f"text_stream={spec.text_stream!r}; permitted: images=0 and {z.shape[:1]}, one per clip",
                        "VideoTransformer.text_stream")
    frames = () if images or joint or spec.patch[0] > 1 else (z.shape[1],)
    if groups not in (1 + images, *frames):
        raise UserError(f"Conditioning has {groups} captions per clip; permitted: {1 + images}, one for the clip and "
                        f"one for each appended image{f', or {z.shape[1]}, one for each frame' if frames else ''}")
    if spec.text_tokens == "padded" and length > spec.text_length:
        raise UserError(f"texts of {length} tokens with VideoTransformer.text_length={spec.text_length}; permitted: up "
                        f"to {spec.text_length}", "VideoTransformer.text_length")
