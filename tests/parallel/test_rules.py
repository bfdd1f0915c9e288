"""Where arrays live: the table of a small network's parameters as text, and the refusals of `shard`."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.refusals import refused
from vdm_jax.attention.patterns import Temporal
from vdm_jax.diffusion.process import Process
from vdm_jax.networks.config import CrossAttention, EmbeddedText, Level, SelfAttention, UNet, WordEncoder
from vdm_jax.parallel.arrays import global_batch
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.parallel.rules import batch_parts, batch_sharding, parameter_partition, shard, shard_along, spec
from vdm_jax.stages.stage import Stage, VideoSpec
from vdm_jax.training.state import abstract_state

MIXERS = (SelfAttention(pattern=Temporal(), head_dim=4), CrossAttention(head_dim=4))
NETWORK = UNet(
    levels=(Level(channels=12, blocks=1, mixers=MIXERS),),
    embedding_channels=16, text=WordEncoder(words=("red", "blue"), length=4, width=16, layers=1, head_dim=8))
STAGE = Stage(name="base", video=VideoSpec(frames=2, height=8, width=8), network=NETWORK, process=Process())

# Parameters on data=2 x fsdp=2 x tensor=2: shape and what it is split over. Those not listed are whole.
GOLDEN = """\
down_0_0/mixers/cross_attention_1/key_value/kernel       16x24          fsdp tensor
down_0_0/mixers/cross_attention_1/out/kernel             12x12          tensor fsdp
down_0_0/mixers/cross_attention_1/query/kernel           12x12          fsdp tensor
down_0_0/mixers/temporal_attention_0/out/kernel          12x12          tensor fsdp
down_0_0/mixers/temporal_attention_0/qkv/kernel          12x36          fsdp tensor
down_0_0/residual/conv_in/kernel                         1x3x3x12x12    - - - fsdp tensor
down_0_0/residual/conv_out/kernel                        1x3x3x12x12    - - - tensor fsdp
down_0_0/residual/modulation/kernel                      16x24          fsdp tensor
embedding/hidden_0/kernel                                16x16          fsdp tensor
embedding/level/kernel                                   16x16          fsdp tensor
embedding/text/encoder/contract_0/kernel                 64x16          tensor fsdp
embedding/text/encoder/expand_0/kernel                   16x64          fsdp tensor
embedding/text/encoder/out_0/kernel                      16x16          tensor fsdp
embedding/text/encoder/qkv_0/kernel                      16x48          fsdp tensor
embedding/text/encoder/words                             4x16           - fsdp
embedding/text/pool/kernel                               16x16          fsdp tensor
middle_in/residual/conv_in/kernel                        1x3x3x12x12    - - - fsdp tensor
middle_in/residual/conv_out/kernel                       1x3x3x12x12    - - - tensor fsdp
middle_in/residual/modulation/kernel                     16x24          fsdp tensor
middle_out/residual/conv_in/kernel                       1x3x3x12x12    - - - fsdp tensor
middle_out/residual/conv_out/kernel                      1x3x3x12x12    - - - tensor fsdp
middle_out/residual/modulation/kernel                    16x24          fsdp tensor
out/kernel                                               1x3x3x12x3     - - - tensor+fsdp -
stem/kernel                                              1x3x3x3x12     - - - - tensor+fsdp
"""


def table(tree, shardings) -> list[str]:
    """A line per leaf: path, shape, mesh axis of each dimension."""
    lines = []
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        name = "/".join(getattr(k, "key", getattr(k, "name", str(getattr(k, "idx", k)))) for k in path)
        axes = ["+".join((axis,) if isinstance(axis, str) else axis or "-") for axis in sharding.spec]
        lines.append(f"{name:56} {'x'.join(map(str, leaf.shape)):14} {' '.join(axes)}".rstrip())
    return lines


@pytest.fixture(scope="module")
def state():
    return abstract_state(STAGE, make_mesh(MeshSpec(data=2, fsdp=2, tensor=2)))


def test_parameters_are_where_the_golden_table_says(state):
    lines = table(state.params, jax.tree.map(lambda a: a.sharding, state.params))
    split = [line for line in lines if "fsdp" in line or "tensor" in line]
    ups = [line for line in split if line.startswith("up_")]  # like the way down, with a shortcut
    assert "\n".join(line for line in split if line not in ups) + "\n" == GOLDEN
    assert sorted({line.split("/")[-2] for line in ups}) == [
        "conv_in", "conv_out", "key_value", "modulation", "out", "qkv", "query", "shortcut"]
    whole = {line.split()[0].split("/")[-1] for line in lines if line not in split}
    assert whole == {"bias", "scale", "null", "places"}


def test_averages_and_moments_live_where_their_parameters_do(state):
    def specs(tree):
        return jax.tree.map(lambda a: a.sharding.spec, tree)

    moments = [optax.tree.get(state.opt_state, name) for name in ("mu", "nu")]
    assert specs(state.ema) == specs(moments[0]) == specs(moments[1]) == specs(state.params)
    counts = [count for _, count in optax.tree.get_all_with_path(state.opt_state, "count")]
    assert counts
    for leaf in (state.step, state.key, *counts):
        assert leaf.sharding.is_fully_replicated


@pytest.mark.parametrize(("name", "shape", "expected"), [
    ("a/kernel", (8, 6), P("fsdp", "tensor")),
    ("a/kernel", (6, 8), P(None, ("tensor", "fsdp"))),
    ("a/kernel", (8, 7), P(("tensor", "fsdp"), None)),
    ("a/kernel", (6, 12), P("tensor", "fsdp")),  # they change places
    ("a/kernel", (16, 16), P("fsdp", "tensor")),
    ("a/out_0/kernel", (16, 16), P("fsdp", "tensor")),
    ("encoder/out_0/kernel", (16, 16), P("tensor", "fsdp")),
    ("a/kernel", (1, 3, 4, 6, 7), P(None, None, "fsdp", "tensor", None)),
    ("a/kernel", (7, 6), P(None, "tensor")),
    ("a/kernel", (7, 5), P(None, None)),
    ("a/bias", (8,), P(None)),
])
def test_a_dimension_that_does_not_divide_lets_another_be_split(name, shape, expected):
    mesh = make_mesh(MeshSpec(data=1, fsdp=4, tensor=2))
    assert parameter_partition(f"/{name}", shape, mesh) == expected


def test_weights_are_split_over_the_context_axis_too():
    mesh = make_mesh(MeshSpec(data=1, fsdp=2, context=4))
    cases = {(16, 3): P(("fsdp", "context"), None),
             (3, 16): P(None, ("fsdp", "context")), (2, 12): P("fsdp", "context")}
    assert {shape: parameter_partition("/a/kernel", shape, mesh) for shape in cases} == cases


@pytest.mark.parametrize(("sizes", "unit"), [
    ({"fsdp": 8}, 8), ({"fsdp": 4, "tensor": 2}, 4), ({"fsdp": 2, "tensor": 2, "context": 2}, 4), ({"context": 8}, 8),
    ({"tensor": 8}, 8), ({"fsdp": 2, "context": 4}, 4)])
def test_each_device_holds_its_share_of_a_large_network(sizes, unit):
    """Parameters, average and moments within 5 % of total / devices, with widths that not every axis divides."""
    text = EmbeddedText(width=1024)
    mixers = (SelfAttention(), SelfAttention(pattern=Temporal()), CrossAttention())
    mixers = tuple(dataclasses.replace(mixer, head_dim=3 * unit) for mixer in mixers)
    levels = (Level(channels=33 * unit), Level(channels=99 * unit, mixers=mixers), Level(channels=271 * unit))
    network = UNet(levels=levels,
                   embedding_channels=512, text=text)
    stage = Stage(name="base", video=VideoSpec(frames=2, height=8, width=8), network=network, process=Process())
    state = abstract_state(stage, make_mesh(MeshSpec(data=1, **sizes)))
    leaves = [a for a in jax.tree.leaves(state) if a is not state.key]
    total = sum(math.prod(a.shape) for a in leaves)
    held = sum(math.prod(a.sharding.shard_shape(a.shape)) for a in leaves)
    assert total > 1e8 and total / 8 <= held < 1.05 * total / 8


def test_axes_of_size_one_are_left_out():
    assert spec(("batch", None, "embed", "mlp"), make_mesh(MeshSpec())) == P("data", None, None, None)
    assert spec(("batch", "frames"), make_mesh(MeshSpec(data=2, fsdp=2, context=2))) == P(("data", "fsdp"), "context")
    assert spec(("batch", "channels"), make_mesh(MeshSpec(), jax.devices()[:1])) == P(None, None)


@pytest.mark.parametrize(("sizes", "parts"), [
    ({}, 8), ({"fsdp": 4}, 8), ({"tensor": 2}, 4), ({"data": 1, "context": 8}, 1)])
def test_a_batch_is_split_over_data_and_fsdp(sizes, parts):
    mesh = make_mesh(MeshSpec(**sizes))
    assert batch_parts(mesh) == parts
    batch = global_batch({"video": np.arange(16.0).reshape(8, 2)}, mesh)
    assert batch["video"].sharding == batch_sharding(mesh)
    np.testing.assert_array_equal(batch["video"], np.arange(16.0).reshape(8, 2))
    assert batch["video"].addressable_shards[0].data.shape == (8 // parts, 2)


def test_shard_places_an_array_on_the_mesh_in_context():
    mesh = make_mesh(MeshSpec(data=2, fsdp=2, context=2))
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: shard(2 * x, "batch", "frames", None))(jnp.ones((4, 2, 3)))
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, P(("data", "fsdp"), "context", None)), 3)
    np.testing.assert_array_equal(y, 2 * np.ones((4, 2, 3)))


def test_shard_without_a_mesh_leaves_the_array_and_still_checks_names():
    x = jnp.ones((3, 5))
    assert shard(x, "batch", None) is x
    with refused("rules._mesh_axes", "'bach'"):
        shard(x, "bach", None)
    with refused("rules.shard", "1", "'batch'", "3", "5", "2"):
        shard(x, "batch")


@pytest.mark.parametrize(("sizes", "axes", "message"), [
    ({}, ("bach", None), ("rules._mesh_axes", "'bach'")),
    ({}, ("batch", None), ("rules.shard", "'batch'", "6", "8")),
    ({"fsdp": 4}, ("batch", None), ("rules.shard", "'batch'", "6", "8", "'data'", "'fsdp'")),
    ({"data": 1, "fsdp": 2, "context": 4}, ("batch", "frames"),
     ("rules.shard", "'frames'", "6", "4")),
    ({}, ("batch",), ("rules.shard", "1", "'batch'", "6")),
])
def test_shard_refuses(sizes, axes, message):
    with jax.set_mesh(make_mesh(MeshSpec(**sizes))), refused(*message):
        jax.jit(lambda x: shard(x, *axes))(jnp.ones((6, 6)))


def test_unknown_logical_axis_of_a_spec():
    with refused("rules._mesh_axes", "'time'"):
        spec(("time",), make_mesh(MeshSpec()))


def test_spread_splits_one_dimension_and_leaves_the_others():
    mesh = make_mesh(MeshSpec(data=2, tensor=2, context=2))
    x = jnp.arange(4 * 6 * 8.0).reshape(4, 6, 8)
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: shard_along(shard_along(x, "frames"), "heads", dim=2))(x)
        whole = jax.jit(lambda x: shard_along(x, "heads", dim=2, must=False))(x[..., :7])
        with refused("rules.shard_along", "7", "2", "'context'"):
            jax.jit(lambda x: shard_along(x, "frames", dim=2))(x[..., :7])
    assert y.sharding.spec[1] == "context" and y.sharding.spec[2] == "tensor"
    assert whole.shape == (4, 6, 7)
    np.testing.assert_array_equal(y, x)
    assert shard_along(x, "frames") is x  # no mesh
