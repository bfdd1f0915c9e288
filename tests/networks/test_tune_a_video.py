"""Tune-A-Video's network: what it adds to the image network, what it sees, and how its tensors are called."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.attention import SparseCausal
from vdm_jax.commands.configs import load_config
from vdm_jax.networks.latent_unet import LATENT_UNET_SD1, LATENT_UNET_TUNE_A_VIDEO, LatentUNet
from vdm_jax.networks.latent_unet_network import LatentUNetNetwork
from vdm_jax.parallel.rules import path_name
from vdm_jax.training.trainable import split
from vdm_jax.weights import model_kinds
from vdm_jax.weights.fields import Fields
from vdm_jax.weights.latent_inflation import plan_latent_inflation

IMAGE = LatentUNet(widths=(8,), blocks=1, attention=(True,), heads=(2,), only_cross_attention=(False,),
                   token_channels=6, groups=2)
VIDEO = dataclasses.replace(IMAGE, temporal_attention=True, norm_over="residual",
                            spatial_pattern=SparseCausal(first=True, previous=True, own=False))
TOKENS = jax.random.normal(jax.random.key(2), (1, 1, 3, 6))


def inputs(frames):
    return jax.random.normal(jax.random.key(1), (1, frames, 4, 4, 4)), jnp.array([300.0]), TOKENS


def drawn(unet, seed=0):
    """Parameters without zeros."""
    shapes = jax.eval_shape(lambda: LatentUNetNetwork(unet).init(jax.random.key(0), *inputs(1)))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def tuned():
    return drawn(VIDEO)


def test_it_begins_as_the_image_network(tuned):
    """Temporal attention ends in zeros; the first frame sees itself alone."""
    image = drawn(IMAGE, seed=3)
    plan = plan_latent_inflation(VIDEO, tuned, IMAGE, image)
    params = plan.apply(tuned, image)
    found = LatentUNetNetwork(VIDEO).apply({"params": params}, *inputs(1))
    expected = LatentUNetNetwork(IMAGE).apply({"params": image}, *inputs(1))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert all("temporal_attention" in name for name in (*plan.zero_initialised, *plan.new)) and plan.new


def test_a_frame_sees_the_first_and_the_previous_one(tuned):
    """Without temporal attention and norms over the clip, by what a change of one frame reaches."""
    unet = dataclasses.replace(VIDEO, norm_over="frame", widths=(8,))
    quiet = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if "/temporal_attention/out/" in path_name(path) else leaf, tuned)
    # A single transformer, so that what one frame takes over does not go on to the next.
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if re.search(r"/(down|up)\w+_transformer/out/", path_name(path)) else leaf, quiet)
    x, *rest = inputs(4)

    run = jax.jit(lambda x: LatentUNetNetwork(unet).apply({"params": params}, x, *rest))

    whole = run(x)
    reached = [[bool(jnp.abs(run(x.at[:, changed].add(1.0)) - whole)[0, frame].max() > 1e-4) for frame in range(4)]
               for changed in range(4)]
    assert reached == [[True, True, True, True], [False, True, True, False], [False, False, True, True],
                       [False, False, False, True]]


def test_temporal_attention_joins_all_frames(tuned):
    x, *rest = inputs(3)
    run = jax.jit(lambda x: LatentUNetNetwork(dataclasses.replace(VIDEO, norm_over="frame")).apply(
        {"params": tuned}, x, *rest))
    assert float(jnp.abs(run(x.at[:, 2].add(1.0)) - run(x))[0, 0].max()) > 1e-3  # the first sees the last


def test_names_and_trained_tensors_are_those_of_the_authors():
    unet, image = LATENT_UNET_TUNE_A_VIDEO, model_kinds.inventory(LATENT_UNET_SD1)
    found = model_kinds.inventory(unet)
    added = {name for name in found if name not in image}
    assert {name: found[name] for name in image} == image and len(added) == 16 * 7
    assert all(re.search(r"\.transformer_blocks\.0\.(attn_temp\.to_(q|k|v|out\.0)|norm_temp)\.", name)
               for name in added)
    assert sum(np.prod(shape) for shape in found.values()) == 909_120_004
    shapes = jax.tree.map(lambda a: a, model_kinds.shapes(unet))
    nested: dict = {}
    for path, leaf in shapes.items():
        *parents, last = path.split("/")
        place = nested
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = leaf
    stage, = load_config("tune_a_video/one_shot").stages
    trained, _ = split(nested, stage.training.trainable)
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(trained)]
    assert len(names) == 16 * (1 + 1 + 5)
    assert not any("norm" in name for name in names)


def test_fields_of_the_authors_class_go_there_and_back():
    kind = model_kinds.kind_of(LATENT_UNET_TUNE_A_VIDEO)
    fields = kind.write(LATENT_UNET_TUNE_A_VIDEO)
    assert kind.name == "UNet3DConditionModel" and fields["mid_block_type"] == "UNetMidBlock3DCrossAttn"
    assert fields["down_block_types"][0] == "CrossAttnDownBlock3D" and fields["attention_head_dim"] == [8] * 4
    assert kind.read(Fields(fields, "config.json")) == LATENT_UNET_TUNE_A_VIDEO
    with refused("LatentUNet", "temporal_attention=True", "motion=Motion", "one kind of temporal layers"):
        from vdm_jax.networks.latent_frames import MOTION_V1

        dataclasses.replace(LATENT_UNET_TUNE_A_VIDEO, motion=MOTION_V1)
