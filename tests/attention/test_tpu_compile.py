"""Attention compiled ahead of time by the TPU compiler, without a TPU: `make test-full` with the extra `[tpu]`."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.attention.oracle import name
from vdm_jax.attention import (
    Causal,
    Full,
    LocalWindow,
    Neighbourhood,
    Radial,
    SlidingTiles,
    SparseCausal,
    Spatial,
    Temporal,
    attend,
)
from vdm_jax.parallel.mesh import MeshSpec, make_mesh

pytestmark = [pytest.mark.full, pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                                                   reason="needs libtpu (the extra [tpu])")]
TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")


@pytest.fixture(params=TOPOLOGIES)
def mesh(request, monkeypatch):
    """A mesh of four TPU chips that are not there, two samples by two heads. Without the cache of compiled programs,
    which cannot read back those of another platform."""
    jax.config.update("jax_enable_compilation_cache", False)
    for key, value in {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1",
                       "TPU_WORKER_HOSTNAMES": "localhost", "TPU_LOG_DIR": "disabled"}.items():
        monkeypatch.setenv(key, value)
    topology = topologies.get_topology_desc(platform="tpu", topology_name=request.param)
    yield make_mesh(MeshSpec(data=2, tensor=2), topology.devices)
    jax.config.update("jax_enable_compilation_cache", True)


def compiled(mesh, pattern, shape=(4, 8, 16, 16, 4, 64), **options):
    """Forward and backward of attention on the mesh, compiled; and the kernel's calls in the program."""
    sharding = NamedSharding(mesh, P("data", None, None, None, "tensor", None))
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
    loss = lambda q, k, v: (attend(q, k, v, pattern=pattern, **options).astype(jnp.float32) ** 2).sum()
    with jax.set_mesh(mesh):
        program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
    return program, program.as_text().count('custom_call_target="tpu_custom_call"')


@pytest.mark.parametrize("pattern", [Full(), Causal(), Causal(window=4), SparseCausal(), LocalWindow()], ids=name)
def test_auto_compiles_splash_for_token_patterns(pattern, mesh):
    program, calls = compiled(mesh, pattern)
    assert calls >= 3  # forward, dq, dkv
    logits = 2 * 2 * 2048**2 * 4  # bytes of dense logits of a chip's two samples and two heads
    assert program.memory_analysis().temp_size_in_bytes < logits


def test_frames_that_do_not_fill_blocks_compile(mesh):
    assert compiled(mesh, SparseCausal(own=True), shape=(2, 16, 9, 11, 4, 80))[1] >= 3
    assert compiled(mesh, Spatial(), shape=(2, 2, 33, 33, 4, 128))[1] >= 3


@pytest.mark.parametrize("pattern", [Causal(), SparseCausal()], ids=name)
def test_the_longest_block_map_fits(pattern, mesh):
    assert compiled(mesh, pattern, shape=(2, 96, 64, 72, 2, 128))[1] >= 3  # 442k tokens, close to the table's limit


@pytest.mark.parametrize("pattern", [
    Neighbourhood(frames=4, height=3, width=7, stride=(2, 1, 3), dilation=(1, 2, 1)), Radial(),
    SlidingTiles(tile=(2, 8, 8), window=(3, 1, 3)), SlidingTiles(tile=(2, 4, 8), order="frames")], ids=name)
def test_patterns_that_know_the_shape_compile(pattern, mesh):
    assert compiled(mesh, pattern)[1] >= 3


OTHERS = [(Temporal(), "xla"), (SparseCausal(), "gather"), (Causal(), "chunked")]


@pytest.mark.parametrize(("pattern", "kernel"), OTHERS, ids=lambda x: name(x))
def test_other_kernels_compile(pattern, kernel, mesh):
    program, calls = compiled(mesh, pattern, kernel=kernel)
    gradients = 3 * 2 * 8 * 256 * 2 * 64 * 2  # bytes on each chip: two samples, two heads, bfloat16
    assert calls == 0 and program.memory_analysis().output_size_in_bytes >= gradients
