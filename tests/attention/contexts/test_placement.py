"""Contexts next to other mesh axes, without a mesh, what they send, and what they refuse."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.attention.oracle import PATTERNS, name
from tests.refusals import refused
from vdm_jax.attention import (
    BlockCausal,
    Causal,
    FirstFrames,
    Full,
    LocalWindow,
    SparseCausal,
    Spatial,
    Temporal,
    TemporalCausal,
    attend,
)
from vdm_jax.attention.block_mask import SequenceLayout
from vdm_jax.attention.contexts import CONTEXTS
from vdm_jax.attention.contexts.halo import find_halo
from vdm_jax.attention.contexts.ring import Ring
from vdm_jax.attention.patterns import independent_frames_mask
from vdm_jax.parallel.mesh import MeshSpec, make_mesh

PAIRS = {"all_gather": Causal(), "halo": SparseCausal(), "ulysses": Full(), "ring": Causal(), "zigzag_ring": Causal(),
         "ulysses_ring": Causal(), "relayout": Temporal()}


def inputs(shape, batch=4, heads=4, dim=4):
    rng = np.random.default_rng(0)
    return {key: jnp.asarray(rng.normal(size=(batch, *shape, heads, dim)), jnp.float32) for key in "qkv"}


def gradients(arrays, contexts):
    """Values and gradients of attention in several contexts, in one program."""
    def run(arrays):
        outs = {c: attend(**arrays, pattern=PAIRS[c], kernel="xla", context=c) for c in contexts}
        return sum((out**2).sum() for out in outs.values()), outs

    grads, outs = jax.grad(run, has_aux=True)(arrays)
    return outs, grads


def test_all_contexts_beside_data_fsdp_and_tensor():
    """Batch over fsdp, heads over tensor, frames over context, inside jit: as on one device, and placed as given."""
    assert set(PAIRS) == set(CONTEXTS)
    contexts = sorted(set(PAIRS) - {"ulysses_ring"})
    arrays, mesh = inputs((4, 2, 2)), make_mesh(MeshSpec(fsdp=2, tensor=2, context=2))
    expected = jax.jit(lambda a: gradients(a, contexts))(arrays)  # without a mesh: the kernel alone
    sharding = NamedSharding(mesh, P("fsdp", "context", None, None, "tensor", None))
    with jax.set_mesh(mesh):
        found = jax.jit(lambda a: gradients(a, contexts))(jax.device_put(arrays, sharding))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.sharding.is_equivalent_to(sharding, a.ndim)
        np.testing.assert_allclose(a, b, atol=3e-5)


def test_eight_devices_with_one_frame_each():
    """Halos that reach several devices, a ring of four pairs that share heads, positions that do not divide."""
    arrays = inputs((8, 3, 1), batch=1, heads=2)
    contexts = ["all_gather", "halo", "ring", "ulysses_ring", "relayout"]
    expected = jax.jit(lambda a: gradients(a, contexts))(arrays)
    with jax.set_mesh(make_mesh(MeshSpec(data=1, context=8))):
        found = jax.jit(lambda a: gradients(a, contexts))(arrays)
        pattern = Causal(window=4)
        wide = jax.jit(lambda a: attend(**a, pattern=pattern, kernel="gather", context="halo"))(arrays)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)
    np.testing.assert_allclose(wide, attend(**arrays, pattern=pattern, kernel="xla"), atol=1e-5)


def test_a_batch_that_does_not_divide_is_computed_whole():
    arrays = inputs((4, 2, 1), batch=3)
    with jax.set_mesh(make_mesh(MeshSpec(data=2, context=4))):
        out = jax.jit(lambda a: attend(**a, pattern=Causal(), context="ring"))(arrays)
    np.testing.assert_allclose(out, attend(**arrays, pattern=Causal()), atol=1e-5)


def test_without_a_context_axis_the_kernel_computes_alone():
    arrays = inputs((3, 2, 1))  # three frames would not divide
    expected = attend(**arrays, pattern=Causal(), kernel="xla")
    np.testing.assert_array_equal(attend(**arrays, pattern=Causal(), kernel="xla", context="ring"), expected)
    others = make_mesh(MeshSpec(data=4), jax.devices()[:4]), Mesh(np.array(jax.devices()[:2]), "x")
    for mesh in others:
        with jax.set_mesh(mesh):
            out = jax.jit(lambda a: attend(**a, pattern=Causal(), kernel="xla", context="ring"))(arrays)
        np.testing.assert_allclose(out, expected, atol=1e-6)


# ---------------------------------------------------------------------------------------------- what is sent

FRAME = 6 * 4 * 4  # elements of one frame of one sample: 3 x 2 positions, 4 heads of 4


def collectives(pattern, context, frames, kernel="xla"):
    """Collectives of forward and backward on eight devices: kind and largest number of elements."""
    x = jax.ShapeDtypeStruct((1, frames, 3, 2, 4, 4), jnp.float32)
    mesh = make_mesh(MeshSpec(data=1, context=8))
    place = NamedSharding(mesh, P(None, "context"))
    with jax.set_mesh(mesh):
        loss = lambda *a: (attend(*a, pattern=pattern, kernel=kernel, context=context) ** 2).sum()
        step = jax.jit(jax.grad(loss, (0, 1, 2)), in_shardings=(place,) * 3, out_shardings=(place,) * 3)
        text = step.lower(x, x, x).compile().as_text()
    found = {}
    operation = r"= (.+?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    for result, kind in re.findall(operation, text):
        sizes = [np.prod([int(n) for n in dims.split(",") if n], dtype=int) for dims in re.findall(r"\[([\d,]*)\]",
                                                                                                  result)]
        found[kind] = max(found.get(kind, 0), *sizes)
    return found


@pytest.mark.parametrize(("pattern", "kinds"), [
    (SparseCausal(), {"collective-permute": 1, "all-reduce": 2}), (Causal(window=2), {"collective-permute": 1}),
    (SparseCausal(previous=False), {"all-reduce": 2}), (LocalWindow(), {"collective-permute": 1}), (Spatial(), {}),
], ids=lambda x: name(x) if not isinstance(x, dict) else "")
def test_a_halo_sends_frames_whose_number_does_not_grow_with_the_clip(pattern, kinds):
    """Permutes of single frames, sums of the first frame (of keys and values together at most), and nothing else."""
    small, large = (collectives(pattern, "halo", frames) for frames in (16, 32))
    assert small == large and set(small) == set(kinds)
    assert all(size <= kinds[kind] * FRAME for kind, size in small.items())


def test_the_other_contexts_send_what_they_say():
    assert collectives(Full(), "all_gather", 16)["all-gather"] >= 16 * FRAME
    ring = collectives(Full(), "ring", 16)
    assert set(ring) == {"collective-permute"} and ring["collective-permute"] <= 2 * FRAME  # two frames per device
    assert set(collectives(Temporal(), "relayout", 16)) == {"all-to-all"}


# ---------------------------------------------------------------------------------------------- plans


def halo_of(pattern, frames=16, devices=4, frame_mask=None):
    mask = None if frame_mask is None else frame_mask.tobytes()
    halo = find_halo(SequenceLayout(pattern, (frames, 2, 2), mask), devices)
    return halo.first, halo.before, halo.after


def test_the_halo_is_what_is_seen():
    assert halo_of(SparseCausal()) == (True, 1, 0)
    assert halo_of(SparseCausal(first=False)) == (False, 1, 0)
    assert halo_of(SparseCausal(previous=False)) == (True, 0, 0)
    assert halo_of(Causal(window=6)) == (False, 5, 0)
    assert halo_of(LocalWindow(frames=5)) == (False, 2, 2)
    assert halo_of(TemporalCausal(window=1)) == (False, 0, 0)
    assert halo_of(SparseCausal(), frame_mask=np.eye(16, dtype=bool)) == (False, 0, 0)
    assert halo_of(FirstFrames(count=3)) == (3, 0, 0)


@pytest.mark.parametrize("pattern", [*PATTERNS, BlockCausal(block=3, window=6, sink=3)], ids=name)
def test_the_halo_holds_the_fewest_frames(pattern):
    """By looking at every number of first frames; and it is found once."""
    layout, frames = SequenceLayout(pattern, (24, 2, 2)), 6
    pairs = [(query // frames * frames, key) for query, key in np.argwhere(layout.frame_table)]
    held = [first + max([start - key for start, key in pairs if key >= first] + [0]) for first in range(24)]
    halo = find_halo(layout, 4)
    assert halo.first + halo.before == min(held) and halo.before == held[halo.first] - halo.first
    assert find_halo(SequenceLayout(pattern, (24, 2, 2)), 4) is halo


def ring_of(pattern, members=4, zigzag=False, frame_mask=None):
    mask = None if frame_mask is None else frame_mask.tobytes()
    return Ring("xla", SequenceLayout(pattern, (2 * members, 2, 2), mask), members, 1, zigzag)


def test_a_ring_passes_over_distances_that_nobody_needs():
    assert ring_of(Causal()).distances() == [0, 1, 2, 3]
    assert ring_of(Causal(window=2)).distances() == [0, 1]
    assert ring_of(LocalWindow(frames=3)).distances() == [0, 1, 3]
    assert ring_of(Causal(), frame_mask=independent_frames_mask(0, 8)).distances() == [0]


def test_zigzag_gives_every_device_the_same_causal_work():
    def work(ring):
        table = ring.layout.frame_table
        ids = [np.concatenate(ring.ids(m)) for m in range(ring.members)]
        assert sorted(np.concatenate(ids)) == list(range(len(table)))
        return [[int(table[np.ix_(ids[m], ids[(m - d) % ring.members])].sum()) for m in range(ring.members)]
                for d in range(1, ring.members)]

    assert work(ring_of(Causal())) == [[0, 4, 4, 4], [0, 0, 4, 4], [0, 0, 0, 4]]  # some wait
    assert work(ring_of(Causal(), zigzag=True)) == [[2] * 4] * 3


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(("context", "shape", "heads", "message"), [
    ("ring", (6, 2, 1), 4, ("sharded.run_sharded", "context='ring'", "6 frames", "context=4", "multiples of 4")),
    ("ulysses", (4, 2, 1), 6, ("ulysses.check", "6 heads", "context=4", "multiples of 4")),
    ("zigzag_ring", (12, 2, 1), 4, ("ring.check_halves", "3 frames", "multiples of 8")),
    ("ulysses_ring", (4, 2, 1), 3, ("ulysses_ring.check", "3 heads", "context=4", "context='ring'")),
])
def test_what_does_not_divide_is_an_error(context, shape, heads, message):
    with jax.set_mesh(make_mesh(MeshSpec(data=2, context=4))), refused(*message):
        attend(**inputs(shape, heads=heads), pattern=Causal(), context=context)


@pytest.mark.parametrize(("pattern", "options", "message"), [
    (Full(), {"context": "halo"}, ("capability.require", "context='halo'")),
    (Causal(), {"context": "halo"}, ("capability.require", "window=None")),
    (Causal(), {"context": "relayout"}, ("capability.require", "context='relayout'")),
    (Spatial(), {"context": "ring"}, ("capability.require", "kernel='chunked'", "context='halo'")),
    (Causal(), {"context": "ring", "kernel": "splash"}, ("capability.require", "kernel='splash'", "context='ring'")),
    (Causal(), {"context": "ring", "kernel": "xla", "bias": jnp.zeros((4, 8, 8))}, ("capability.resolve",)),
], ids=lambda x: name(x) if not isinstance(x, str | dict) else "")
def test_what_the_table_does_not_list_is_an_error(pattern, options, message):
    with refused(*message):
        attend(**inputs((4, 2, 1)), pattern=pattern, **options)
