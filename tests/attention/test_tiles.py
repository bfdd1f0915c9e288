"""Tiles of dense attention on a CPU: what they leave out, and where they are used."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from tests.attention.oracle import PATTERNS, assert_same, name, visible
from vdm_jax.attention import (
    Causal,
    Full,
    LocalWindow,
    SparseCausal,
    Spatial,
    Temporal,
    TemporalCausal,
    WithExtraKeys,
    attend,
)
from vdm_jax.attention.block_mask import SequenceLayout
from vdm_jax.attention.capability import Request, resolve
from vdm_jax.attention.kernels import tiles
from vdm_jax.parallel.mesh import MeshSpec, make_mesh


def plan(pattern, shape, heads=2):
    block_mask = SequenceLayout(pattern, shape).block_mask()
    rows = block_mask.lengths[0]
    return tiles._plan((1, rows, heads, 64), rows, 1, None if block_mask.everything else block_mask), block_mask


def read_keys(run, tile, keys):
    """Bool `[keys]`: which keys a tile of a run reads."""
    read = np.zeros(keys, bool)
    for start, length in zip(run.starts[tile - run.first], run.lengths, strict=True):
        assert not read[start : start + length].any()
        read[start : start + length] = True
    return read


def pairs(found):
    return sum((run.last - run.first) * found.queries * sum(run.lengths) for run in found.runs)


@pytest.mark.parametrize("pattern", [Causal(), Causal(window=3), SparseCausal(), SparseCausal(own=True)], ids=name)
def test_tiles_compute_what_is_shown_without_a_mask(pattern):
    found = plan(pattern, (16, 16, 16))[0]
    assert pairs(found) == pattern.pairs((16, 16, 16)) and not any(run.masked for run in found.runs)


def test_few_kinds_of_tiles_are_compiled():
    # One, two and three neighbouring frames, then the first frame and two others.
    assert len(plan(SparseCausal(own=True), (64, 16, 16))[0].runs) == 4
    assert len(plan(Causal(window=3), (64, 16, 16))[0].runs) == 3
    long = plan(Causal(), (64, 16, 16))[0]
    assert len(long.runs) <= tiles.RUNS and long.runs[0].lengths == (4 * 256,) and long.runs[0].masked


@pytest.mark.parametrize("pattern", PATTERNS, ids=name)
@pytest.mark.parametrize("size", [(7, 3, 4), (20, 2, 3), (3, 17, 19)], ids=str)
def test_what_a_tile_leaves_out_is_hidden(pattern, size, monkeypatch):
    """For every tile: hidden outside the keys that it reads, and all shown where it has no mask."""
    monkeypatch.setattr(tiles, "QUERIES", 40)
    found, block_mask = plan(pattern, size)
    mask = block_mask.mask()
    mask = np.ones(block_mask.lengths, bool) if mask is None else np.asarray(mask)
    covered = []
    for run in found.runs:
        assert len(run.starts) == run.last - run.first
        for tile in range(run.first, run.last):
            covered.append(tile)
            rows, read = mask[tile * found.queries : (tile + 1) * found.queries], read_keys(run, tile, mask.shape[1])
            assert not rows[:, ~read].any()
            assert run.masked or rows[:, read].all()
    assert covered == list(range(found.counts[2])) and found.counts[2] * found.queries >= mask.shape[0]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_tile_holds_few_logits(threads, monkeypatch):
    monkeypatch.setattr(tiles, "processors", lambda: threads)
    largest, least = (tiles.TILE, tiles.LEAST) if threads > 1 else (tiles.TILE // 2, tiles.LEAST // 2)
    for batch, places, heads, queries, keys in ((16, 1, 8, 256, 256), (4, 1, 8, 1024, 1024), (3, 1, 5, 960, 77),
                                                (1, 1, 8, 4096, 4096), (2, 256, 8, 16, 16), (8, 9, 6, 16, 16)):
        found = tiles._plan((batch, queries, places * heads, 64), keys, places, None)
        logits, alone = found.batch * found.heads * found.queries * max(keys, 64), found.batch * found.heads == 1
        assert logits <= largest * (2 if alone else 1) or (alone and found.queries == least)
        assert (found.batch * found.counts[0], found.heads * found.counts[1]) == (batch, places * heads)
        assert heads % found.heads == 0 or found.heads % heads == 0  # some heads of a place, or all of some places


def test_threads_get_tiles_side_by_side(monkeypatch):
    """Unless there is one thread, or the products of one tile are large enough to share."""
    shape, large = (16, 256, 8, 64), (1, 4096, 8, 64)
    monkeypatch.setattr(tiles, "processors", lambda: 2)
    assert tiles._plan(shape, 256, 1, None).abreast == 4 and tiles._plan(large, 4096, 1, None).abreast == 1
    monkeypatch.setattr(tiles, "processors", lambda: 1)
    assert tiles._plan(shape, 256, 1, None).abreast == 1


def test_devices_share_the_threads(monkeypatch):
    monkeypatch.setattr(tiles, "processors", lambda: 5)
    assert tiles.threads() == 5
    for devices, left in ((2, 2), (8, 1)):
        with jax.set_mesh(make_mesh(MeshSpec(), jax.devices()[:devices])):
            assert tiles.threads() == left


@pytest.mark.parametrize(("batch", "heads", "frames"), [
    (5, 1, 0),  # all in one body
    (7, 1, 0),  # some left over
    (2, 8, 0),  # a part of the heads of a sequence
    (4, 2, 0),  # several sequences
    (3, 3, 0),  # neither
    (1, 1, 5),  # tiles of queries of one head, which see different keys
    (1, 2, 0),  # two heads, and two tiles of queries of each
], ids=str)
def test_tiles_side_by_side_compute_what_each_alone_computes(batch, heads, frames, monkeypatch):
    """Output and gradients, with a mask and a bias; without frames the last tile of queries is not full."""
    monkeypatch.setattr(tiles, "processors", lambda: 2)
    for constant, value in (("TILE", 2), ("QUERIES", 16), ("LEAST", 4), ("FEWEST", 1)):
        monkeypatch.setattr(tiles, constant, value)
    rng, tokens = np.random.default_rng(0), 4 * frames or 15
    arrays = [jnp.asarray(rng.normal(size=(batch, tokens, heads, 3)), jnp.float32) for _ in range(4)]
    arrays.append(jnp.asarray(rng.normal(size=(1, heads, 1, tokens)), jnp.float32))
    mask = jnp.asarray(rng.random((batch, 1, 1, tokens)) > 0.3)
    block_mask = SequenceLayout(SparseCausal(own=True), (frames, 2, 2)).block_mask() if frames else None

    def both(q, k, v, cotangent, bias):
        out, pull = jax.vjp(lambda q, k, v, bias: tiles.attention(q, k, v, mask, bias, block_mask), q, k, v, bias)
        return out, pull(cotangent)

    found, products = {}, {}
    for abreast in (1, 4):
        monkeypatch.setattr(tiles, "ABREAST", abreast)
        lowered = jax.jit(lambda *arrays: both(*arrays)).lower(*arrays)
        found[abreast], products[abreast] = lowered.compile()(*arrays), lowered.as_text().count("dot_general")
    assert products[4] > products[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found[1], found[4])


@pytest.mark.parametrize("pattern", [Temporal(), TemporalCausal()], ids=name)
@pytest.mark.parametrize("tile", [64, 480], ids=["heads of a place", "several places"])
def test_temporal_attention_leaves_tokens_where_they_are(pattern, tile, monkeypatch):
    """The program transposes nothing of the size of the video, and outputs and gradients are those of the reference."""
    monkeypatch.setattr(tiles, "TILE", tile)
    rng, shape = np.random.default_rng(0), (5, 2, 3)
    arrays = {key: jnp.asarray(rng.normal(size=(2, *shape, 4, 8)), jnp.float32) for key in "qkv"}
    bias = jnp.asarray(rng.normal(size=(4, 5, 5)), jnp.float32)
    assert tiles.worthwhile(12, 4, 5, 5, 8)
    assert_same(lambda **a: attend(**a, pattern=pattern), arrays | {"bias": bias}, visible(pattern, shape),
                layout="positions")
    program = jax.jit(functools.partial(attend, pattern=pattern)).lower(**arrays).as_text()
    assert not re.search(r"transpose.*tensor<2x5x6x4x8xf32>", program) and "stablehlo.while" in program


def test_tiles_are_for_one_cpu():
    large = (16, 8, 256, 256, 64)
    assert tiles.worthwhile(*large) and not tiles.worthwhile(1, 1, 256, 256, 64)
    with jax.set_mesh(jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))):
        assert not tiles.worthwhile(*large)
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))):
        assert tiles.worthwhile(*large)


def test_auto_takes_tiles_until_rows_are_long():
    common = {"shape": (16, 16, 16), "batch": 1, "heads": 8, "head_dim": 64, "dtype": "float32", "platform": "cpu"}
    for pattern in (Full(), Causal(), Spatial(), SparseCausal(own=True), Causal(window=2)):
        assert resolve(Request(pattern=pattern, **common, tiled=True), "auto", "none") == "xla"
    # What tiles would not read in place: parts of frames, and frames next to outside tokens.
    assert resolve(Request(pattern=LocalWindow(), **common, tiled=True), "auto", "none") == "gather"
    outside = common | {"pattern": WithExtraKeys(inner=SparseCausal()), "extra_keys": True, "extra_tokens": 77}
    assert resolve(Request(**outside, tiled=True), "auto", "none") == "gather"
    assert resolve(Request(pattern=Full(), **common), "auto", "none") == "chunked"
    long = common | {"shape": (64, 32, 32)}
    assert resolve(Request(pattern=Full(), **long, tiled=True), "auto", "none") == "chunked"
