"""Tiles of dense attention on a CPU: what they leave out, and where they are used."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from tests.attention.oracle import PATTERNS, name
from vdm_jax.attention import Causal, Full, Spatial
from vdm_jax.attention.block_mask import SequenceLayout
from vdm_jax.attention.capability import Request, resolve
from vdm_jax.attention.kernels import tiles


def plan(pattern, shape, heads=2):
    block_mask = SequenceLayout(pattern, shape).block_mask()
    rows = block_mask.lengths[0]
    return tiles._plan(1, heads, rows, rows, None if block_mask.everything else block_mask), block_mask


def test_causal_tiles_compute_what_is_shown_without_a_mask():
    found, block_mask = plan(Causal(), (16, 16, 16))
    pairs = sum((run.last - run.first) * found.queries * (run.stop - run.start) for run in found.runs)
    assert pairs == Causal().pairs((16, 16, 16)) and not any(run.masked for run in found.runs)
    long = plan(Causal(), (64, 16, 16))[0]
    assert len(long.runs) <= tiles.RUNS and long.runs[0].stop == 4 * 256 and long.runs[0].masked


@pytest.mark.parametrize("pattern", PATTERNS, ids=name)
@pytest.mark.parametrize("size", [(7, 3, 4), (20, 2, 3), (3, 17, 19)], ids=str)
def test_what_a_tile_leaves_out_is_hidden(pattern, size, monkeypatch):
    """For every tile: hidden before and after its keys, and all shown where it has no mask."""
    monkeypatch.setattr(tiles, "QUERIES", 40)
    found, block_mask = plan(pattern, size)
    mask = block_mask.mask()
    mask = np.ones(block_mask.lengths, bool) if mask is None else np.asarray(mask)
    covered = []
    for run in found.runs:
        for tile in range(run.first, run.last):
            covered.append(tile)
            rows = mask[tile * found.queries : (tile + 1) * found.queries]
            assert not rows[:, : run.start].any() and not rows[:, run.stop :].any()
            assert run.masked or rows[:, run.start : run.stop].all()
    assert covered == list(range(found.counts[2])) and found.counts[2] * found.queries >= mask.shape[0]


def test_a_tile_holds_few_logits():
    for batch, heads, queries, keys in ((16, 8, 256, 256), (4, 8, 1024, 1024), (3, 5, 960, 77), (1, 8, 4096, 4096)):
        found = tiles._plan(batch, heads, queries, keys, None)
        assert found.batch * found.heads * found.queries * keys <= tiles.TILE
        assert (found.batch * found.counts[0], found.heads * found.counts[1]) == (batch, heads)


def test_tiles_are_for_one_cpu():
    large = (16, 8, 256, 256)
    assert tiles.worthwhile(*large) and not tiles.worthwhile(1, 1, 256, 256) and not tiles.worthwhile(9999, 8, 16, 16)
    with jax.set_mesh(jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))):
        assert not tiles.worthwhile(*large)
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))):
        assert tiles.worthwhile(*large)


def test_auto_takes_tiles_until_rows_are_long():
    common = {"shape": (16, 16, 16), "batch": 1, "heads": 8, "head_dim": 64, "dtype": "float32", "platform": "cpu"}
    for pattern in (Full(), Causal(), Spatial()):
        assert resolve(Request(pattern=pattern, **common, tiled=True), "auto", "none") == "xla"
    assert resolve(Request(pattern=Full(), **common), "auto", "none") == "chunked"
    long = common | {"shape": (64, 32, 32)}
    assert resolve(Request(pattern=Full(), **long, tiled=True), "auto", "none") == "chunked"
