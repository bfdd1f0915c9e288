"""Gathers that the compiler wrote as sums are found; ordinary sums and gathers are not taken for them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.parallel.gathers import check_gathers, check_shards, summed_gathers
from vdm_jax.parallel.mesh import AXES, MeshSpec, make_mesh

PLAIN = """\
ENTRY %main (p: f32[6,8]) -> f32[48,8] {
  %p = f32[6,8]{1,0} parameter(0)
  %id = u32[] partition-id()
  %zero = f32[] constant(0)
  %first = s32[] constant(0)
  %zeros = f32[48,8]{1,0} broadcast(%zero), dimensions={}
  %offset = s32[] convert(%id)
  %placed = f32[48,8]{1,0} dynamic-update-slice(%zeros, %p, %INDEX, %first)
  %same = f32[48,8]{1,0} copy(%placed)
  ROOT %sum = f32[48,8]{1,0} all-reduce(%same), replica_groups={{0,1}}, to_apply=%add
}
"""
FUSED = """\
%fused (a: f32[6,8], b: s32[]) -> f32[48,8] {
  %a = f32[6,8]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %zero = f32[] constant(0)
  %first = s32[] constant(0)
  %zeros = f32[48,8]{1,0} broadcast(%zero), dimensions={}
  ROOT %placed = f32[48,8]{1,0} dynamic-update-slice(%zeros, %a, %b, %first)
}

ENTRY %main (p: f32[6,8], i: s32[]) -> f32[48,8] {
  %p = f32[6,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %fusion.1 = f32[48,8]{1,0} fusion(%p, %i), kind=kLoop, calls=%fused
  %start = f32[48,8]{1,0} all-reduce-start(%fusion.1), to_apply=%add
  ROOT %sum = f32[48,8]{1,0} all-reduce-done(%start)
}
"""
ZEROS_GIVEN = FUSED.replace("b: s32[])", "b: s32[], z: f32[48,8])").replace(
    "%zeros = f32[48,8]{1,0} broadcast(%zero), dimensions={}", "%zeros = f32[48,8]{1,0} parameter(2)").replace(
    "%fusion.1 = f32[48,8]{1,0} fusion(%p, %i)", "%none = f32[] constant(0)\n"
    "  %empty = f32[48,8]{1,0} broadcast(%none), dimensions={}\n"
    "  %fusion.1 = f32[48,8]{1,0} fusion(%p, %i, %empty)")  # zeros that several fusions share
MESH = {"data": 1, "fsdp": 8}


@pytest.mark.parametrize(("text", "name"), [
    (PLAIN.replace("INDEX", "offset"), "sum"), (FUSED, "start"), (ZEROS_GIVEN, "start")])
def test_a_shard_summed_into_zeros_is_a_gather(text, name):
    assert summed_gathers(text) == {name: 48 * 8 * 4}
    assert check_gathers(text, make_mesh(MeshSpec(**MESH))) == [
        "parameters are split over fsdp=8, but the program has no all-gather",
        "1 all-gathers of arrays split over fsdp=8 were compiled as all-reduces, 0.0 MiB in all, which sends "
        "twice as much: put fewer devices on that axis and more on data"]
    assert check_gathers(text, make_mesh(MeshSpec())) == []  # no parameter is split


def test_a_little_that_is_summed_is_not_worth_a_line():
    large = "%big = f32[48,800]{1,0} all-gather(%p), replica_groups={{0,1}}, dimensions={0}\n  %same ="
    text = PLAIN.replace("INDEX", "offset").replace("%same =", large, 1)
    assert summed_gathers(text) and check_gathers(text, make_mesh(MeshSpec(**MESH))) == []


@pytest.mark.parametrize("text", [
    PLAIN.replace("INDEX", "first"),  # every device writes to the same place
    PLAIN.replace("INDEX", "offset").replace("(%zeros, %p", "(%same, %p"),  # not into zeros
    PLAIN.replace("INDEX", "offset").replace("all-reduce(%same)", "all-reduce(%zeros)"),
    ZEROS_GIVEN.replace("broadcast(%none)", "negate(%none)"),  # not into zeros
])
def test_other_sums_are_not(text):
    assert summed_gathers(text) == {}


def test_a_real_program_that_gathers_its_weights():
    mesh = make_mesh(MeshSpec(**MESH))
    weights, rows = NamedSharding(mesh, P("fsdp", None)), NamedSharding(mesh, P("fsdp", None))
    function = jax.jit(lambda w, x: jnp.sin(x @ w), in_shardings=(weights, rows), out_shardings=rows)
    text = function.lower(jnp.zeros((64, 32)), jnp.zeros((4096, 64))).compile().as_text()
    assert "all-gather" in text and check_gathers(text, mesh) == []


def advice(rows: int, **sizes: int) -> str | None:
    """Of one kernel of so many rows, on chips that are not there."""
    mesh = AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    sharding = NamedSharding(mesh, P("fsdp", None))
    return check_shards({"kernel": jax.ShapeDtypeStruct((rows, 1024), jnp.float32, sharding=sharding)}, mesh)


@pytest.mark.parametrize(("rows", "sizes", "words"), [
    (4096, {"data": 1, "fsdp": 64}, "all 64 devices of a slice"),  # thick shards, and summed for all that
    (4096, {"data": 2, "fsdp": 32}, None),
    (1024, {"data": 4, "fsdp": 64}, None),
    (512, {"data": 4, "fsdp": 64}, None),  # shards of 8 rows
    (256, {"data": 4, "fsdp": 64}, "100% of the weights, split over 64 devices (fsdp=64), are in shards of 4 rows"),
    (512, {"data": 1, "fsdp": 32}, None),  # a whole slice, but a small one
    (4, {"data": 64, "fsdp": 1}, None),  # nothing is split
])
def test_what_is_summed_is_seen_from_shapes(rows, sizes, words):
    """As libtpu 0.0.42 compiled one product and its gradient for v5e, v5p and v6e slices."""
    found = advice(rows, **sizes)
    assert found is None if words is None else words in found


def test_shapes_say_nothing_of_other_platforms():
    mesh = make_mesh(MeshSpec(**MESH))
    sharding = NamedSharding(mesh, P("fsdp", None))
    assert check_shards({"kernel": jax.ShapeDtypeStruct((8, 1024), jnp.float32, sharding=sharding)}, mesh) is None
