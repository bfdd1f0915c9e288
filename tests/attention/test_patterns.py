"""Patterns: masks written out by hand, pair counts, gathered frames, and the frame mask of joint training."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.attention.oracle import PATTERNS, name, visible
from tests.refusals import refused
from vdm_jax.attention import (
    Causal,
    FirstFrames,
    Full,
    LocalWindow,
    SparseCausal,
    Spatial,
    Temporal,
    TemporalCausal,
    WithExtraKeys,
)
from vdm_jax.attention.block_mask import EMPTY, FULL, PARTIAL, SequenceLayout
from vdm_jax.attention.patterns import AttentionPattern, attention_flops, independent_frames_mask
from vdm_jax.configuration import from_data, to_data

SHAPES = [(1, 1, 1), (3, 5, 1), (4, 2, 3), (1, 2, 3), (6, 1, 1), (5, 3, 4)]


def rows(*lines):
    return np.array([[c == "1" for c in line] for line in lines])


FRAMES_SEEN = {  # of one-token frames: rows see columns
    Spatial(): rows("1000", "0100", "0010", "0001"),
    Temporal(): rows("1111", "1111", "1111", "1111"),
    Full(): rows("1111", "1111", "1111", "1111"),
    Causal(): rows("1000", "1100", "1110", "1111"),
    Causal(window=2): rows("1000", "1100", "0110", "0011"),
    TemporalCausal(): rows("1000", "1100", "1110", "1111"),
    TemporalCausal(window=3): rows("1000", "1100", "1110", "0111"),
    SparseCausal(): rows("1000", "1000", "1100", "1010"),
    SparseCausal(own=True): rows("1000", "1100", "1110", "1011"),
    SparseCausal(previous=False): rows("1000", "1000", "1000", "1000"),
    SparseCausal(first=False): rows("1000", "1000", "0100", "0010"),
    SparseCausal(first=False, previous=False, own=True): rows("1000", "0100", "0010", "0001"),
    FirstFrames(): rows("1100", "1100", "1100", "1100"),
    LocalWindow(frames=3): rows("1100", "1110", "0111", "0011"),
    WithExtraKeys(inner=Causal(window=2)): rows("1000", "1100", "0110", "0011"),
    WithExtraKeys(inner=Full(), mode="replace"): rows("0000", "0000", "0000", "0000"),
}


@pytest.mark.parametrize("pattern", FRAMES_SEEN, ids=name)
def test_which_frame_sees_which(pattern):
    np.testing.assert_array_equal(pattern.visible((4, 1, 1)), FRAMES_SEEN[pattern])
    np.testing.assert_array_equal(pattern.frame_table(4), FRAMES_SEEN[pattern])


def test_masks_of_two_frames_of_two_tokens():
    """Tokens are numbered frame * N + position."""
    expected = {
        Spatial(): rows("1100", "1100", "0011", "0011"),
        Temporal(): rows("1010", "0101", "1010", "0101"),
        TemporalCausal(): rows("1000", "0100", "1010", "0101"),
        Causal(): rows("1100", "1100", "1111", "1111"),
        SparseCausal(): rows("1100", "1100", "1100", "1100"),
        LocalWindow(frames=3, height=1, width=1): rows("1010", "0101", "1010", "0101"),
    }
    for pattern, mask in expected.items():
        np.testing.assert_array_equal(pattern.visible((2, 1, 2)), mask, err_msg=str(pattern))


def test_local_window_is_a_centred_box_cut_off_at_the_borders():
    shape, box = (3, 4, 5), LocalWindow(frames=1, height=3, width=5)
    seen = box.visible(shape).reshape(*shape, *shape)
    expected = np.zeros((4, 5), bool)
    expected[0:2, 0:3] = True  # of the corner (0, 0): one row down, two columns right
    np.testing.assert_array_equal(seen[1, 0, 0, 1], expected)
    expected[:] = False
    expected[1:4, 1:5] = True  # of (2, 3)
    np.testing.assert_array_equal(seen[1, 2, 3, 1], expected)
    assert not seen[1, :, :, 0].any() and not seen[1, :, :, 2].any()


@pytest.mark.parametrize("pattern", PATTERNS, ids=name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_everything_follows_from_the_dense_mask(pattern, shape):
    dense = pattern.visible(shape)
    tokens = np.arange(len(dense))
    assert dense.shape == (int(np.prod(shape)),) * 2 and dense.dtype == bool and dense.any(axis=1).all()
    for images in range(min(shape[0], 3)):
        mask = independent_frames_mask(shape[0] - images, images) if images else None
        expected = visible(pattern, shape, mask)
        assert pattern.pairs(shape, mask) == expected.sum()
        # Scores and weighted sum: one multiply-add each per visible pair, head and feature.
        flops = attention_flops(pattern, shape, heads=3, head_dim=7, frame_mask=mask)
        assert flops == expected.sum() * 3 * 7 * 2 * 2
        frames = pattern.key_frames(shape[0], mask)
        table = np.zeros((shape[0],) * 2, bool)
        for query in range(shape[0]):
            assert len(set(frames.index[query][frames.valid[query]])) == frames.valid[query].sum()  # no frame twice
            table[query, frames.index[query][frames.valid[query]]] = True
        np.testing.assert_array_equal(table, pattern.frame_table(shape[0], mask))
    np.testing.assert_array_equal(jax.jit(lambda q, k: pattern.sees(q, k, shape))(tokens[:, None], tokens), dense)


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p.layout == "all"], ids=name)
@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("pad", [0, 2])
def test_block_map_never_misses_and_is_exact_for_whole_frames(pattern, images, pad):
    shape, run = (5, 2, 3), 6 + pad
    mask = independent_frames_mask(5 - images, images) if images else None
    block_mask = SequenceLayout(pattern, shape, None if mask is None else mask.tobytes()).block_mask(run)
    ids = np.arange(5 * run)
    padded = np.zeros((5 * run, 5 * run), bool)
    real = ids % run < 6
    padded[np.ix_(real, real)] = visible(pattern, shape, mask)
    seen = np.asarray(block_mask.sees(ids[:, None], ids[None, :]))
    np.testing.assert_array_equal(seen[real], padded[real])  # padded queries may see anything
    np.testing.assert_array_equal(np.asarray(block_mask.sees(ids[:, None], ids[None, :] + 5 * run)),
                                  np.zeros_like(seen))
    dense = block_mask.mask()
    np.testing.assert_array_equal(np.ones_like(seen)[real] if dense is None else np.asarray(dense)[real], padded[real])
    for q_size, k_size in ((run, run), (4, 4), (5, 7), (3, 2), (16, 8), (64, 64)):
        blocks = block_mask.blocks(q_size, k_size)
        for i, j in np.ndindex(*blocks.shape):
            part = seen[i * q_size : (i + 1) * q_size, j * k_size : (j + 1) * k_size]
            whole = part.all() and part.shape[1] == k_size
            assert blocks[i, j] >= (PARTIAL if part.any() else EMPTY) and (blocks[i, j] < FULL or whole)
            if q_size == run and pad == 0 and block_mask.within is None:
                assert blocks[i, j] == (FULL if whole else EMPTY)


def test_external_counts_own_and_outside_pairs():
    shape, inner = (3, 2, 2), SparseCausal()
    assert WithExtraKeys(inner=inner).layout == "all" and WithExtraKeys(inner=Temporal()).layout == "positions"
    for mode, own in (("append", inner.pairs(shape)), ("replace", 0)):
        flops = attention_flops(WithExtraKeys(inner=inner, mode=mode), shape, heads=2, head_dim=4, extra_keys=5)
        assert flops == 4 * 2 * 4 * (own + 12 * 5)


def test_patterns_are_values_and_configs():
    assert len({*PATTERNS, *PATTERNS}) == len(PATTERNS) and Causal(window=2) == Causal(window=2)
    for pattern in (*PATTERNS, *FRAMES_SEEN):
        assert from_data(AttentionPattern, to_data(pattern)) == pattern


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Causal(window=0), ("Causal.window", "=0", ">= 1, or None")),
    (lambda: TemporalCausal(window=-1), ("TemporalCausal.window", "=-1", ">= 1, or None")),
    (lambda: LocalWindow(height=4), ("LocalWindow.height", "=4", "1, 3, 5, ...")),
    (lambda: SparseCausal(first=False, previous=False), ("SparseCausal", "first=False", "previous=False")),
    (lambda: WithExtraKeys(mode="add"), ("WithExtraKeys.mode", "='add'", "'append', 'replace'")),
])
def test_values_that_make_no_pattern(make, message):
    with refused(*message):
        make()


def test_independent_frames_mask():
    expected = rows("11100", "11100", "11100", "00010", "00001")
    np.testing.assert_array_equal(independent_frames_mask(3, 2), expected)
    np.testing.assert_array_equal(independent_frames_mask(3, 0), np.ones((3, 3), bool))
    np.testing.assert_array_equal(independent_frames_mask(0, 3), np.eye(3, dtype=bool))


def test_an_appended_image_sees_itself_whatever_the_pattern():
    mask = independent_frames_mask(3, 2)
    for pattern in PATTERNS:
        table = pattern.frame_table(5, mask)
        np.testing.assert_array_equal(table[3:], np.eye(5, dtype=bool)[3:], err_msg=str(pattern))
        np.testing.assert_array_equal(table[:3, :3], pattern.frame_table(3), err_msg=str(pattern))
