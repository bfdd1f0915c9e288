"""Bytes that must move, against counts by hand."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.parallel.mesh import AXES, MeshSpec, make_mesh
from vdm_jax.planning import moved, program
from vdm_jax.planning.chips import CHIPS
from vdm_jax.planning.inputs import device_bytes, training_batch
from vdm_jax.planning.moved import residual_bytes, saved_bytes, training_bytes
from vdm_jax.planning.program import Plan, compile_plan, counted_from_shapes
from vdm_jax.training.state import abstract_state


def shape(*sides, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sides, dtype)


def test_products_of_matrices_keep_their_inputs():
    """Of x -> silu(x W1) -> silu(. W2) -> . W3 the backward pass needs x W1 and x W2, in their type; not the last
    result, not what functions of single entries make of them, and nothing that depends on the parameters alone."""
    def network(trained, frozen, x):
        scale = (frozen["a"] @ frozen["a"]).sum()
        for kernel in trained:
            x = jax.nn.silu(x * scale.astype(x.dtype)) @ kernel.astype(x.dtype)
        return x

    params = [shape(3, 5), shape(5, 7), shape(7, 11)], {"a": shape(4, 4)}
    keep = moved._keep_products
    assert residual_bytes(network, keep, params, (shape(2, 3),)) == 4 * 2 * (5 + 7)
    assert residual_bytes(network, keep, params, (shape(2, 3, dtype=jnp.bfloat16),)) == 2 * 2 * (5 + 7)


def test_teacher_and_target_of_a_distillation_are_read(tiny, distilled, monkeypatch):
    monkeypatch.setattr(moved, "saved_bytes", lambda *arguments: 0)
    mesh = make_mesh(MeshSpec(), jax.devices())
    batch, _ = training_batch(distilled, tiny.data, 8, 128, mesh)
    state, plain = abstract_state(distilled, mesh), abstract_state(tiny.stages[0], mesh)
    more = (training_bytes(distilled, state, batch, mesh, ()).state
            - training_bytes(tiny.stages[0], plain, batch, mesh, ()).state)
    assert more == device_bytes(state.networks) == 2 * device_bytes(state.params)


def with_remat(stage, remat):
    return dataclasses.replace(stage, network=dataclasses.replace(stage.network, remat=remat))


def test_recomputation_keeps_less(tiny):
    stage, mesh = tiny.stages[0], make_mesh(MeshSpec(), jax.devices())
    batch, _ = training_batch(stage, tiny.data, 8, 128)
    params = abstract_state(stage, mesh).params
    none, dots, full, offload = (saved_bytes(with_remat(stage, remat), batch, params, mesh)
                                 for remat in ("none", "dots", "full", "offload"))
    # By hand: three blocks of 8 channels and two whose inputs have the channels of a skip connection too, 4 frames of
    # 2 x 2 tokens each, 8 clips, float32.
    assert full == offload == 4 * 8 * 4 * 2 * 2 * (3 * 8 + 2 * 16)
    # Logits and results of attention are products of activations: three blocks of self-attention (16 tokens, one
    # head of 8 channels) and cross-attention (to 12 words), and the encoder of words (two heads of 4 channels).
    assert none - dots == 4 * 8 * (3 * (16 * 16 + 16 * 8 + 16 * 12 + 16 * 8) + 2 * (12 * 12 + 12 * 4))
    assert full < dots
    twice, _ = training_batch(stage, tiny.data, 16, 128)
    assert saved_bytes(stage, twice, params, mesh) == 2 * none


def test_a_train_step_moves_what_it_keeps_and_saves(tiny):
    stage, mesh = tiny.stages[0], make_mesh(MeshSpec(data=2, fsdp=4), jax.devices())
    state = abstract_state(stage, mesh)
    batch, _ = training_batch(stage, tiny.data, 16, 128, mesh)
    found = training_bytes(stage, state, batch, mesh, ())
    shard = sum(leaf.dtype.itemsize * np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=int)
                for leaf in jax.tree.leaves(state.params))
    counts = 4 * sum(leaf.shape == () for leaf in jax.tree.leaves(state.opt_state))
    assert found.state == 2 * (4 * shard + counts)  # parameters, two moments, average
    assert found.gradients == 2 * shard
    assert found.inputs == 2 * (4 * 16 * 16 * 3 + 4 * 12)  # two clips per device: uint8 pixels, int32 words
    assert found.activations == 2 * saved_bytes(stage, batch, state.params, mesh) // 8
    assert found.memory == found.state + found.gradients + found.inputs + found.activations
    more = dataclasses.replace(stage, training=dataclasses.replace(stage.training, accumulation=2))
    assert training_bytes(more, state, batch, mesh, ()).gradients == 4 * shard


def on(axes, **sizes):
    mesh = jax.sharding.AbstractMesh(tuple(sizes.get(a, 1) for a in AXES), AXES, axis_types=(AxisType.Auto,) * 4)
    return mesh, jax.ShapeDtypeStruct((64, 10), jnp.float32, sharding=NamedSharding(mesh, axes))


@pytest.mark.parametrize(("axes", "sizes", "near"), [
    (P(), {"data": 4}, 2 * 3 / 4 * 640),  # gradients summed over four copies
    (P("fsdp"), {"fsdp": 4}, 3 / 4 * 640 + 3 / 4 * 640),  # gathered, then summed and split
    (P("fsdp"), {"data": 2, "fsdp": 4}, 2 * 3 / 4 * 640 + 2 / 2 * 640 / 4),  # and the shards summed over two copies
    (P(), {"tensor": 4}, 0),
    (P("tensor"), {"tensor": 4, "data": 2}, 640 / 4),
])
def test_parameters_are_gathered_and_gradients_summed(axes, sizes, near):
    mesh, leaf = on(axes, **sizes)
    assert moved._sent([leaf], [leaf], mesh, 1, ()) == (near, 0)
    assert moved._sent([leaf], [leaf], mesh, 2, ()) == (2 * near, 0)


def test_between_slices_only_shards_of_gradients_are_summed():
    mesh, leaf = on(P("fsdp"), data=4, fsdp=4)
    slices = np.array([types.SimpleNamespace(slice_index=i // 8) for i in range(16)], object)
    in_two = types.SimpleNamespace(shape=mesh.shape, devices=slices)
    near, far = moved._sent([leaf], [leaf], in_two, 1, ("data",))
    assert far == 2 * 1 / 2 * (640 / 4) / 2  # halves of the shards: two copies in each slice have one half each
    assert near + far == 2 * 3 / 4 * 640 + 2 * 3 / 4 * 640 / 4


def test_the_bound_is_the_same_at_every_effort_and_below_what_the_program_does(tiny, monkeypatch):
    """On CPU devices with the figures of a chip."""
    monkeypatch.setattr(program, "chip_of", lambda device: CHIPS["v5e"])
    plan, devices = Plan(experiment="tiny", stage=tiny.stages[0], data=tiny.data, mesh=MeshSpec()), jax.devices()[:1]
    accessed, memory = [], program.memory
    monkeypatch.setattr(program, "memory", lambda compiled, platform: accessed.append(
        compiled.cost_analysis()["bytes accessed"]) or memory(compiled, platform))
    report = compile_plan(plan, devices)
    assert 0 < report["moved"]["memory"] < accessed[0]
    assert report["roofline"]["seconds"]["memory"] == report["moved"]["memory"] / 819e9
    assert report["as_compiled"]["step_seconds"] == report["roofline"]["step_seconds"]  # one device sends nothing
    full = counted_from_shapes(dataclasses.replace(plan, effort="full"), make_mesh(plan.mesh, devices))
    assert full == {name: report[name] for name in ("flops", "moved", "roofline")}
