"""Shapes of what a stage's programs take, without reading any data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from vdm_jax.conditions.conditioning import Conditioning, Sizes, conditions_of
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.generation.one_stage import sampling_sharding
from vdm_jax.parallel.rules import batch_sharding
from vdm_jax.stages.options import DataSet
from vdm_jax.stages.parameters import conditioning_of
from vdm_jax.stages.stage import Stage


def clip_shape(data: DataSet | None, stage: Stage) -> tuple[tuple[int, int, int], str | None]:
    """`(T, H, W)` of the clips of a data set, and a note where they had to be assumed."""
    if data is None:
        return stage.video.shape[:3], f"there is no data: clips are assumed to be {stage.video}"
    shape = data.clip_shape()
    if shape is not None:
        return shape, None
    return stage.video.shape[:3], (f"the data of {type(data).__name__} does not exist here: clips are assumed to be "
                                   f"{stage.video}")


def training_batch(
    stage: Stage, data: DataSet | None, size: int, text_tokens: int, mesh: Mesh | None = None
) -> tuple[dict[str, jax.ShapeDtypeStruct], list[str]]:
    """A global batch of the data pipeline as shapes, split over a mesh where one is given, and notes.

    `text_tokens` is the length of texts that arrive as embeddings, and of references.
    """
    clip, note = clip_shape(data, stage)
    rates, images = stage.training.frame_rates is not None, stage.training.images_per_clip
    clip = (stage.video.frames, *clip[1:]) if rates else clip
    sizes = Sizes(tokens=text_tokens, clip=clip, padded=data is not None and data.padded,
                  frame_prompts=getattr(data, "frame_prompts", False),
                  null_text=isinstance(data, WithEmbeddings) and data.empty == "encoded")
    notes, shapes = [note] if note else [], {"video": ((*clip, 3), jnp.uint8)}
    if images:
        shapes["images"] = (images, *clip[1:], 3), jnp.uint8
    for condition in conditions_of(stage.network):
        shapes |= condition.batch_shapes(stage, sizes)
        notes += condition.assumed(stage, sizes)
    sharding = batch_sharding(mesh) if mesh is not None else None
    return {name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)
            for name, (shape, dtype) in shapes.items()}, notes


def sampling_inputs(stage: Stage, size: int, text_tokens: int, mesh: Mesh) -> tuple[Any, Conditioning, Any, None]:
    """Keys `[B]`, what is asked for, the low-resolution video `[B, T, H, W, 3]` (or None), and no conditioning frames
    of one batch, as shapes on a mesh."""
    sharding = sampling_sharding(stage, stage.sampling, mesh)

    def shape(sides: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *sides), dtype, sharding=sharding)

    conditioning = conditioning_of(stage, Sizes(tokens=text_tokens), shape, given=True)
    low = shape((*stage.source_shape, 3)) if stage.source else None
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))
    return jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=sharding), conditioning, low, None


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of shapes on the device that holds most of it."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        sharding: NamedSharding = leaf.sharding
        shape = sharding.shard_shape(leaf.shape)
        itemsize = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        size = itemsize
        for side in shape:
            size *= side
        total += size
    return total
