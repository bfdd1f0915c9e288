"""Patterns that know the shape of the video, against dense masks written from the papers' definitions: masks, counts,
block maps, and attention on every kernel."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.attention.oracle import assert_same, extra, name, reference
from tests.attention.window_oracles import MEMBERS, SHAPE, oracle, with_images
from tests.refusals import refused
from vdm_jax.attention import (
    Causal,
    ExtraKeys,
    Full,
    LocalWindow,
    Neighbourhood,
    PerHead,
    Radial,
    SlidingTiles,
    SparseCausal,
    Spatial,
    Temporal,
    WithExtraKeys,
    attend,
)
from vdm_jax.attention.block_mask import FULL, PARTIAL, SequenceLayout, SumMask
from vdm_jax.attention.capability import CAPABILITIES, entries_for, require
from vdm_jax.attention.kernels import chunked, splash, tiles
from vdm_jax.attention.kernels.gather import gather_frames
from vdm_jax.attention.patterns import AttentionPattern, attention_flops, independent_frames_mask
from vdm_jax.attention.products import Pattern, Sum
from vdm_jax.configuration import from_data, to_data

HEADS, DIM = 2, 4
TILES = SlidingTiles(tile=(2, 2, 2), window=(3, 1, 3))
KERNELS = sorted(k for (k, c), entry in CAPABILITIES.items() if c == "none" and "cpu" in entry.platforms)
PAIRS = [(p, k) for k in KERNELS for p in MEMBERS if (k, "none") in entries_for(p)]
pairs = pytest.mark.parametrize(("pattern", "kernel"), PAIRS, ids=[f"{k}-{name(p)}" for p, k in PAIRS])
members = pytest.mark.parametrize("pattern", MEMBERS, ids=name)


def inputs(shape=SHAPE, batch=1, heads=HEADS, dim=DIM):
    rng = np.random.default_rng(0)
    return {key: jnp.asarray(1.5 * rng.normal(size=(batch, *shape, heads, dim)), jnp.float32) for key in "qkv"}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks and tiles of a few rows, so that 128 tokens are several of them."""
    monkeypatch.setattr(chunked, "BLOCK", 24)
    for constant, value in (("TILE", 512), ("QUERIES", 32), ("FEWEST", 2)):
        monkeypatch.setattr(tiles, constant, value)


@members
def test_masks_are_those_of_the_papers(pattern):
    expected = oracle(pattern)
    np.testing.assert_array_equal(pattern.visible(SHAPE), expected)
    tokens = np.arange(len(expected))
    np.testing.assert_array_equal(jax.jit(lambda q, k: pattern.sees(q, k, SHAPE))(tokens[:, None], tokens), expected)
    assert pattern.pairs(SHAPE) == expected.sum() and expected.diagonal().all()
    assert attention_flops(pattern, SHAPE, heads=3, head_dim=7) == 4 * 3 * 7 * expected.sum()
    shown = sum(term.frame_visible(*(np.arange(8)[:, None], np.arange(8))).astype(int) for term in pattern.terms(SHAPE))
    assert shown.max() == 1  # terms share no pair of frames


@pytest.mark.parametrize(("pattern", "shape"), [
    (Radial(), (9, 1, 2)), (Radial(sink=False), (17, 1, 3)), (Radial(), (1, 2, 2)), (Radial(), (12, 1, 1)),
    (Neighbourhood(frames=5, height=1, width=1), (5, 1, 1)), (Neighbourhood(frames=2, height=4, width=3), (3, 5, 7)),
    (Neighbourhood(frames=2, height=2, width=3, stride=(2, 1, 3), dilation=(3, 2, 1)), (7, 5, 8)),
    (SlidingTiles(tile=(1, 2, 3), window=(5, 3, 1)), (3, 2, 6)), (SlidingTiles(tile=(2, 1, 1)), (4, 5, 1)),
], ids=str)
def test_other_shapes(pattern, shape):
    expected = oracle(pattern, shape)
    np.testing.assert_array_equal(pattern.visible(shape), expected)
    assert pattern.pairs(shape) == expected.sum()


def test_a_window_moves_inwards_where_a_local_one_is_cut_off():
    """The corner of a frame sees as many tokens as the middle."""
    shape = (1, 6, 6)
    moved, cut = Neighbourhood(frames=1, height=3, width=3).visible(shape), LocalWindow(
        frames=1, height=3, width=3).visible(shape)
    assert set(moved.sum(axis=1)) == {9} and set(cut.sum(axis=1)) == {4, 6, 9}
    np.testing.assert_array_equal(moved[7], cut[7])  # (1, 1)


def test_radial_terms_are_one_for_each_octave_of_distance_and_the_first_frame():
    assert [len(Radial().terms((t, 4, 4))) for t in (1, 2, 3, 5, 9, 21)] == [1, 1, 3, 4, 5, 6]
    assert isinstance(SequenceLayout(Radial(), SHAPE).block_mask(), SumMask)


@members
@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("pad", [0, 3])
def test_block_map_never_misses(pattern, images, pad):
    """With padding after each frame and appended images, which end the clip."""
    shape = (SHAPE[0] + images, *SHAPE[1:])
    mask = independent_frames_mask(SHAPE[0], images).tobytes() if images else None
    layout, run = SequenceLayout(pattern, shape, mask), 16 + pad
    block_mask, ids = layout.block_mask(run), np.arange(shape[0] * run)
    real = ids % run < 16
    expected = np.zeros((len(ids),) * 2, bool)
    expected[np.ix_(real, real)] = with_images(pattern, shape, images)
    seen = np.asarray(block_mask.sees(ids[:, None], ids[None, :]))
    np.testing.assert_array_equal(seen[real], expected[real])
    np.testing.assert_array_equal(np.asarray(block_mask.mask())[real], expected[real])
    assert pattern.pairs(shape, layout.mask) == expected.sum() and block_mask.rule is not None
    for q_size, k_size in ((run, run), (7, 24), (32, 32)):
        blocks = block_mask.blocks(q_size, k_size)
        for i, j in np.ndindex(*blocks.shape):
            part = seen[i * q_size : (i + 1) * q_size, j * k_size : (j + 1) * k_size]
            assert blocks[i, j] >= (PARTIAL if part.any() else 0)
            assert blocks[i, j] < FULL or (part.all() and part.shape[1] == k_size)


@pairs
def test_equals_dense_attention(pattern, kernel, small_blocks):
    assert_same(lambda **a: attend(**a, pattern=pattern, kernel=kernel), inputs(), oracle(pattern))


@members
def test_splash_equals_dense_attention(pattern, monkeypatch):
    """In interpret mode; its lowering for TPU below."""
    monkeypatch.setattr(splash, "INTERPRET", True)
    assert_same(lambda **a: attend(**a, pattern=pattern, kernel="splash", platform="tpu"), inputs(dim=8),
                oracle(pattern), atol=1e-5, grad_atol=1e-4)


@members
def test_splash_lowers_for_tpu(pattern):
    shape = jax.ShapeDtypeStruct((1, 8, 16, 16, 2, 64), jnp.bfloat16)
    loss = lambda q, k, v: attend(q, k, v, pattern=pattern, kernel="splash", platform="tpu").astype(jnp.float32).sum()
    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).trace(shape, shape, shape).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("tpu_custom_call") >= 3  # forward, dq, dkv


@pytest.mark.parametrize("kernel", KERNELS)
def test_masks_bias_and_images_together(kernel, small_blocks):
    """Appended images, missing frames and a bias; of the patterns that a kernel takes."""
    shape, valid = (10, 2, 2), np.ones((2, 10), bool)
    valid[1, [0, 4, 9]] = False
    tokens = int(np.prod(shape))
    bias = jnp.asarray(np.random.default_rng(1).normal(size=(HEADS, tokens, tokens)), jnp.float32)
    for pattern in (Neighbourhood(frames=3, height=2, width=1), Radial()):
        if (kernel, "none") in entries_for(pattern):
            assert_same(lambda p=pattern, **a: attend(
                **a, pattern=p, kernel=kernel, frame_mask=independent_frames_mask(8, 2),
                frame_valid=jnp.asarray(valid)), inputs(shape, 2) | {"bias": bias},
                with_images(pattern, shape, 2) & np.repeat(valid, 4, axis=1)[:, None, None, :], layout="all")


@pytest.mark.parametrize("pattern", [TILES, Radial()], ids=name)
def test_text_tokens_next_to_those_of_the_video(pattern):
    outside = extra(np.random.default_rng(2), 1, 1, 3, HEADS, DIM)
    for mode, mask in (("append", oracle(pattern)), ("replace", np.zeros((128, 128), bool))):
        assert_same(lambda q, k, v, extra_k, extra_v, mode=mode: attend(
            q, k, v, pattern=WithExtraKeys(inner=pattern, mode=mode), extra_keys=ExtraKeys(extra_k, extra_v)),
            inputs() | {"extra_k": outside.k, "extra_v": outside.v}, mask)


def test_tiles_in_their_order_leave_nothing_to_mask():
    """A kernel reads whole tiles: block maps know no partial block, and tokens come back to where they were."""
    order = TILES.token_order(SHAPE)
    block_mask = SequenceLayout(order.pattern, order.shape).block_mask()
    blocks = block_mask.blocks(8, 8)
    assert set(blocks.ravel()) == {0, FULL} and (blocks == FULL).sum() * 64 == TILES.pairs(SHAPE)
    assert not (SequenceLayout(TILES, SHAPE).block_mask().blocks(8, 8) == FULL).any()  # in the order of frames
    x = inputs()["q"]
    np.testing.assert_array_equal(order.back(order.there(x)), x)
    assert dataclasses.replace(TILES, order="frames").token_order(SHAPE) is None


def test_blocks_of_a_row_near_the_border_make_no_others_wider():
    """Every row of queries meets as many rows of keys as the window is high, though the window of the first one reaches
    six rows down and that of the last one six up."""
    pattern = Neighbourhood(frames=1, height=7, width=7)
    blocks = SequenceLayout(pattern, (1, 32, 32)).block_mask().blocks(32, 32)
    assert set((blocks > 0).sum(axis=1)) == {7}
    assert set((SequenceLayout(pattern, (1, 32, 32)).block_mask().blocks(64, 32) > 0).sum(axis=1)) == {7, 8}


@dataclasses.dataclass(frozen=True)
class Rows(Pattern):
    """Of the next frame of the clip, or beyond its end, the same row."""

    def frame_visible(self, query, key):
        return key == query + 1

    def position_visible(self, query, key, size):
        return query // size[1] == key // size[1]


@dataclasses.dataclass(frozen=True)
class Own(Pattern):
    """The own frame whole."""

    def frame_visible(self, query, key):
        return key == query


@dataclasses.dataclass(frozen=True)
class OwnAndRows(Sum):
    """Two products, of which the second shows nothing of a clip of one frame."""

    def terms(self, shape):
        return Own(), Rows()


def test_products_that_show_nothing_are_left_out():
    shape, two = (1, 3, 2), (2, 3, 2)
    assert [len(SequenceLayout(OwnAndRows(), each).terms) for each in (shape, two)] == [1, 2]
    assert SequenceLayout(OwnAndRows(), shape).block_mask().mask() is None
    mask = SequenceLayout(OwnAndRows(), two).block_mask().mask()
    np.testing.assert_array_equal(mask, OwnAndRows().visible(two))
    nothing = np.zeros((2, 2), bool).tobytes()
    assert [term for term, _ in SequenceLayout(OwnAndRows(), two, nothing).terms] == [Own()]


@pytest.mark.parametrize("frame_mask", [None, independent_frames_mask(2, 1).tobytes()])
def test_tables_that_are_kept_cannot_be_written(frame_mask):
    for _, table in SequenceLayout(Radial(), (3, 2, 2), frame_mask).terms:
        with pytest.raises(ValueError, match="read-only"):
            table[0, 0] = False


def test_many_tiles_are_one_gather():
    """Of 4 x 4 x 6 tiles there are 1296 runs of neighbours, each of which would be compiled as a slice."""
    order = SlidingTiles(tile=(1, 1, 1)).token_order((4, 4, 6))
    frames = SequenceLayout(order.pattern, order.shape).key_frames()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 96, 1, 1, 2, 3)), jnp.float32)
    assert len(jax.make_jaxpr(lambda x: gather_frames(x, frames))(x).eqns) < 40
    np.testing.assert_array_equal(gather_frames(x, frames)[:, :, 0], x[:, frames.index, 0, 0])
    few = SequenceLayout(SparseCausal(), (16, 1, 1)).key_frames()  # of these there are two runs a slot
    assert "gather" not in str(jax.make_jaxpr(lambda x: gather_frames(x, few))(x[:, :16]))


# ------------------------------------------------------------------------------------------------ heads


def test_groups_of_heads_attend_by_their_own_pattern():
    pattern = PerHead(groups=(Spatial(), TILES, Radial(), Temporal()))
    arrays = inputs(heads=8)
    masks = [one.visible(SHAPE) for one in pattern.groups]
    mask = np.repeat(masks, 2, axis=0)[None]  # [1, K, S, S]
    out = attend(**arrays, pattern=pattern)
    np.testing.assert_allclose(out, reference(**arrays, mask=mask), atol=3e-6)
    bias = jnp.asarray(np.random.default_rng(1).normal(size=(4, 128, 128)), jnp.float32)
    out = attend(**inputs(heads=4), pattern=PerHead(groups=(Full(), Causal())), bias=bias)
    mask = np.repeat([Full().visible(SHAPE), Causal().visible(SHAPE)], 2, axis=0)[None]
    np.testing.assert_allclose(out, reference(**inputs(heads=4), mask=mask, bias=bias), atol=3e-6)
    outside = extra(np.random.default_rng(2), 1, 1, 3, 4, DIM)
    out = attend(**inputs(heads=4), pattern=WithExtraKeys(inner=PerHead(groups=(Full(), Causal()))), extra_keys=outside)
    np.testing.assert_allclose(out, reference(**inputs(heads=4), mask=mask, extra_keys=outside), atol=3e-6)


def test_flops_of_groups_are_those_of_their_masks():
    groups = (Full(), Temporal(), Radial(sink=False))
    found = attention_flops(PerHead(groups=groups), SHAPE, heads=6, head_dim=5, extra_keys=2)
    assert found == sum(attention_flops(one, SHAPE, heads=2, head_dim=5, extra_keys=2) for one in groups)


def test_groups_run_where_all_of_them_do():
    pattern = PerHead(groups=(Spatial(), Causal(window=2)))
    found = entries_for(pattern)
    assert {("xla", "none"), ("chunked", "ring"), ("xla", "halo")} <= set(found) and ("gather", "none") not in found
    require(pattern, "xla", "ring")  # the spatial heads have nothing to exchange
    with refused("capability.require", "pattern Spatial", "'gather'"):
        require(pattern, "gather", "none")


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Neighbourhood(stride=(4, 1, 1)), ("Neighbourhood.stride", "=(4, 1, 1)", "frames=3")),
    (lambda: Neighbourhood(dilation=(0, 1, 1)), ("Neighbourhood.dilation", "=(0, 1, 1)", ">= 1")),
    (lambda: SlidingTiles(window=(2, 3, 3)), ("SlidingTiles.window", "=(2, 3, 3)", "1, 3, 5")),
    (lambda: PerHead(groups=(Full(),)), ("PerHead.groups", "at least 2")),
    (lambda: Neighbourhood(frames=9, height=1, width=1).visible(SHAPE),
     ("Neighbourhood.frames", "=9", "on 8 frames", "at most 8")),
    (lambda: Neighbourhood(frames=1, height=3, width=1, dilation=(1, 2, 1)).pairs(SHAPE),
     ("Neighbourhood.height", "=3", "dilation 2", "at most 4")),
    (lambda: SlidingTiles(tile=(3, 2, 2)).pairs(SHAPE), ("SlidingTiles.tile", "=(3, 2, 2)", "8x4x4")),
    (lambda: attend(**inputs(heads=3), pattern=PerHead(groups=(Full(), Causal()))),
     ("patterns.heads_of", "2 groups", "3 heads", "multiples of 2")),
    (lambda: attend(**inputs(), pattern=PerHead(groups=(Spatial(), Full())), bias=jnp.zeros((2, 128, 128))),
     ("attend._group_by_group", "all, frames")),
    (lambda: attend(**inputs(), pattern=TILES, frame_valid=jnp.ones((1, 8), bool)),
     ("attend._check_order", "frame_valid", "order='frames'")),
    (lambda: attend(**inputs(), pattern=TILES, frame_mask=independent_frames_mask(6, 2)),
     ("attend._check_order", "frame_mask", "order='frames'")),
    (lambda: attend(**inputs(), pattern=Radial(), kernel="gather"),
     ("capability.require", "kernel='gather'", "Radial", "kernel='chunked'")),
    (lambda: attend(**inputs(), pattern=Radial(), context="halo"), ("capability.require", "context='halo'", "Radial")),
])
def test_what_is_no_pattern_or_cannot_be_attended(make, message):
    with refused(*message):
        make()


def test_patterns_are_values_and_configs():
    assert len({*MEMBERS, *MEMBERS}) == len(MEMBERS)
    for pattern in (*MEMBERS, PerHead(groups=(Full(), TILES)), WithExtraKeys(inner=PerHead())):
        assert from_data(AttentionPattern, to_data(pattern)) == pattern
