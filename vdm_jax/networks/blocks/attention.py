"""The attention of all networks: among the tokens of a video by any pattern, to tokens from outside, or both."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.attention import AttentionPattern, ExtraKeys, Full, Spatial, WithExtraKeys, attend, cross_pattern
from vdm_jax.attention.after_softmax import attend_masked_after
from vdm_jax.attention.positions import (
    LAYOUT_AXES,
    Rotary,
    RotaryCoordinates,
    rotary,
    rotary_coordinates,
    rotary_pairs,
)
from vdm_jax.networks.blocks.positions import (
    AddedPositions,
    HeadLayerNorm,
    HeadNorm,
    RelativeBias,
    RelativeKeys,
    RelativeValues,
    frame_numbers,
)
from vdm_jax.networks.layers import Dense, Initializer, PartedDense, add_residual, fan_in

Tokens = tuple[Float[Array, "B G L E"] | None, Bool[Array, "B G L"] | None]  # from outside, and which may be seen
# Keys and values of frames before, [B, frames, H W, K, D], and which of these frames are there
Past = tuple[Float[Array, "B _ _ K D"], Float[Array, "B _ _ K D"], Bool[Array, " _"]]
KEPT = "keys_values"  # name, in the collection `kept`, of the keys and values of a self-attention
ImageTokens = tuple[Float[Array, "B _ M F"], Bool[Array, "B _ M"] | None]  # further ones
INPUTS = "attention_inputs"  # name, among the intermediates, of what a self-attention projects


class Attention(nn.Module):
    """Multi-head attention of the tokens of a video and an output projection `out`.

    With a pattern it is self-attention; an `WithExtraKeys` one also, or only, sees tokens from outside. Without a
    pattern it is cross-attention to these, in one group for the clip or one per frame.

    Projections are joint or separate, as weights are stored. Joint: `qkv` makes queries, keys and values of the video,
    `extra_keys` (after the norm `external_norm`) keys and values of outside tokens; `query` and `key_value` are those
    of cross-attention. Separate: `query`, `key` and `value`; outside tokens go through the same `key` and `value`, so
    that weights need no others (reference features: Hu et al. 2023, arXiv 2311.17117). `image` are further ones, whose
    `image_key` and `image_value` are their own, and what cross-attention finds there is added (decoupled
    cross-attention: Ye et al. 2023, arXiv 2308.06721).

    Positions are those of `config.SelfAttention`. A sequence `[B, L, C]` is a video of L frames of one token.
    """

    head_dim: int | None = None  # None: the channels over the heads
    heads: int | None = None  # None: the channels over the size of a head
    pattern: AttentionPattern | None = Spatial()
    features: int | None = None  # of the output; None: as many as of the input
    joint: bool = True
    bias: bool = False  # of projections
    out_bias: bool = True
    out_init: Initializer = fan_in
    position: str = "none"
    position_names: tuple[str, str] = ("position", "value_position")  # of its parameters, of keys and of values
    max_offset: int = 16  # positions; further offsets share one entry
    rotary_axes: Rotary | None = None  # of `rotary`; None: an even share of the head for each axis of the layout
    # RMS norm of each head; "width": of all heads together, "layer": layer norm of each head, both with separate
    # projections only
    qk_norm: bool | Literal["width", "layer"] = False
    qk_epsilon: float = 1e-6  # of that norm
    scaled: bool = True  # logits, by the root of the head's size
    norm: Callable[[], nn.Module] | None = None  # makes the norm before it
    norm_outside: bool = False  # whether outside tokens go through the same norm
    residual: bool = False  # whether the input is added to the output
    kernel: str = "auto"  # see `vdm_jax.attention`
    context: str = "none"
    dtype: jnp.dtype = jnp.float32
    # Outside tokens ask too, of each other and of the video, through the same layers (joint attention: CogVideoX, Yang
    # et al. 2024, 2408.06072) or layers of their own (`own`: Esser et al. 2024, 2403.03206): they are returned as
    # well. Separate projections and `WithExtraKeys` patterns only
    two_way: Literal["none", "shared", "own"] = "none"
    project: bool = True  # what is found, by `out`
    masked_after: bool = False  # the pattern hides weights after the softmax over all frames; `after_softmax.py`
    # What of the video the mesh splits, if it does; "width" for patterns that treat frames and columns alike, as `Full`
    sharded_axis: str = "frames"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B *thw C"], frame_mask: Bool[np.ndarray, "T T"] | None = None,
        outside: Tokens | None = None, frame_valid: Bool[Array, "B T"] | None = None,
        bias: Float[Array, "K Q S"] | None = None, image: ImageTokens | None = None,
        numbers: Int[np.ndarray | Array, " T"] | None = None, past: Past | None = None,
        image_scale: Float[Array, " B"] | None = None,
    ) -> Float[Array, "B *thw O"] | tuple[Float[Array, "B *thw O"], Float[Array, "B G L E"]]:
        """Frames of a sample that do not exist (`frame_valid`) are not seen; `bias` is added to the logits. What is
        found among `image` counts `image_scale` times. `numbers` are those of the frames, for rotary positions with
        axes. With `past` the tokens are one block of frames, all of which see each other and what is kept of frames
        before; positions are in the keys already."""
        h = x
        if self.norm is not None:
            norm = self.norm()
            h = norm(x)
            outside = (norm(outside[0]), outside[1]) if self.norm_outside else outside
        if self.position in ("sinusoidal", "learned"):
            h = h + AddedPositions(self.position, self.pattern.layout, name="position")(h, frame_mask)
        if self.pattern is not None:
            self.sow("intermediates", INPUTS, h)
        h = h[:, :, None, None] if h.ndim == 3 else h
        heads = self.heads or x.shape[-1] // self.head_dim
        shape = (heads, self.head_dim or x.shape[-1] // heads)
        q, k, v, extra_keys, asking = (self._joint if self.joint else self._separate)(h, outside, shape)
        q = q if self.scaled else q * shape[1] ** 0.5  # `attend` scales
        options = {"kernel": self.kernel, "extra_keys": extra_keys, "sharded_axis": self.sharded_axis}
        if self.pattern is None:
            q, extra_keys = self.crossing(q, extra_keys)
            options["extra_keys"] = extra_keys
            y = attend(q, pattern=cross_pattern(extra_keys.k.shape[1]), **options)
            if image is not None:
                options["extra_keys"] = ExtraKeys(*(self._projection(name, shape)(image[0]) for name in (
                    "image_key", "image_value")), image[1])
                found = attend(q, pattern=cross_pattern(image[0].shape[1]), **options)
                if image_scale is not None:
                    found = found * image_scale.astype(found.dtype).reshape(-1, *[1] * (found.ndim - 1))
                y = y + found
        elif k is None:
            y = attend(q, pattern=cross_pattern(extra_keys.k.shape[1]), **options)
        else:
            q, k, relative = self._positions(q, k, frame_mask, numbers)
            self.sow("kept", KEPT, (k, v))
            if self.pattern.layout != "frames":
                options |= {"context": self.context, "frame_valid": frame_valid}
            options |= relative if bias is None else {"bias": bias}
            across = self.sharded_axis == "width"  # contexts split the first axis: columns stand in the place of frames
            q, k, v = (a.swapaxes(1, 3) for a in (q, k, v)) if across else (q, k, v)
            if asking is not None:
                found = self._outside(asking, k, v, extra_keys, frame_valid)
            pattern = self.pattern
            if past is not None:
                pattern, options["extra_keys"] = WithExtraKeys(inner=Full()), _of_past(past)
            y = self.attending(q, k, v, pattern=pattern, frame_mask=frame_mask,
                               **options | ({"sharded_axis": "frames"} if across else {}))
            y = y.swapaxes(1, 3) if across else y
        y = y.reshape(*x.shape[:-1], -1)
        if not self.project:
            return y if asking is None else (y, found)
        out = self._out("out", x.shape[-1])
        if asking is not None:
            own = self.two_way == "own"
            return out(y), (self._out("outside_out", outside[0].shape[-1]) if own else out)(found)
        y = out(y)
        return add_residual(x, y) if self.residual else y

    def crossing(
        self, q: Float[Array, "B *thw K D"], outside: ExtraKeys
    ) -> tuple[Float[Array, "B *thw K D"], ExtraKeys]:
        """Queries of cross-attention and keys and values of the outside tokens as they are: where
        `flax.linen.intercept_methods` changes them."""
        return q, outside

    def attending(
        self, q: Float[Array, "B T H W K D"], k: Float[Array, "B T H W K D"], v: Float[Array, "B T H W K D"],
        **options: Any,
    ) -> Float[Array, "B T H W K D"]:
        """What the queries of self-attention find among its keys and values; frames and columns change places where
        the mesh splits the width. `flax.linen.intercept_methods` changes it."""
        return (attend_masked_after if self.masked_after else attend)(q, k, v, **options)

    def seen(self, x: Float[Array, "B *thw C"]) -> Float[Array, "B G L C"] | None:
        """The tokens that self-attention by separate projections sees in place of the video's own, of which `x` are
        what it projects: None, which are its own, but where `flax.linen.intercept_methods` gives others."""
        return None

    def _out(self, name: str, features: int) -> Dense:
        return Dense(self.features or features, self.out_bias, self.out_init, self.dtype, name=name)

    def _outside(
        self, asking: Float[Array, "B 1 L K D"], k: Float[Array, "B T H W K D"], v: Float[Array, "B T H W K D"],
        extra_keys: ExtraKeys, frame_valid: Bool[Array, "B T"] | None,
    ) -> Float[Array, "B 1 L C"]:
        """What outside tokens, in one group, find among each other and in the video."""
        keys, values = (jnp.concatenate([a, b.reshape(len(b), 1, -1, *b.shape[4:])], axis=2)
                        for a, b in ((extra_keys.k, k), (extra_keys.v, v)))
        mask, tokens = extra_keys.mask, keys.shape[2] - extra_keys.k.shape[2]
        if mask is not None or frame_valid is not None:
            mask = jnp.ones(extra_keys.k.shape[:3], bool) if mask is None else mask
            there = jnp.ones(k.shape[:2], bool) if frame_valid is None else frame_valid
            there = jnp.repeat(there, tokens // k.shape[1], axis=1, total_repeat_length=tokens)
            mask = jnp.concatenate([mask, there[:, None]], axis=2)
        q = asking.swapaxes(1, 2)[:, :, :, None]  # [B, L, 1, 1, K, D]
        y = attend(q, pattern=cross_pattern(1), extra_keys=ExtraKeys(keys, values, mask), kernel=self.kernel)
        return y.reshape(len(y), 1, y.shape[1], -1)

    def _joint(
        self, x: Float[Array, "B T H W C"], outside: Tokens | None, shape: tuple[int, int]
    ) -> tuple[Array, Array | None, Array | None, ExtraKeys | None, None]:
        """Queries, keys, values and those of outside tokens, by joint kernels."""

        def project(parts: int, name: str) -> PartedDense:
            return PartedDense(parts, shape, use_bias=self.bias, dtype=self.dtype, name=name)

        if self.pattern is None:
            keys = ExtraKeys(*project(2, "key_value")(outside[0]), outside[1])
            return *project(1, "query")(x), None, None, keys, None
        q, k, v = project(3, "qkv")(x)
        if self.qk_norm:
            q, k = HeadNorm(name="query_norm")(q), HeadNorm(name="key_norm")(k)
        if not isinstance(self.pattern, WithExtraKeys):
            return q, k, v, None, None
        tokens = nn.LayerNorm(use_bias=False, dtype=self.dtype, name="external_norm")(outside[0])
        keys, values = project(2, "external")(tokens)
        keys = HeadNorm(name="external_key_norm")(keys) if self.qk_norm else keys
        return q, k, v, ExtraKeys(keys, values, outside[1]), None

    def _separate(
        self, x: Float[Array, "B T H W C"], outside: Tokens | None, shape: tuple[int, int]
    ) -> tuple[Array, Array | None, Array | None, ExtraKeys | None, Array | None]:
        """The same by a kernel each, which outside tokens share with those of the video unless theirs are their own;
        last the queries of outside tokens, where they ask."""

        query, key, value = (self._projection(name, shape) for name in ("query", "key", "value"))
        extra_keys = asking = None
        ask, see, tell = query, key, value
        if self.two_way == "own":
            ask, see, tell = (self._projection(f"outside_{name}", shape) for name in ("query", "key", "value"))
        if self.pattern is None or isinstance(self.pattern, WithExtraKeys):
            extra_keys = ExtraKeys(see(outside[0]), tell(outside[0]), outside[1])
        if self.two_way != "none":
            asking = ask(outside[0])
        own, others = (None, None), None if self.pattern is None else self.seen(x)
        if others is not None:
            extra_keys = ExtraKeys(key(others), value(others))
        elif self.pattern is not None:
            own = (key(x), value(x))
        return query(x), *own, extra_keys, asking

    def _projection(self, name: str, shape: tuple[int, int]) -> Callable[[Array], Float[Array, "*batch K D"]]:
        """Tokens to queries, keys or values, with their norm."""
        dense = Dense(math.prod(shape), use_bias=self.bias, dtype=self.dtype, name=name)
        norm: Callable[[Array], Array] = lambda x: x  # noqa: E731
        if self.qk_norm and not name.endswith("value"):
            norm = (HeadLayerNorm if self.qk_norm == "layer" else HeadNorm)(self.qk_epsilon, name=f"{name}_norm")
        if self.qk_norm == "width":
            return lambda tokens: norm(dense(tokens)).reshape(*tokens.shape[:-1], *shape)
        return lambda tokens: norm(dense(tokens).reshape(*tokens.shape[:-1], *shape))

    def _positions(
        self, q: Float[Array, "B T H W K D"], k: Float[Array, "B T H W K D"],
        frame_mask: Bool[np.ndarray, "T T"] | None, numbers: Int[np.ndarray | Array, " T"] | None = None,
    ) -> tuple[Array, Array, dict[str, Any]]:
        """Queries and keys with their positions, and what `attend` takes of positions in addition."""
        layout, (of_keys, of_values) = self.pattern.layout, self.position_names
        if isinstance(self.rotary_axes, RotaryCoordinates):
            return *(rotary_coordinates(a, self.rotary_axes) for a in (q, k)), {}
        if self.position == "rotary" and self.rotary_axes is not None:
            numbers = frame_numbers(q.shape[1], frame_mask) if numbers is None else numbers
            return *(rotary_pairs(a, self.rotary_axes, numbers) for a in (q, k)), {}
        if self.position == "rotary":
            return rotary(q, axes=LAYOUT_AXES[layout]), rotary(k, axes=LAYOUT_AXES[layout]), {}
        if self.position in ("relative", "t5"):
            table = RelativeBias(q.shape[-2], self.position, self.max_offset, name=of_keys)
            return q, k, {"bias": table(layout, q.shape[1:4])}
        if self.position not in ("shaw", "shaw_key_value"):
            return q, k, {}
        relative = {"bias": RelativeKeys(self.max_offset, name=of_keys)(q, layout)}
        if self.position == "shaw_key_value":
            relative["offset_values"] = RelativeValues(q.shape[-1], self.max_offset, name=of_values)(layout)
        return q, k, relative


def _of_past(past: Past) -> ExtraKeys:
    """Keys and values of frames before as outside tokens of the whole block."""
    keys, values, there = past
    batch, frames, positions = keys.shape[:3]
    seen = jnp.broadcast_to(jnp.repeat(there, positions, total_repeat_length=frames * positions), (
        batch, 1, frames * positions))
    return ExtraKeys(*(a.reshape(batch, 1, -1, *a.shape[3:]) for a in (keys, values)), seen)
