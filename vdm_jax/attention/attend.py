"""The one entry to attention, self and cross: pattern, kernel and context in, attended tokens out."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vdm_jax.attention import counting
from vdm_jax.attention.block_mask import ExtraKeys, SequenceLayout
from vdm_jax.attention.capability import Request, resolve
from vdm_jax.attention.contexts import CONTEXTS, Call, context_size, local, run_sharded
from vdm_jax.attention.kernels import KERNELS, tiles
from vdm_jax.attention.patterns import (
    AttentionPattern,
    Full,
    Spatial,
    WithExtraKeys,
    by_heads,
    check_layout,
    context_of,
    heads_of,
)
from vdm_jax.attention.products import Pattern, TokenOrder
from vdm_jax.errors import UserError
from vdm_jax.parallel.compiling import target_platform


def attend(
    q: Float[Array, "B T H W K D"],
    k: Float[Array, "B T H W K D"] | None = None,
    v: Float[Array, "B T H W K D"] | None = None,
    *,
    pattern: AttentionPattern,
    kernel: str = "auto",
    context: str = "none",
    bias: Float[Array, "*rest K Q S"] | None = None,
    frame_mask: Bool[np.ndarray, "T T"] | None = None,
    frame_valid: Bool[Array, "B T"] | None = None,
    extra_keys: ExtraKeys | None = None,
    offset_values: dict[str, Float[Array, "_ D"]] | None = None,
    platform: str | None = None,
    sharded_axis: str = "frames",
) -> Float[Array, "B T H W K D"]:
    """Attention of the tokens of a video among themselves, to tokens from outside, or both.

    Cross-attention has `WithExtraKeys(mode="replace")` for a pattern (`cross_pattern` chooses it) and neither k nor v.
    Sequences that are no videos stand along T, with H = W = 1: `Temporal` then shows every token every other.
    A token that sees nothing at all gets zeros (and gives no gradient).

    Args:
      q, k, v: queries, keys and values per token; q and k already carry their positions. a pattern that sees no own
        tokens needs no k and v.
      pattern: who sees whom.
      kernel, context: how and where; checked against the capability table. `auto` chooses for `platform`. A context
        spreads the frames over the mesh axis `context`; without a mesh, or where that axis has one device, the kernel
        computes alone and the result is the same.
      bias: added to the logits among the own tokens: `[K, queries, keys]` of the sequences of the pattern's layout
        (frames, positions or the clip), or `[B*, K, queries, keys]` with one per sequence.
      frame_mask: which frame may see which, the same for all samples, on top of the pattern (appended independent
        images, see `independent_frames_mask`). A frame left alone by both sees itself.
      frame_valid: which frames of each sample exist; tokens of the others are not seen.
      extra_keys: extra keys and values `[B, G, M, K, D]` for `WithExtraKeys` patterns. G = 1: seen by all frames;
        G = T: group t is seen by frame t.
      offset_values: vectors added to the own values by clipped offset, one table per axis of the pattern's layout (see
        `positions.relative_values`).
      sharded_axis: what of the video is split over the mesh axis `context`, `frames` or `height`. A context brings
        frames together first; without one, sequences that lie within a device stay there, and the compiler gathers the
        others.
      platform: cpu, gpu or tpu; None: that of the mesh in context, else the default backend.

    Raises `UserError` for what the capability table does not list and for shapes that do not fit.
    """
    if len(by_heads(pattern)) > 1:
        return _group_by_group(pattern, q, k, v, bias, extra_keys, offset_values, kernel=kernel, context=context,
                               frame_mask=frame_mask, frame_valid=frame_valid, platform=platform,
                               sharded_axis=sharded_axis)
    own = not (isinstance(pattern, WithExtraKeys) and pattern.mode == "replace")
    if (own or context != "none") and (k is None or v is None):
        raise UserError(f"attend: pattern {pattern} in context={context!r} without k and v; permitted: k and v, or "
                        "WithExtraKeys(mode='replace') in context='none', where nothing of the video is exchanged")
    _check_extra_keys(pattern, extra_keys, q.shape, own, bias, offset_values)
    inner = pattern.inner if isinstance(pattern, WithExtraKeys) else pattern
    shape = q.shape[1:4]
    check_layout(inner, shape)
    layout = SequenceLayout(inner, shape, _mask_bytes(frame_mask, shape[0]))
    alone = context == "none" and offset_values is None
    clips_apart = alone and platform in (None, "cpu") and local.whole_clips(q.shape[0], q.shape[4])
    request = Request(pattern=pattern, shape=shape, batch=q.shape[0], heads=q.shape[4], head_dim=q.shape[5],
                      dtype=q.dtype.name, platform=target_platform(platform), bias=bias is not None,
                      frame_mask=layout.mask_kind, frame_valid=frame_valid is not None,
                      extra_keys=extra_keys is not None,
                      extra_tokens=0 if extra_keys is None else extra_keys.k.shape[2],
                      extra_hidden=extra_keys is not None and _hides(inner, extra_keys),
                      offset_values=offset_values is not None,
                      tiled=clips_apart or (tiles.available() and platform in (None, "cpu")))
    kernel, devices = resolve(request, kernel, context), context_size()
    order = inner.token_order(shape) if own else None
    if order is not None:
        _check_order(inner, order, devices if context != "none" else 1, frame_mask=layout.frame_mask, bias=bias,
                     frame_valid=frame_valid, offset_values=offset_values, extra_keys=extra_keys)
    if (calls := counting.calls()) is not None:
        calls.append(counting.AttentionCall(
            inner, shape, q.shape[0], q.shape[4], q.shape[5], kernel, context, own,
            0 if extra_keys is None else extra_keys.k.shape[2], layout.frame_mask))
        return jnp.zeros_like(q, dtype=(v if own else extra_keys.v).dtype)
    if order is not None:
        layout = SequenceLayout(order.pattern, order.shape)
        q, k, v = (None if a is None else order.there(a) for a in (q, k, v))
    more = {"bias": bias, "frame_valid": frame_valid, "extra_keys": extra_keys}
    if offset_values is not None:  # the table lets it through to kernels alone
        more["offset_values"] = offset_values
    dim = local.local_dimension(layout, sharded_axis, devices, own) if alone else None
    if dim is not None or (clips_apart and kernel == "xla"):
        out = local.attention(kernel, layout, dim, devices, q, k, v, **more, own=own)
    elif context == "none" or devices == 1:
        out = KERNELS[kernel](q, k, v, layout, **more, own=own)
    else:
        out = run_sharded(CONTEXTS[context], Call(context, kernel, layout, devices, own), q, k, v, **more)
    something = _sees_something(layout, frame_valid, extra_keys, own)
    out = out if something is None else jnp.where(something[..., None, None, None, None], out, 0)
    return out if order is None else order.back(out)


def _group_by_group(pattern: Pattern, q, k, v, bias, extra_keys: ExtraKeys | None, offset_values, *, context: str,
                    **options) -> Float[Array, "B T H W K D"]:
    """Equal groups of heads, each with a pattern of its own."""
    patterns, count = by_heads(pattern), heads_of(pattern, q.shape[4])
    layouts = sorted({one.layout for one in patterns})
    if len(layouts) > 1 and (bias is not None or offset_values is not None):
        raise UserError(f"attend: bias or offset_values with PerHead patterns of layouts {', '.join(layouts)}; "
                        "permitted: neither, or one layout for all heads")
    outs = []
    for i, one in enumerate(patterns):
        heads = slice(i * count, (i + 1) * count)
        tokens = (None if a is None else a[..., heads, :] for a in (q, k, v))
        extra = extra_keys and ExtraKeys(extra_keys.k[..., heads, :], extra_keys.v[..., heads, :], extra_keys.mask)
        part = None if bias is None else bias[..., heads, :, :]
        outs.append(attend(*tokens, pattern=one, bias=part, extra_keys=extra, offset_values=offset_values,
                           context=context_of(one, context), **options))
    return jnp.concatenate(outs, axis=4)


def _check_order(pattern: Pattern, order: TokenOrder, devices: int, *, extra_keys: ExtraKeys | None, **given) -> None:
    """Raise `UserError` for what is given frame by frame, and for tiles that devices do not divide."""
    given["extra_keys of every frame"] = None if extra_keys is None or extra_keys.k.shape[1] == 1 else extra_keys
    for name, value in given.items():
        if value is not None:
            raise UserError(f"attend: {name} with {pattern}, whose tokens are computed tile by tile; permitted: "
                            "order='frames'")
    if order.shape[0] % devices:
        raise UserError(f"attend: {order.shape[0]} tiles of {pattern} over {devices} devices of a context; permitted: "
                        f"multiples of {devices}, or order='frames'")


def _sees_something(
    layout: SequenceLayout, frame_valid: Bool[Array, "B T"] | None, extra_keys: ExtraKeys | None, own: bool,
) -> Bool[Array, "B T"] | None:
    """Which frames see any token at all; None when all do. Positions never take everything away from a frame."""
    if extra_keys is not None and extra_keys.mask is None:
        return None
    table = layout.frame_table & own
    if frame_valid is None and table.any(axis=1).all():
        return None
    valid = jnp.ones((1, layout.shape[0]), bool) if frame_valid is None else frame_valid
    something = (table & valid[:, None, :]).any(axis=2)
    return something if extra_keys is None else something | extra_keys.mask.any(axis=2)


def cross_pattern(groups: int) -> WithExtraKeys:
    """The pattern of cross-attention to outside tokens in so many groups: 1 for the clip, or one per frame."""
    return WithExtraKeys(inner=Full() if groups == 1 else Spatial(), mode="replace")


def _hides(inner: Pattern, extra_keys: ExtraKeys) -> bool:
    """Whether some outside tokens of a sequence are hidden from some of its queries."""
    return extra_keys.mask is not None or (extra_keys.k.shape[1] > 1 and inner.layout != "frames")


def _mask_bytes(frame_mask: np.ndarray | None, frames: int) -> bytes | None:
    """The frame mask as a value; a mask that hides nothing is none."""
    if frame_mask is None:
        return None
    frame_mask = np.asarray(frame_mask, bool)
    if frame_mask.shape != (frames, frames):
        raise UserError(f"attend: frame_mask of shape {frame_mask.shape} for {frames} frames; "
                        f"permitted: ({frames}, {frames})")
    return None if frame_mask.all() else frame_mask.tobytes()


def _check_extra_keys(pattern, extra_keys: ExtraKeys | None, shape: tuple[int, ...], own: bool, bias,
                      offset_values) -> None:
    if isinstance(pattern, WithExtraKeys) != (extra_keys is not None):
        raise UserError(f"attend: pattern {pattern} with extra_keys={'None' if extra_keys is None else 'ExtraKeys'}; "
                        "permitted: a WithExtraKeys pattern together with ExtraKeys, or neither")
    if extra_keys is not None:
        batch, frames, _, _, heads, dim = shape
        found, groups = extra_keys.k.shape, {1, frames}
        if len(found) != 5 or found[0] != batch or found[1] not in groups or found[3:] != (heads, dim):
            permitted = " or ".join(map(str, sorted(groups)))
            raise UserError(f"attend: extra_keys keys of shape {found}; permitted: [{batch}, {permitted}, tokens, "
                            f"{heads}, {dim}]")
        for name, value in (("bias", bias), ("offset_values", offset_values)):
            if value is not None and not own:
                raise UserError(f"attend: {name} is among the own tokens, which WithExtraKeys(mode='replace') does not "
                                f"see; permitted: {name}=None")
