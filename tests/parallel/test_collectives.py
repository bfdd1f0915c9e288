"""Collectives read from compiled programs of known communication."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.parallel.collectives import axes_of, collectives, describe, listed, read_groups
from vdm_jax.planning.traffic import traffic

N, ROWS, COLUMNS = 8, 4, 16
PART = 4 * ROWS * COLUMNS  # bytes of a device's part


def compiled_text(function):
    mesh = Mesh(np.array(jax.devices()[:N]), ("x",))
    x = jax.ShapeDtypeStruct((N * ROWS, COLUMNS), jnp.float32, sharding=NamedSharding(mesh, P("x")))
    call = jax.shard_map(function, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False)
    return jax.jit(call).lower(x).compile().as_text()


def ring(x):
    def step(carry, _):
        k, total = carry
        k = lax.ppermute(k, "x", [(i, (i + 1) % N) for i in range(N)])
        return (k, total + jnp.tanh(k)), None

    return lax.scan(step, (x, x), None, length=N)[0][1]


CASES = {
    "all-gather": (lambda x: jnp.tanh(lax.all_gather(x, "x", tiled=True))[:ROWS], 1, N * PART),
    "all-reduce": (lambda x: lax.psum(x, "x"), 1, PART),
    "reduce-scatter": (lambda x: lax.psum_scatter(jnp.tile(x, (N, 1)), "x", tiled=True), 1, N * PART),
    "all-to-all": (lambda x: lax.all_to_all(x, "x", 1, 1, tiled=True), 1, PART),
    "collective-permute": (ring, N, N * PART),
}


@pytest.mark.parametrize("kind", CASES)
def test_number_and_bytes(kind):
    function, count, size = CASES[kind]
    assert collectives(compiled_text(function)) == {kind: {"count": count, "bytes": size}}


def test_a_program_without_any():
    assert collectives(compiled_text(jnp.tanh)) == {}
    assert describe({}) == "none"


# As the TPU compiler writes it: loops without a stated length, asynchronous pairs, layouts with brackets.
TPU = """
%body.1 (p: (s32[], bf16[256,512])) -> (s32[], bf16[256,512]) {
  %p = (s32[]{:T(128)}, bf16[256,512]{1,0:T(8,128)(2,1)}) parameter(0)
  %k = bf16[256,512]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %collective-permute-start = (bf16[256,512]{1,0:T(8,128)(2,1)}, bf16[256,512]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, \
u32[]{:S(2)}) collective-permute-start(%k), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %done = bf16[256,512]{1,0:T(8,128)(2,1)} collective-permute-done(%collective-permute-start)
}

%condition.1 (q: (s32[], bf16[256,512])) -> pred[] {
  %limit = s32[]{:T(128)} constant(4)
  %q = (s32[]{:T(128)}, bf16[256,512]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%all-reduce-scatter.1 (r: f32[64,8]) -> f32[32,8] {
  %r = f32[64,8]{1,0} parameter(0)
  %all-reduce.9 = f32[64,8]{1,0} all-reduce(%r), to_apply=%add
}

ENTRY %main (a: f32[64,8]) -> f32[32,8] {
  %a = f32[64,8]{1,0:T(8,128)} parameter(0)
  %t = (s32[], bf16[256,512]{1,0:T(8,128)(2,1)}) tuple(%zero, %b)
  %while.1 = (s32[]{:T(128)}, bf16[256,512]{1,0:T(8,128)(2,1)}) while(%t), condition=%condition.1, body=%body.1
  %both = (f32[8]{0}, f32[64,8]{1,0}) all-reduce(%c, %a), replica_groups={{0,1}}, to_apply=%add
  ROOT %fusion.1 = f32[32,8]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_as_the_tpu_compiler_writes_it():
    found = collectives(TPU)
    assert found == {"all-reduce": {"count": 1, "bytes": 4 * (8 + 64 * 8)},
                     "collective-permute": {"count": 4, "bytes": 4 * 2 * 256 * 512},
                     "reduce-scatter": {"count": 1, "bytes": 4 * 64 * 8}}
    assert describe(found).startswith("1 all-reduce 0.0 MiB, 4 collective-permute 1.0 MiB")


def test_a_kernel_whose_metadata_breaks_lines_does_not_end_the_program():
    text = """\
ENTRY %main (p: f32[8,4]) -> f32[64,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %kernel = f32[8,4]{1,0} custom-call(%p), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="splash"}, backend_config={"flag_configs":[]}
  ROOT %all = f32[64,4]{1,0} all-gather(%kernel), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}, execution_thread="main"

%other (p: f32[8,4]) -> f32[8,4] {
  ROOT %p = f32[8,4]{1,0} parameter(0)
}
"""
    assert collectives(text) == {"all-gather": {"count": 1, "bytes": 64 * 4 * 4}}


def test_a_loop_of_unknown_length_is_said():
    found = collectives(TPU.replace("direction=LT", "direction=NE"))
    assert found["collective-permute"] == {"count": 1, "bytes": 2 * 256 * 512, "unknown_loops": 1}
    assert "more in loops of unknown length" in describe(found)


MESH = {"data": 2, "fsdp": 2, "tensor": 1, "context": 2}


@pytest.mark.parametrize(("text", "axes"), [
    ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("data",)),
    ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("context",)),
    ("replica_groups={}", ("data", "fsdp", "context")),
    ("source_target_pairs={{0,2},{2,0},{1,3},{3,1}}", ("fsdp",)),
    ("replica_groups=[4,2]<=[8]", ("context",)),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",)),
    ("replica_groups=[2,4]<=[8], use_global_device_ids=true", ("fsdp", "context")),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", ("data",)),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}, x", ("data",)),
    ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)2}, x", ("fsdp",)),
    ("replica_groups=mesh['axis_0'=8] {'axis_0':(1)2,'axis_0':(4)2}", ("data", "context")),
    ("replica_groups=[2,8]<=[16]", None),  # devices that the mesh has not
    ("replica_groups=something_new", None),
])
def test_groups_in_every_form_are_mesh_axes(text, axes):
    assert axes_of(read_groups(text), MESH) == axes


def test_the_axis_that_a_compiled_collective_crosses():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=NamedSharding(mesh, P(("a", "b"))))

    def both(x):
        return lax.psum(x, "a") + lax.all_gather(x, "b", tiled=True)[:1]

    call = jax.shard_map(both, mesh=mesh, in_specs=P(("a", "b")), out_specs=P(("a", "b")), check_vma=False)
    found = {one.kind: one for one in listed(jax.jit(call).lower(x).compile().as_text())}
    assert axes_of(found["all-reduce"].groups, dict(mesh.shape)) == ("a",)
    assert axes_of(found["all-gather"].groups, dict(mesh.shape)) == ("b",)


def test_a_fused_reduce_scatter_has_the_groups_of_its_computation():
    text = TPU.replace("all-reduce(%r), to_apply", "all-reduce(%r), replica_groups={{0,1}}, to_apply")
    scatter = next(one for one in listed(text) if one.kind == "reduce-scatter")
    assert axes_of(scatter.groups, {"data": 1, "fsdp": 2}) == ("fsdp",)
    permute = next(one for one in listed(text) if one.kind == "collective-permute")
    assert (permute.times, permute.groups) == (4, ((0, 1), (1, 0)))


# A gather that goes on while a product is computed, as the TPU compiler writes it: its start, the fusion that computes
# and its end all repeat the collective.
ASYNCHRONOUS = """HloModule m, is_scheduled=true

%fused (p: bf16[16,128]) -> (bf16[16,128], bf16[64,128]) {
  %p = bf16[16,128]{1,0} parameter(0)
  %all-gather.1 = bf16[64,128]{1,0} all-gather(%p), channel_id=4, replica_groups=mesh['axis_0'=4] {'axis_0'}, dimensions={0}
  ROOT %custom-call.4 = (bf16[16,128]{1,0}, bf16[64,128]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p: bf16[16,128], w: bf16[32,128]) -> bf16[32,16] {
  %p = bf16[16,128]{1,0} parameter(0)
  %w = bf16[32,128]{1,0} parameter(1)
  %all-gather.2 = bf16[64,128]{1,0} all-gather(%p), channel_id=4, replica_groups=mesh['axis_0'=4] {'axis_0'}, dimensions={0}
  ROOT %product = bf16[32,16]{1,0} convolution(%w, %p), dim_labels=bf_oi->bf
}

%waits (p: bf16[16,128]) -> bf16[64,128] {
  %p = bf16[16,128]{1,0} parameter(0)
  %all-gather.3 = bf16[64,128]{1,0} all-gather(%p), channel_id=4, replica_groups=mesh['axis_0'=4] {'axis_0'}, dimensions={0}
  ROOT %custom-call.5 = bf16[64,128]{1,0} custom-call(%p, %all-gather.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x: bf16[16,128], w: bf16[32,128]) -> bf16[64,128] {
  %x = bf16[16,128]{1,0} parameter(0)
  %w = bf16[32,128]{1,0} parameter(1)
  %before = bf16[32,128]{1,0} fusion(%w), kind=kLoop, calls=%other, backend_config={"estimated_cycles":"7"}
  %async-collective-start = (bf16[16,128]{1,0}, bf16[64,128]{1,0}) fusion(%x), kind=kCustom, calls=%fused
  %get = bf16[64,128]{1,0} get-tuple-element(%async-collective-start), index=1
  %fusion.1 = bf16[32,16]{1,0} fusion(%x, %w), kind=kOutput, calls=%async_collective_fusion.1, backend_config={"estimated_cycles":"900"}
  %fusion.2 = bf16[32,16]{1,0} fusion(%fusion.1), kind=kLoop, calls=%other, backend_config={"estimated_cycles":"80"}
  ROOT %async-collective-done = bf16[64,128]{1,0} fusion(%x), kind=kCustom, calls=%waits
}
"""  # noqa: E501


def test_an_asynchronous_gather_of_the_tpu_compiler_counts_once_with_what_hides_it():
    (one,) = listed(ASYNCHRONOUS)
    assert (one.kind, one.bytes, one.groups) == ("all-gather", 64 * 128 * 2, ((0, 1, 2, 3),))
    assert (one.distance, one.cycles) == (2, 980)
    (row,) = traffic([one, one._replace(distance=None, cycles=0)], {"fsdp": 4})
    assert row == {"kind": "all-gather", "axes": "fsdp", "count": 2, "bytes": 2 * 16384, "sent": 2 * 12288,
                   "overlapped": 1, "overlapped_bytes": 16384, "distance": 2, "cycles": 980}


@pytest.mark.parametrize(("text", "distance"), [
    (ASYNCHRONOUS.replace("channel_id=4, replica_groups=mesh['axis_0'=4] {'axis_0'}, dimensions={0}\n  ROOT "
                          "%custom-call.5", "channel_id=5, dimensions={0}\n  ROOT %custom-call.5"), None),  # of another
    (ASYNCHRONOUS.replace(", is_scheduled=true", ""), None),  # the text is in no order
    ("\n".join(line for line in ASYNCHRONOUS.splitlines() if "%fusion." not in line), 0),  # nothing is computed
])
def test_what_hides_nothing(text, distance):
    (one,) = listed(text)
    assert (one.distance, one.cycles) == (distance, 0)
    assert "overlapped" not in traffic([one], {"fsdp": 4})[0]


def test_pairs_of_start_and_done():
    """In a loop, as often as it runs; the other kinds make the device wait."""
    text = "HloModule m, is_scheduled=true\n" + TPU.replace("  %done = ", (
        "  %work = bf16[256,512]{1,0} convolution(%k, %k), backend_config={\"estimated_cycles\":\"50\"}\n  %done = "))
    assert {one.kind: (one.distance, one.cycles) for one in listed(text)} == {
        "collective-permute": (1, 50), "all-reduce": (None, 0), "reduce-scatter": (None, 0)}
    rows = traffic(listed(text), {"fsdp": 2})
    assert next(row["cycles"] for row in rows if row["kind"] == "collective-permute") == 4 * 50
