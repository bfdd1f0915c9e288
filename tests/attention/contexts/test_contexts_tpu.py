"""Contexts compiled ahead of time for eight TPU chips, without a TPU: `make test-full` with the extra `[tpu]`."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.attention.oracle import name
from vdm_jax.attention import Causal, Full, SparseCausal, Spatial, Temporal, attend
from vdm_jax.parallel.mesh import MeshSpec, make_mesh

pytestmark = [pytest.mark.full, pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                                                   reason="needs libtpu (the extra [tpu])")]
SHAPE = (2, 16, 16, 16, 8, 64)  # two samples of 16 frames of 256 tokens, 8 heads of 64
CASES = [("all_gather", "chunked", Causal()), ("halo", "gather", SparseCausal()), ("halo", "chunked", SparseCausal()),
         ("halo", "splash", Spatial()), ("ulysses", "splash", Causal()), ("ring", "chunked", Full()),
         ("ring", "xla", Causal()), ("zigzag_ring", "chunked", Causal()), ("ulysses_ring", "chunked", Causal()),
         ("relayout", "xla", Temporal())]
KINDS = {"all_gather": "all-gather", "halo": "collective-permute", "ring": "collective-permute",
         "zigzag_ring": "collective-permute"} | dict.fromkeys(("ulysses", "ulysses_ring", "relayout"), "all-to-all")


@pytest.fixture(params=["v5e:2x4", "v5p:2x2x2", "v6e:2x4"])
def devices(request, monkeypatch):
    """Eight TPU chips that are not there. Without the cache of compiled programs, which cannot read back those of
    another platform."""
    jax.config.update("jax_enable_compilation_cache", False)
    for key, value in {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1",
                       "TPU_WORKER_HOSTNAMES": "localhost", "TPU_LOG_DIR": "disabled"}.items():
        monkeypatch.setenv(key, value)
    yield topologies.get_topology_desc(platform="tpu", topology_name=request.param).devices
    jax.config.update("jax_enable_compilation_cache", True)


def compiled(devices, spec, pattern, shape=SHAPE, **options):
    """Forward and backward of attention on the mesh, compiled."""
    mesh = make_mesh(spec, devices)
    sharding = NamedSharding(mesh, P(("data", "fsdp"), "context", None, None, "tensor", None))
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
    loss = lambda q, k, v: (attend(q, k, v, pattern=pattern, **options).astype(jnp.float32) ** 2).sum()
    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss, (0, 1, 2)), out_shardings=(sharding,) * 3).lower(x, x, x).compile()


@pytest.mark.parametrize(("context", "kernel", "pattern"), CASES, ids=[f"{c}-{k}-{name(p)}" for c, k, p in CASES])
def test_contexts_compile(context, kernel, pattern, devices):
    """Frames over four chips, samples over two; collectives of the expected kind."""
    text = compiled(devices, MeshSpec(fsdp=2, context=4), pattern, context=context, kernel=kernel).as_text()
    assert ("tpu_custom_call" in text) == (kernel == "splash")
    if pattern == Spatial():
        assert not any(kind in text for kind in ("all-gather", "all-to-all", "collective-permute"))
    else:
        assert KINDS[context] in text
    if context == "halo":
        assert "all-gather" not in text and "all-to-all" not in text


def test_a_ring_over_more_chips_keeps_only_what_is_local(devices):
    """Twice the frames on twice the chips, eight frames of one sample per chip: the memory of a chip stays. (A ring of
    two has no loop, and so no buffers of one.)"""
    few, many = MeshSpec(data=2, context=4), MeshSpec(data=1, context=8)
    small, large = (
        compiled(devices, spec, Full(), shape, context="ring", kernel="chunked").memory_analysis().temp_size_in_bytes
        for spec, shape in ((few, (2, 32, 16, 16, 8, 64)), (many, (1, 64, 16, 16, 8, 64))))
    assert large <= 1.1 * small
