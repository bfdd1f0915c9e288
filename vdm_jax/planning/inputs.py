"""Shapes of what a stage's programs take, without reading any data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.data.array_record import METADATA, PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.data.image_folder import ImageFolder
from vdm_jax.data.image_shards import ImageShards
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.generation.one_stage import sampling_sharding
from vdm_jax.networks.config import EmbeddedText, WordEncoder
from vdm_jax.parallel.rules import batch_sharding
from vdm_jax.stages.options import DataSet
from vdm_jax.stages.stage import Stage


def clip_shape(data: DataSet | None, stage: Stage) -> tuple[tuple[int, int, int], str | None]:
    """`(T, H, W)` of the clips of a data set, and a note where they had to be assumed."""
    if isinstance(data, WithEmbeddings):
        data = data.data
    if data is None:
        return stage.video.shape[:3], f"there is no data: clips are assumed to be {stage.video}"
    if isinstance(data, CaptionedDigits):
        return (data.frames, data.size, data.size), None
    if isinstance(data, ImageFolder | ImageShards):
        return (1, data.height, data.width), None
    if not isinstance(data, PreparedClips):
        return (data.frames, data.height, data.width), None
    metadata = Path(data.path).expanduser() / "train" / METADATA
    if metadata.is_file():
        about = json.loads(metadata.read_text())
        return (about["frames"], about["height"], about["width"]), None
    return stage.video.shape[:3], f"{metadata} does not exist here: clips are assumed to be {stage.video}"


def training_batch(
    stage: Stage, data: DataSet | None, size: int, text_tokens: int, mesh: Mesh | None = None
) -> tuple[dict[str, jax.ShapeDtypeStruct], list[str]]:
    """A global batch of the data pipeline as shapes, split over a mesh where one is given, and notes.

    `text_tokens` is the length of texts that arrive as embeddings, and of references.
    """
    (frames, height, width), note = clip_shape(data, stage)
    notes, text, images = [note] if note else [], stage.network.text, stage.training.images_per_clip
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {"video": ((frames, height, width, 3), jnp.uint8)}
    if stage.training.frame_rates is not None:
        shapes |= {"video": ((stage.video.frames, height, width, 3), jnp.uint8), "frame_rate": ((), jnp.float32)}
    if isinstance(text, WordEncoder):
        shapes["tokens"] = (text.length,), jnp.int32
        if not text.words:
            notes.append("the words of the captions are not known before the data is: their table is left out")
    elif isinstance(text, EmbeddedText):
        shapes["embeddings"] = (text_tokens, text.width), jnp.float32
        shapes["text_mask"] = (text_tokens,), jnp.bool_
        if isinstance(data, WithEmbeddings) and data.empty == "encoded":
            shapes |= {"null_embeddings": shapes["embeddings"], "null_mask": shapes["text_mask"]}
        notes.append(f"texts are assumed to have {text_tokens} tokens (--text-tokens)")
    if stage.network.classes:
        shapes["label"] = (), jnp.int32
    for name, width in _references(stage).items():
        shapes[f"reference_{name}"] = (1, text_tokens, width), jnp.float32
        notes.append(f"reference {name!r} is assumed to have {text_tokens} tokens (--text-tokens), one group per clip")
    if images:
        shapes["images"] = (images, height, width, 3), jnp.uint8
        if isinstance(text, WordEncoder):
            shapes["image_tokens"] = (images, text.length), jnp.int32
        elif isinstance(text, EmbeddedText):
            shapes["image_embeddings"] = (images, text_tokens, text.width), jnp.float32
            shapes["image_text_mask"] = (images, text_tokens), jnp.bool_
    sharding = batch_sharding(mesh) if mesh is not None else None
    return {name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)
            for name, (shape, dtype) in shapes.items()}, notes


def sampling_inputs(stage: Stage, size: int, text_tokens: int, mesh: Mesh) -> tuple[Any, Conditioning, Any, None]:
    """Keys `[B]`, text, the low-resolution video `[B, T, H, W, 3]` (or None), and nothing known of one batch, as shapes
    on a mesh."""
    sharding, text, conditioning = sampling_sharding(stage, stage.sampling, mesh), stage.network.text, Conditioning()

    def shape(*sides: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *sides), dtype, sharding=sharding)

    if isinstance(text, WordEncoder):
        conditioning = Conditioning(tokens=shape(1, text.length, dtype=jnp.int32),
                                    text_mask=shape(1, text.length, dtype=jnp.bool_))
    elif isinstance(text, EmbeddedText):
        conditioning = Conditioning(embeddings=shape(1, text_tokens, text.width),
                                    text_mask=shape(1, text_tokens, dtype=jnp.bool_))
    if stage.network.classes:
        conditioning = conditioning.replace(labels=shape(dtype=jnp.int32))
    references = {name: shape(1, text_tokens, width) for name, width in _references(stage).items()}
    conditioning = conditioning.replace(references=references)
    low = shape(*stage.source_shape, 3) if stage.source else None
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))
    return jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=sharding), conditioning, low, None


def _references(stage: Stage) -> dict[str, int]:
    """Width of the tokens of each reference that the network takes, by name."""
    return {reference.name: reference.width for reference in stage.network.references}


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
