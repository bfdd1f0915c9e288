"""The Pallas splash kernel of JAX on TPU, with masks computed from token numbers and block maps in closed form.

Splash visits only the blocks named in its block map and evaluates the mask inside them from row and column numbers, so
no mask is ever stored. Its own constructor finds the map by evaluating the whole mask on the host, up to 20 s at 74k
tokens; the map of a `BlockMask` is closed form and takes milliseconds, so the kernel is put together here from its
parts. Tokens of a frame are padded to whole blocks where that costs little, so that no block holds two frames.

The block map sits in scalar memory of 1 MiB, which bounds the number of blocks: long sequences take larger ones, and
the capability table says where they end for patterns that have a map (full attention has none). Forward-mode gradients
and second derivatives are not available.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from vdm_jax.attention.block_mask import EMPTY, FULL, AnyMask, ExtraKeys, SequenceLayout
from vdm_jax.errors import UserError
from vdm_jax.parallel.rules import spec

INTERPRET = False  # the tests run the kernel without a TPU
LANES = 128  # blocks of keys are whole multiples of this
BLOCKS = (512, 256, LANES)  # rows of queries and of keys per block, the best first
LARGE_BLOCK = 1024  # the largest whose operands fit vector memory
MOST_BLOCKS = 512  # per side of a block map of 3 bytes per block, in 1 MiB of scalar memory
PADDING = 1.125  # most that padding the tokens of a frame to whole blocks may cost


def attention(q, k, v, layout: SequenceLayout, *, bias=None, frame_valid=None, extra_keys: ExtraKeys | None = None,
              own: bool = True):
    """Attention of patterns over tokens; see `vdm_jax.attention.kernels` for the arguments. Raises `UserError` for
    sequences along time and for relations between frames without a formula, which a TPU kernel cannot look up."""
    del bias, extra_keys, own  # the table lets none through
    block, run = layout_of_blocks(layout)
    block_mask = layout.block_mask(run)
    if layout.pattern.layout == "positions" or (block_mask.rule is None and not block_mask.everything):
        raise UserError(f"attention kernel='splash' cannot compute pattern {layout.pattern} with frame mask "
                        f"{layout.mask_kind}; permitted: patterns over the tokens of frames or of the clip, with a "
                        "formula")
    valid = layout.key_valid(frame_valid)
    frames = block_mask.frames[0]

    def pad(x, fill=0.0):  # [B*, S, ...] to [B*, padded S, ...], first inside frames, then at the end
        x = x.reshape(x.shape[0], frames, layout.tokens, *x.shape[2:])
        tail = ((0, 0),) * (x.ndim - 3)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, run - layout.tokens), *tail), constant_values=fill)
        x = x.reshape(x.shape[0], frames * run, *x.shape[3:])
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), *tail), constant_values=fill)

    q, k, v = (pad(layout.rows(a)) for a in (q * q.shape[-1] ** -0.5, k, v))
    out = _sharded(q, k, v, None if valid is None else pad(valid, False), block_mask, block)
    out = out[:, : frames * run].reshape(out.shape[0], frames, run, *out.shape[2:])[:, :, : layout.tokens]
    return layout.video(out.reshape(out.shape[0], -1, *out.shape[3:]))


def layout_of_blocks(layout: SequenceLayout) -> tuple[int, int]:
    """Rows per block, and rows that each frame takes with its padding."""
    tokens, frames = layout.tokens, 1 if layout.pattern.layout == "frames" else layout.shape[0]
    large = tokens * frames * PADDING > MOST_BLOCKS * BLOCKS[0]
    for block in (LARGE_BLOCK,) if large else BLOCKS:
        padded = math.ceil(tokens / block) * block
        if padded <= PADDING * tokens:
            return block, padded
    if large:
        return LARGE_BLOCK, tokens
    return (BLOCKS[0] if tokens * frames >= 8 * BLOCKS[0] else LANES), tokens


@dataclasses.dataclass(frozen=True)
class _Sees:
    """The mask as a function of row and column numbers, compared by value, as splash's compilation cache needs."""

    block_mask: AnyMask

    def __call__(self, query, key):
        return self.block_mask.sees(query, key)


@functools.lru_cache(maxsize=128)
def make_kernel(block_mask: AnyMask, block: int, interpret: bool) -> splash.SplashAttentionKernel:
    """The splash kernel of a relation whose sequences are padded at the end to whole blocks.

    Takes scaled queries, keys and values `[K, S, D]` of one sequence.
    """
    lengths = [math.ceil(n / block) * block for n in block_mask.lengths]
    sizes = splash.BlockSizes(block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block,
                              block_kv_dq=block)
    blocks = block_mask.blocks(block, block)
    if (blocks == FULL).all():
        forward = backward = MaskInfo(None, None, None, None, None)
        function = None
    else:
        rows = np.arange(lengths[0], dtype=np.int32)
        forward, backward = _mask_info(blocks, rows, queries_inner=False), _mask_info(blocks, rows, queries_inner=True)
        function = _Sees(block_mask)
    return splash.SplashAttentionKernel(
        forward, forward, backward, block_sizes=sizes, is_mqa=False, save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE, attn_logits_soft_cap=None, residual_checkpoint_name=None,
        mask_function=function, interpret=interpret)


def _mask_info(blocks: np.ndarray, rows: np.ndarray, *, queries_inner: bool) -> MaskInfo:
    """Block map in the form splash reads: for every outer block the inner blocks to visit, one after the other.

    `queries_inner`: the pass for keys and values, which walks the query blocks of each key block; its lists are filled
    up in front, the others behind, always with a block that is visited anyway and so is not fetched again.
    """
    chosen = (blocks.T if queries_inner else blocks) != EMPTY
    counts = chosen.sum(axis=1)
    most = max(int(counts.max()), 1)
    order = np.argsort(~chosen, axis=1, kind="stable")[:, :most]
    place = np.arange(most)[None, :]
    if queries_inner:
        place = place - (most - counts)[:, None]
    visited = (place >= 0) & (place < counts[:, None])
    inner = np.take_along_axis(order, np.clip(place, 0, np.maximum(counts - 1, 0)[:, None]), axis=1)
    state = np.take_along_axis(blocks.T if queries_inner else blocks, inner, axis=1) * visited
    inner, state = (a.T if queries_inner else a for a in (inner, state))
    return MaskInfo(data_next=_small(inner)[None], mask_next=None, block_mask=_small(state)[None],
                    partial_mask_blocks=None, q_sequence=rows)


def _small(x: np.ndarray) -> np.ndarray:
    """The smallest integer type that holds `x`: scalar memory is scarce."""
    return x.astype(next(t for t in (np.int8, np.int16, np.int32) if x.max(initial=0) <= np.iinfo(t).max))


def _sharded(
    q: Float[Array, "N S K D"], k: Array, v: Array, valid: Bool[Array, "N S"] | None, block_mask: AnyMask, block: int,
) -> Float[Array, "N S K D"]:
    """Splash on every device's own sequences and heads: the compiler cannot split a Pallas kernel by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    run = functools.partial(_run, block_mask, block)
    if mesh.empty or mesh.size == 1 or any(t == AxisType.Manual for t in mesh.axis_types):
        return run(q, k, v, valid)
    batch, heads = spec(("batch", "heads"), mesh)
    for name, size, axes in (("sequences", q.shape[0], batch), ("heads", q.shape[2], heads)):
        parts = math.prod(mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes or ()))
        if size % parts:
            raise UserError(f"attention kernel='splash' cannot split {size} {name} over {parts} devices of mesh axes "
                            f"{axes}; permitted: multiples of {parts}")
    rows = P(batch, None, heads, None)
    specs = (rows, rows, rows, None if valid is None else P(batch, None))
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)(q, k, v, valid)


def _run(block_mask: AnyMask, block: int, q, k, v, valid):
    kernel = make_kernel(block_mask, block, INTERPRET)

    def one(q, k, v, valid):
        segments = None
        if valid is not None:  # queries are segment 1, keys of frames that do not exist segment 0
            segments = splash.SegmentIds(jnp.ones(q.shape[0], jnp.int32), valid.astype(jnp.int32))
        out = kernel(*(jnp.swapaxes(a, 0, 1) for a in (q, k, v)), segment_ids=segments)
        return jnp.swapaxes(out, 0, 1)

    return jax.vmap(one, in_axes=(0, 0, 0, None if valid is None else 0))(q, k, v, valid)
