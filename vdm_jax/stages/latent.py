"""Latents: what a frozen autoencoder makes of a video, and in which a stage may work (Rombach et al. 2022, arXiv
2112.10752). Pure functions; weights are arguments, so that they are neither constants of a program nor part of what is
trained and saved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import Array, Float

from vdm_jax.conditions.frame_masks import MaskedVideo, mask_of_latents
from vdm_jax.configuration import Size, SizeOrZero, config
from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoders.causal_blocks import CACHE
from vdm_jax.networks.autoencoders.config import AUTOENCODER_F8
from vdm_jax.networks.autoencoders.hunyuan import HunyuanAutoencoder
from vdm_jax.networks.autoencoders.kinds import AnyAutoencoder
from vdm_jax.networks.autoencoders.kl import Moments
from vdm_jax.networks.autoencoders.ltx import NOISE
from vdm_jax.networks.autoencoders.tiling import Function, Step, in_blended_clips, in_chunks, in_stream, in_tiles
from vdm_jax.parallel.rules import parameter_shardings
from vdm_jax.weights import model_kinds


@config
class Latent:
    """The autoencoder in whose latents a stage works. `Stage.video` stays the size of the video in pixels."""

    # Its sizes. Scale and shift of the latents are those that come with the weights, filled in when the run is made.
    autoencoder: AnyAutoencoder = AUTOENCODER_F8
    weights: str = ""  # .safetensors file that `vdm-jax convert` wrote, or the run directory of a trained autoencoder
    sha256: str = ""  # of the file; "": that of the file found when the run is made
    encode: Literal["sample", "mode"] = "sample"  # of the moments of training clips; what is given is the mode
    # How a low-resolution video enters: enlarged and encoded, or its pixels at the size of the latents
    low_resolution: Literal["latents", "pixels"] = "latents"
    # See networks/autoencoders/tiling.py for these. Pieces of a CausalAutoencoder give what the whole clip gives; so do
    # those that an LTXAutoencoder encodes, and it decodes whole clips alone. Of a PiecewiseAutoencoder (CogVideoX) the
    # sizes of the pieces change what comes out: its own are part of the model. So are those of a HunyuanAutoencoder,
    # which overlap
    encode_frames: Size | None = None  # encoded at a time; None: all, or as many as the autoencoder's pieces have
    decode_frames: Size | None = None  # of latents, decoded at a time; None: as for encoding
    overlap_frames: SizeOrZero = 0  # of latents on either side that a piece also sees, with temporal layers
    # Latents in front of those of a causal clip, where tokens are of several: they repeat the first one, are sampled
    # with the others and are not decoded (CogVideoX1.5: 1)
    ahead: SizeOrZero = 0
    tile: tuple[Size, Size] | None = None  # height and width of tiles, pixels; None: whole frames
    overlap: SizeOrZero = 0  # of tiles, pixels

    def __post_init__(self):
        factor, sizes = self.autoencoder.factor, (*(self.tile or ()), self.overlap)
        fits = self.overlap < min(self.tile) if self.tile else not self.overlap
        if not fits or any(size % factor for size in sizes):
            raise UserError(f"Latent.tile={self.tile} with overlap={self.overlap} is not valid; permitted: multiples "
                            f"of the autoencoder's factor {factor}, with an overlap that is less than a tile")
        if self.autoencoder.causal:
            self._check_stream()
        elif self.ahead:
            raise UserError(f"Latent.ahead={self.ahead} of a {type(self.autoencoder).__name__}, whose latents are of "
                            "equal numbers of frames; permitted: 0, or a causal autoencoder")

    def _check_stream(self) -> None:
        if self.overlap_frames:
            raise UserError(f"Latent.overlap_frames={self.overlap_frames} of a causal autoencoder, whose pieces follow "
                            "one another; permitted: 0")
        for name, multiple in zip(("encode_frames", "decode_frames"), self.autoencoder.multiples, strict=True):
            if multiple is None and getattr(self, name):
                raise UserError(f"Latent.{name}={getattr(self, name)} of a {type(self.autoencoder).__name__}, where a "
                                "frame depends on later ones; permitted: None, with tiles")
            if multiple is not None and (getattr(self, name) or 0) % multiple:
                raise UserError(f"Latent.{name}={getattr(self, name)} of a {type(self.autoencoder).__name__}; "
                                f"permitted: None, {multiple}, {2 * multiple}, ...")

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """`(T, H, W, C)` of the latents of a clip. Raises `UserError` where the autoencoder's factors do not divide
        it."""
        spec = self.autoencoder
        count = self.frames(frames)
        for name, size in (("height", height), ("width", width)):
            if size % spec.factor:
                raise UserError(f"video.{name}={size} does not divide into latents of an autoencoder of factor "
                                f"{spec.factor}; permitted: {spec.factor}, {2 * spec.factor}, ...")
        return count, height // spec.factor, width // spec.factor, spec.latent_channels

    def frames(self, frames: int) -> int:
        """Latents of a clip of so many frames. Raises `UserError` for frames that do not fit."""
        return self.ahead + self.autoencoder.latent_frames(frames)

    @property
    def frame_factor(self) -> int:
        """Frames per frame of latents."""
        return self.autoencoder.time_factor


def abstract_weights(latent: Latent | None, mesh: Mesh | None = None) -> tuple[Any, ...]:
    """Shapes of an autoencoder's weights, split over a mesh where one is given, as the further arguments of a stage's
    programs: none for a stage that works on pixels."""
    if latent is None:
        return ()
    shapes = traverse_util.unflatten_dict(model_kinds.shapes(latent.autoencoder), sep="/")
    if mesh is None:
        return (shapes,)
    return (jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes,
                         parameter_shardings(shapes, mesh)),)


def weight_shardings(latent: Latent | None, mesh: Mesh) -> tuple[Any, ...]:
    """Where the arrays of `abstract_weights` live."""
    return tuple(parameter_shardings(shapes, mesh) for shapes in abstract_weights(latent))


def encode(
    latent: Latent, weights: Any, video: Float[Array, "B T H W C"], key: Array | None = None, *, scaled: bool = True
) -> Float[Array, "B T2 H2 W2 C2"]:
    """Latents of a video in [-1, 1], as diffusion sees them: of standard deviation about 1.

    Args:
      latent, weights: the autoencoder and its parameters.
      video: of sides that the factor divides.
      key: for a draw from the moments, where `latent.encode` asks for it; None: their mode.
      scaled: False leaves the latents as the autoencoder has them.
    """
    frames = latent.encode_frames or latent.autoencoder.pieces[0]
    pieces = _in_pieces(encoding_step(latent, weights), video, latent, frames,
                        latent.overlap_frames * latent.frame_factor, 1)
    found = Moments(*jnp.split(pieces, 2, axis=-1))
    drawn = key is not None and latent.encode == "sample"
    z = found.sample(jax.random.normal(key, found.mean.shape)) if drawn else found.mean
    z = _led(z, latent.ahead)  # copies, noise included
    return latent.autoencoder.normalise(z) if scaled else z


def _led(x: Float[Array, "B T H W C"], count: int) -> Float[Array, "B T2 H W C"]:
    """The first frame so many times more."""
    return jnp.concatenate([x[:, :1]] * count + [x], axis=1) if count else x


def decode(latent: Latent, weights: Any, z: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 C2"]:
    """The video of latents as diffusion sees them, within [-1, 1]."""
    frames = latent.decode_frames or latent.autoencoder.pieces[1]
    found = _in_pieces(_decoding(latent, weights), z[:, latent.ahead :], latent, frames, latent.overlap_frames,
                       latent.autoencoder.factor)
    return jnp.clip(found, -1, 1)  # what pieces are blended of is not clipped


def encoding_step(latent: Latent, weights: Any) -> Step:
    """Mean and log-variance, side by side in channels, of a piece of a clip: `step(piece, state) -> (moments, state)`.

    Pieces of a causal autoencoder follow one another, and the state, None at the beginning, holds what it needs of
    those before. The first has 1 + 4n frames, later ones have 4n, with four frames per latent. Other autoencoders take
    each piece as a clip of its own and leave the state as it is.
    """

    def moments(found: Moments) -> Array:
        return jnp.concatenate(found, axis=-1)

    return _step(latent, weights, "encode", lambda x: x, moments)


def decoding_step(latent: Latent, weights: Any) -> Step:
    """Video in [-1, 1] of some frames of latents as diffusion sees them, as `encoding_step`: frames of a clip can be
    shown while later latents are still being sampled. A decoder that adds noise adds the same each time.

    Raises `UserError` for an autoencoder whose pieces overlap and are blended.
    """
    if isinstance(latent.autoencoder, HunyuanAutoencoder):
        raise UserError(f"{type(latent.autoencoder).__name__}: its pieces overlap and are blended, so that none is "
                        "decoded on its own; permitted: decode, of all latents", "latent.decoding_step")
    step = _decoding(latent, weights)

    def clipped(piece: Array, state: Any) -> tuple[Array, Any]:
        video, state = step(piece, state)
        return jnp.clip(video, -1, 1), state

    return clipped


def _decoding(latent: Latent, weights: Any) -> Step:
    """`decoding_step`, not clipped."""
    return _step(latent, weights, "decode", latent.autoencoder.denormalise, lambda x: x)


def _step(
    latent: Latent, weights: Any, method: str, before: Callable[[Array], Array], after: Callable[[Any], Array]
) -> Step:
    module = model_kinds.module(latent.autoencoder)

    def step(piece: Array, state: Any) -> tuple[Array, Any]:
        options = {"method": method, "rngs": {NOISE: jax.random.key(0)}}  # the same noise each time
        if not latent.autoencoder.causal:
            return after(module.apply({"params": weights}, before(piece), **options)), state
        found, state = module.apply({"params": weights, **(state or {})}, before(piece), mutable=[CACHE], **options)
        return after(found), state

    return step


def _in_pieces(step: Step, x: Array, latent: Latent, frames: int | None, seen: int, factor: int) -> Array:
    """The step of all of `x`, or of some frames (which see `seen` more) and tiles at a time; `factor` is pixels of a
    side per entry."""

    def whole(piece: Array) -> Array:
        return step(piece, None)[0]

    def streamed(clip: Array) -> Array:
        if frames is None or frames >= clip.shape[1]:
            return whole(clip)
        if isinstance(latent.autoencoder, HunyuanAutoencoder):
            return in_blended_clips(whole, clip, frames, latent.autoencoder.stride(frames))
        return in_stream(step, clip, frames, latent.autoencoder.first_piece(clip.shape[1], frames))

    def tiled(function: Function, piece: Array) -> Array:
        if latent.tile is None:
            return function(piece)
        return in_tiles(function, piece, tuple(side // factor for side in latent.tile), latent.overlap // factor)

    if latent.autoencoder.causal:  # a tile has a state of its own
        return tiled(streamed, x)
    if frames is None or frames >= x.shape[1]:
        return tiled(whole, x)
    return in_chunks(lambda piece: tiled(whole, piece), x, frames, seen)


def encode_masked_video(
    latent: Latent, weights: Any, masked_video: MaskedVideo, frames_apart: bool = False
) -> MaskedVideo:
    """A masked video in latents: those of which all pixels are given, or with `frames_apart` a mask with a channel for
    each frame of a latent one. The rest of a clip is encoded as grey.

    Raises `UserError` for given low-resolution videos, which guide pixels only.
    """
    if masked_video.low is not None:
        raise UserError("a low-resolution video is given for a stage that works in latents; permitted: parts of the "
                        "video itself, or a stage that works on pixels")
    video = jnp.asarray(masked_video.video)
    mask = jnp.broadcast_to(jnp.asarray(masked_video.mask, jnp.float32), (*video.shape[:-1], 1))
    count, height, width, _ = latent.shape(*video.shape[1:4])
    found = mask_of_latents(mask, (count - latent.ahead, height, width), latent.frame_factor)
    found = _led(found, latent.ahead)
    found = found if frames_apart else found.min(-1, keepdims=True)
    return MaskedVideo(encode(latent, weights, jnp.where(mask > 0, video, 0)), found)
