"""What every registered condition promises: fields, parts and shapes that agree in planning, training and examples."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from vdm_jax.conditions.conditioning import CONDITIONS, Conditioning, claimed, conditions_of
from vdm_jax.conditions.frame_masks import FrameMask, NoMask
from vdm_jax.conditions.inputs import Input, map_fields
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.config import CrossAttention, EmbeddedText, Level, Reference, UNet, WordEncoder
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.planning.inputs import sampling_inputs, training_batch
from vdm_jax.stages.inputs import device_fields, training_inputs
from vdm_jax.stages.options import Training
from vdm_jax.stages.parameters import example_conditioning
from vdm_jax.stages.stage import LowResolution, Stage, VideoSpec

DATA = CaptionedDigits(size=16, frames=4)
NETWORK = UNet(levels=(Level(channels=8, blocks=1),), embedding_channels=16)
TAKEN = {  # by condition: what a stage has that takes it
    "text": {"text": WordEncoder(words=("a",), length=3, width=8, head_dim=8)},
    "text, embedded": {"text": EmbeddedText(width=5)},
    "label": {"classes": 3},
    "reference": {"references": (Reference(name="pose", width=6), Reference(name="picture", width=48, patch=4))},
    "scalars": {"scalars": ("fps",)},
    "control": {"conditions": (Input(name="control", width=3, enters="channels"),)},
    "edges": {"conditions": (Input(name="edges", width=1, enters="channels"),)},
    "sound": {"conditions": (Input(name="sound", width=5),),
              "levels": (Level(channels=8, blocks=1, mixers=(CrossAttention(head_dim=8),)),)},
    "pooled_text": {"conditions": (Input(name="pooled_text", width=5),)},
    "image_prompt": {"conditions": (Input(name="image_prompt", width=5),),
                     "levels": (Level(channels=8, blocks=1, mixers=(CrossAttention(head_dim=8),)),)},
    "frames": {"conditioning_frames": True},
    "low_resolution": {"low_resolution": True},
}


def make(name: str) -> Stage:
    training = Training(masking=(FrameMask(first=1), NoMask()) if name == "frames" else ())
    source = LowResolution(frames=2, height=4, width=4) if name == "low_resolution" else None
    return Stage(name="one", video=VideoSpec(frames=2, height=8, width=8), source=source, training=training,
                 process=Process(), network=dataclasses.replace(NETWORK, **TAKEN[name]))


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, jnp.dtype(x.dtype)), tree)


@pytest.mark.parametrize("name", TAKEN)
def test_planned_batches_become_the_example_conditioning(name):
    """The fields that a condition says it reads are claimed, and make what it says a network gets."""
    stage = make(name)
    batch, _ = training_batch(stage, DATA, 2, 1)
    assert set(device_fields(batch)) == set(batch)
    _, conditioning, _ = jax.eval_shape(lambda b: training_inputs(stage, b, jax.random.key(0)), batch)
    assert shapes(conditioning) == shapes(example_conditioning(stage, 2))
    given = sampling_inputs(stage, 2, 1, make_mesh(MeshSpec(data=1), jax.devices()[:1]))[1]
    for path, leaf in jax.tree_util.tree_leaves_with_path(given):
        assert (path, leaf.shape) in [(p, x.shape) for p, x in jax.tree_util.tree_leaves_with_path(conditioning)]


@pytest.mark.parametrize("name", TAKEN)
def test_a_null_value_and_a_window_keep_the_parts(name):
    stage, example = make(name), example_conditioning(make(name), 2)
    for condition in conditions_of(stage.network):
        if not condition.present(example) or condition.guidance is None:
            continue
        null = example.without(condition.guidance, jnp.array([True, False]))
        assert shapes(null) == shapes(example)
    part = jax.eval_shape(lambda c: c.window(jnp.array(0), 1, 2), example)
    changed = {str(path[0].name) for (path, a), (_, b) in zip(
        jax.tree_util.tree_leaves_with_path(part), jax.tree_util.tree_leaves_with_path(example), strict=True)
        if a.shape != b.shape}
    assert changed <= {part for condition in conditions_of(stage.network) for part in condition.frame_parts}


def test_every_part_of_a_conditioning_belongs_to_a_condition():
    parts = {name for condition in CONDITIONS.values() for name in condition.parts} | {
        "inputs", "features"}  # of input conditions, by their names
    assert parts == {field.name for field in dataclasses.fields(Conditioning)}
    assert all(set(c.frame_parts) <= set(c.parts) and set(c.frame_fields) <= set(c.fields) for c in CONDITIONS.values())
    assert claimed("reference_pose", "fields") and not claimed("video", "fields") and claimed("caption", "host_fields")


def test_what_is_mirrored_with_a_clip_are_maps():
    assert "control" in map_fields() and "sound" not in map_fields()
