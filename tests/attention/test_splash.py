"""The splash kernel in interpret mode against dense attention, its block maps against JAX's own constructor, and its
lowering for TPU (which runs the Mosaic compiler's front end without a TPU)."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

from tests.attention.oracle import assert_same, name, reference, visible
from tests.refusals import refused
from vdm_jax.attention import Causal, FirstFrames, Full, LocalWindow, SparseCausal, Spatial, attend
from vdm_jax.attention.block_mask import SequenceLayout
from vdm_jax.attention.kernels import splash
from vdm_jax.attention.patterns import independent_frames_mask
from vdm_jax.parallel.mesh import MeshSpec, make_mesh

TOKEN_PATTERNS = (Full(), Causal(), Causal(window=2), SparseCausal(), FirstFrames(),
                  LocalWindow(frames=3, height=3, width=5))


@pytest.fixture
def interpret(monkeypatch):
    """Run the kernel on the CPU."""
    monkeypatch.setattr(splash, "INTERPRET", True)


def inputs(shape, batch=1, heads=2, dim=8):
    rng = np.random.default_rng(0)
    return {key: jnp.asarray(1.5 * rng.normal(size=(batch, *shape, heads, dim)), jnp.float32) for key in "qkv"}


def ours(pattern, **options):
    return lambda **a: attend(**a, pattern=pattern, kernel="splash", platform="tpu", **options)


# Frames of one block; of a block with padding inside; of many tokens that share blocks, with padding at the end.
@pytest.mark.parametrize(("pattern", "shape"), [
    *((p, (3, 8, 16)) for p in TOKEN_PATTERNS),
    (Spatial(), (2, 8, 30)), (SparseCausal(own=True), (2, 5, 23)), (Full(), (5, 5, 7)), (Causal(window=2), (5, 5, 7)),
    (LocalWindow(frames=3, height=5, width=7), (3, 11, 11)),
], ids=lambda x: name(x))
def test_equals_dense_attention(pattern, shape, interpret):
    assert_same(ours(pattern), inputs(shape), visible(pattern, shape), atol=1e-5, grad_atol=1e-4)


@pytest.mark.parametrize("pattern", [Full(), SparseCausal()], ids=name)
def test_joint_training_and_missing_frames(pattern, interpret):
    shape, valid = (4, 5, 8), np.array([[True] * 4, [False, True, False, True]])
    frame_mask = independent_frames_mask(3, 1)
    mask = visible(pattern, shape, frame_mask) & np.repeat(valid, 40, axis=1)[:, None, None, :]
    assert_same(ours(pattern, frame_mask=frame_mask, frame_valid=jnp.asarray(valid)), inputs(shape, batch=2), mask,
                atol=1e-5, grad_atol=1e-4)


def test_sharded_over_batch_and_heads(interpret):
    """Inside jit on a mesh every device runs the kernel on its own sequences and heads."""
    shape, a = (2, 5, 8), inputs((2, 5, 8), batch=4, heads=4)
    mask = visible(SparseCausal(), shape)

    def gradients(function):
        return jax.jit(jax.grad(lambda a: (function(**a) ** 3).sum()))

    expected = gradients(lambda q, k, v: reference(q, k, v, mask))(a)
    with jax.set_mesh(make_mesh(MeshSpec(data=2, fsdp=2, tensor=2))):
        out = jax.jit(ours(SparseCausal()))(**a)
        found = gradients(ours(SparseCausal()))(a)
        with refused("splash._sharded", "2", "4"):
            ours(SparseCausal())(**{k: x[:2] for k, x in a.items()})
    assert out.sharding.num_devices == 8 and not out.sharding.is_fully_replicated
    np.testing.assert_allclose(out, reference(**a, mask=mask), atol=1e-5)
    for key in a:
        np.testing.assert_allclose(found[key], expected[key], atol=1e-3)


def test_any_other_frame_mask_is_refused():
    mask = np.tril(np.ones((3, 3), bool))
    with refused("capability.resolve", "frame_mask", "'chunked'"):
        ours(Full(), frame_mask=mask)(**inputs((3, 2, 2)))


@pytest.mark.parametrize("pattern", TOKEN_PATTERNS[1:], ids=name)
@pytest.mark.parametrize("tokens", [(8, 16), (10, 10)], ids=str)
def test_block_map_visits_what_jax_visits(pattern, tokens):
    """Against the map that JAX finds by evaluating the whole mask: the same blocks in the same lists."""
    shape, block = (4, *tokens), 128
    block_mask = SequenceLayout(pattern, shape).block_mask()
    length = -(-block_mask.lengths[0] // block) * block
    ids = np.arange(length)
    dense = np.asarray(block_mask.sees(ids[:, None], ids[None, :]))
    dense[block_mask.lengths[0]:] = dense[block_mask.lengths[0] - 1]  # rows of padding belong to the last frame
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.NumpyMask(dense)])
    mine = splash.make_kernel(block_mask, block, True)
    theirs = splash_attention_kernel.make_splash_mha(mask, block_sizes=mine.kwargs["block_sizes"], head_shards=1,
                                                     q_seq_shards=1)
    for which in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):
        a, b = getattr(mine, which), getattr(theirs, which)
        visited = np.asarray(b.block_mask) > 0
        exact = block_mask.within is None
        if exact:
            np.testing.assert_array_equal(np.asarray(a.block_mask) > 0, visited, err_msg=which)
            np.testing.assert_array_equal(np.asarray(a.data_next)[visited], np.asarray(b.data_next)[visited])
        assert (np.asarray(a.block_mask) > 0).sum() >= visited.sum()


@pytest.mark.parametrize("pattern", [SparseCausal(own=True), Causal(), LocalWindow()], ids=name)
def test_large_kernels_are_made_in_under_a_second(pattern):
    """74k tokens in frames of 3 584, where evaluating the mask takes up to 20 s."""
    layout = SequenceLayout(pattern, (20, 56, 64))
    start = time.perf_counter()
    block, run = splash.layout_of_blocks(layout)
    kernel = splash.make_kernel(layout.block_mask(run), block, False)
    assert time.perf_counter() - start < 1
    assert (block, run) == (512, 3584)
    if pattern == SparseCausal(own=True):  # three frames of seven blocks at most
        assert kernel.fwd_mask_info.block_mask.shape == (1, 140, 21)


def test_tokens_are_padded_to_blocks_where_it_costs_little():
    assert splash.layout_of_blocks(SequenceLayout(Full(), (4, 32, 31))) == (512, 1024)
    assert splash.layout_of_blocks(SequenceLayout(Full(), (4, 16, 16))) == (256, 256)
    assert splash.layout_of_blocks(SequenceLayout(Full(), (4, 10, 12))) == (128, 128)
    assert splash.layout_of_blocks(SequenceLayout(Full(), (4, 8, 8))) == (128, 64)  # frames share blocks
    assert splash.layout_of_blocks(SequenceLayout(Full(), (128, 8, 8))) == (512, 64)
    # few enough blocks for their map
    assert splash.layout_of_blocks(SequenceLayout(Causal(), (80, 64, 64))) == (1024, 4096)
    assert splash.layout_of_blocks(SequenceLayout(Causal(), (240, 32, 39))) == (1024, 32 * 39)


@pytest.mark.parametrize("pattern", [*TOKEN_PATTERNS, Spatial()], ids=name)
def test_forward_and_backward_lower_for_tpu(pattern):
    shape = jax.ShapeDtypeStruct((1, 4, 16, 16, 2, 64), jnp.bfloat16)
    loss = lambda q, k, v: ours(pattern)(q=q, k=k, v=v).astype(jnp.float32).sum()
    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).trace(shape, shape, shape).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("tpu_custom_call") >= 3  # forward, dq, dkv
