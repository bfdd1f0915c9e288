"""Attention whose sequences lie within devices: same numbers as on one device, and nothing is exchanged."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.attention import ExtraKeys, Full, Spatial, Temporal, WithExtraKeys, attend
from vdm_jax.attention.contexts.local import whole_clips
from vdm_jax.attention.kernels import tiles
from vdm_jax.attention.patterns import independent_frames_mask
from vdm_jax.parallel.collectives import collectives
from vdm_jax.parallel.mesh import MeshSpec, make_mesh

SPLITS = {"frames": (Spatial(), P("data", "context", None, None, "tensor")),
          "height": (Temporal(), P("data", None, "context", None, "tensor"))}


@pytest.mark.parametrize(("extra", "kernel"), [
    (None, "chunked"), ("bias", "xla"), ("bias per sequence", "xla"), ("frame_mask", "xla"), ("frame_valid", "xla")])
@pytest.mark.parametrize("sharded_axis", list(SPLITS))
def test_local_sequences_give_the_same_and_exchange_nothing(sharded_axis, extra, kernel):
    pattern, spec = SPLITS[sharded_axis]
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    q, k, v = normal(3, 4, 4, 4, 2, 2, 8)  # B=4 T=4 H=4 W=2 K=2 D=8
    length, sequences = (8, 16) if sharded_axis == "frames" else (4, 32)
    more = {None: {}, "bias": {"bias": normal(2, length, length)},
            "bias per sequence": {"bias": normal(sequences, 2, length, length)},
            "frame_mask": {"frame_mask": independent_frames_mask(3, 1)},
            "frame_valid": {"frame_valid": jnp.asarray([[True, True, True, False]] * 2 + [[True] * 4] * 2)}}[extra]
    mesh = make_mesh(MeshSpec(data=2, tensor=2, context=2))

    def loss(q, k, v):
        return jnp.sin(attend(q, k, v, pattern=pattern, kernel=kernel, sharded_axis=sharded_axis, **more)).sum()

    expected = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, spec)
        step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), in_shardings=sharding, out_shardings=sharding)
        step = step.lower(q, k, v).compile()
    assert collectives(step.as_text()) == {}
    got = step(*(jax.device_put(a, sharding) for a in (q, k, v)))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("extra", [None, "bias", "bias per sequence", "frame_mask", "frame_valid", "extra keys"])
def test_devices_that_share_clips_and_heads_compute_in_tiles_and_exchange_nothing(extra, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 2**6)
    calls, tiled = [], tiles.attention
    monkeypatch.setattr(tiles, "attention", lambda q, *a, **more: calls.append(q.shape) or tiled(q, *a, **more))
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    q, k, v = normal(3, 4, 3, 2, 2, 2, 8)  # B=4 T=3 H=2 W=2 K=2 D=8
    pattern = {"extra keys": WithExtraKeys(inner=Spatial()), "frame_mask": Full()}.get(extra, Spatial())
    more = {None: {}, "bias": {"bias": normal(2, 4, 4)}, "bias per sequence": {"bias": normal(12, 2, 4, 4)},
            "frame_mask": {"frame_mask": independent_frames_mask(2, 1)},
            "frame_valid": {"frame_valid": jnp.asarray([[True, True, False]] * 2 + [[True] * 3] * 2)},
            "extra keys": {"extra_keys": ExtraKeys(normal(4, 3, 2, 2, 8), normal(4, 3, 2, 2, 8), None)}}[extra]

    def loss(q, k, v):
        return jnp.sin(attend(q, k, v, pattern=pattern, kernel="xla", **more)).sum()

    expected = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)
    mesh, alone = make_mesh(MeshSpec(data=2, tensor=2, fsdp=2)), len(calls)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, P(("data", "fsdp"), None, None, None, "tensor"))
        step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), in_shardings=sharding, out_shardings=sharding)
        step = step.lower(q, k, v).compile()
    sizes = {(shape[0], shape[2]) for shape in calls[alone:]}
    assert len(calls) > alone > 0 and all(heads == 1 and clips <= 3 for clips, heads in sizes)  # those of one device
    assert collectives(step.as_text()) == {}
    got = step(*(jax.device_put(a, sharding) for a in (q, k, v)))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("batch", "heads", "axes"), [
    (3, 2, ("data", "tensor")),  # clips that do not divide
    (4, 3, ("data", "tensor")),  # heads that do not
    (4, 2, ("data", "tensor")),  # a mesh of the caller's, without an axis `context`
    (4, 1, ("data",)),
])
def test_what_devices_cannot_share_evenly_is_left_to_the_compiler(batch, heads, axes):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(batch, 2, 2, 2, heads, 8)), jnp.float32) for _ in range(3))

    def loss(q, k, v):
        return jnp.sin(attend(q, k, v, pattern=Full(), kernel="xla")).sum()

    gradients = jax.grad(loss, argnums=(0, 1, 2))
    sizes = (2,) * len(axes)
    mesh = jax.make_mesh(sizes, axes, axis_types=(AxisType.Auto,) * len(axes), devices=jax.devices()[: 2 ** len(axes)])
    even = batch % 2 == 0 and heads % 2 == 0 if "tensor" in axes else True
    with jax.set_mesh(mesh):
        assert whole_clips(batch, heads) == even
        got = jax.jit(gradients)(q, k, v)
        found = jax.make_jaxpr(gradients)(q, k, v)
    assert ("shard_map" in str(found)) == even
    for a, b in zip(got, jax.jit(gradients)(q, k, v), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
