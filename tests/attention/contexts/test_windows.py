"""Patterns that know the shape of the video in every context, on 8 virtual devices, against the papers' masks; and a
sum of products that no pattern of the package is."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.attention.oracle import assert_same, name
from tests.attention.window_oracles import MEMBERS, SHAPE, oracle, with_images
from vdm_jax.attention import BlockCausal, Full, PerHead, Spatial, TeacherForcing, attend, capability
from vdm_jax.attention.block_mask import SequenceLayout
from vdm_jax.attention.capability import CAPABILITIES, entries_for
from vdm_jax.attention.contexts.ring import Ring
from vdm_jax.attention.kernels import chunked
from vdm_jax.attention.patterns import independent_frames_mask
from vdm_jax.attention.products import Pattern, Sum
from vdm_jax.parallel.mesh import MeshSpec, make_mesh

assert_close = functools.partial(assert_same, atol=1e-5, grad_atol=1e-4)  # contexts sum in another order
ROWS = [(c, k) for k, c in CAPABILITIES if c != "none" and "cpu" in CAPABILITIES[k, c].platforms]
ALWAYS = {("all_gather", "xla"), ("halo", "gather"), ("ring", "chunked"), ("zigzag_ring", "xla"), ("ulysses", "xla"),
          ("ulysses_ring", "xla")}


@pytest.fixture(autouse=True)
def mesh(monkeypatch):
    """Two samples by four devices with two frames each; blocks of 24 rows, so that 128 tokens are several blocks."""
    monkeypatch.setattr(chunked, "BLOCK", 24)
    with jax.set_mesh(make_mesh(MeshSpec(data=2, context=4))):
        yield


def inputs(shape=SHAPE, heads=4):
    rng = np.random.default_rng(0)
    return {key: jnp.asarray(1.5 * rng.normal(size=(2, *shape, heads, 4)), jnp.float32) for key in "qkv"}


def everywhere(patterns, chosen=lambda row, number: False):
    """Every row of the table with every one of the patterns that it lists; those not chosen in `make test-full`."""
    cases = [(*row, number, pattern) for row in ROWS for number, pattern in enumerate(patterns)
             if row[::-1] in entries_for(pattern)]
    return pytest.mark.parametrize(("context", "kernel", "pattern"), [
        pytest.param(c, k, p, id=f"{c}-{k}-{name(p)}", marks=() if chosen((c, k), n) else pytest.mark.full)
        for c, k, n, p in cases])


@everywhere(MEMBERS, lambda row, number: row in ALWAYS and number in (1, 3, 5))
def test_equals_dense_attention(context, kernel, pattern):
    assert_close(lambda **a: attend(**a, pattern=pattern, kernel=kernel, context=context), inputs(), oracle(pattern))


@pytest.mark.parametrize(("context", "kernel"), [("ring", "xla"), ("halo", "gather"), ("all_gather", "chunked")])
def test_appended_images_end_the_clip(context, kernel):
    """On devices as on one: six frames and two images, and frames that are missing."""
    shape, valid = (8, 2, 2), np.ones((2, 8), bool)
    valid[1, [0, 3, 7]] = False
    for pattern in (MEMBERS[0], MEMBERS[5]):
        pattern = dataclasses.replace(pattern, height=2, width=1) if pattern == MEMBERS[0] else pattern
        if (kernel, context) in entries_for(pattern):
            mask = with_images(pattern, shape, 2) & np.repeat(valid, 4, axis=1)[:, None, None, :]
            assert_close(lambda p=pattern, **a: attend(
                **a, pattern=p, kernel=kernel, context=context, frame_mask=independent_frames_mask(6, 2),
                frame_valid=jnp.asarray(valid)), inputs(shape), mask)


@pytest.mark.parametrize("context", ["ring", "ulysses", "halo"])
def test_groups_of_heads(context):
    """Each as without a mesh; spatial heads have nothing to exchange."""
    second = MEMBERS[3] if context == "halo" else Full()
    pattern, arrays = PerHead(groups=(Spatial(), second)), inputs(heads=8)
    out = jax.jit(lambda a: attend(**a, pattern=pattern, kernel="xla", context=context))(arrays)
    for group, one in zip((slice(0, 4), slice(4, 8)), pattern.groups, strict=True):
        part = {key: a[..., group, :] for key, a in arrays.items()}
        np.testing.assert_allclose(out[..., group, :], attend(**part, pattern=one, kernel="xla"), atol=1e-5)


# ------------------------------------------------------------------------------------------------ any sum


@dataclasses.dataclass(frozen=True)
class Term(Pattern):
    """Which frames see which by name; all of a frame, or the same row."""

    which: str
    whole: bool

    def frame_visible(self, query, key):
        return {"first": (key == 0) & (query > 1), "before": key == query - 1,
                "near": (key >= query) & (key <= query + 1)}[self.which]

    def position_visible(self, query, key, size):
        return (query == query) & (key == key) if self.whole else query // size[1] == key // size[1]

    def covers_frame(self, size):
        return self.whole

    def bounded_frames(self):
        return True


@dataclasses.dataclass(frozen=True)
class Lopsided(Sum):
    """The first frame and the one before whole, of the own and the next one the row."""

    def terms(self, shape):
        return Term("before", True), Term("near", False), Term("first", True)

    def bounded_frames(self):
        return True


def lopsided(shape):
    """By comparing every two tokens."""
    frame, row, _ = (a.ravel() for a in np.indices(shape))
    apart = frame[None, :] - frame[:, None]
    near = ((apart == 0) | (apart == 1)) & (row[None, :] == row[:, None])
    return (apart == -1) | near | ((frame[None, :] == 0) & (frame[:, None] > 0))


@pytest.mark.parametrize(("context", "kernel"), [("none", "xla"), ("none", "chunked"), ("none", "gather"), *[
    row if row in {("halo", "gather"), ("ring", "xla")} else pytest.param(*row, marks=pytest.mark.full)
    for row in ROWS if row[0] != "relayout"]])
def test_any_sum_of_products(context, kernel, monkeypatch):
    names = frozenset({"Lopsided"})
    monkeypatch.setattr(capability, "CAPABILITIES", {
        key: dataclasses.replace(entry, patterns=entry.patterns | names) for key, entry in CAPABILITIES.items()})
    shape = (16, 2, 2)  # four frames per device: the first one does not go round a ring
    assert Ring("xla", SequenceLayout(Lopsided(), shape), 4, 1, False).with_first_apart().apart
    assert_close(lambda **a: attend(**a, pattern=Lopsided(), kernel=kernel, context=context), inputs(shape),
                 lopsided(shape))
    assert Lopsided().pairs(shape) == lopsided(shape).sum()


# ------------------------------------------------------------------------------------------------ blocks of frames


@everywhere((BlockCausal(block=2), BlockCausal(block=1, window=3, sink=1), TeacherForcing(frames=4, block=2)),
            lambda row, number: row[0] == "halo")
def test_blocks_of_frames(context, kernel, pattern):
    """Block-causal masks by the numbers of blocks (Yin et al. 2024; Huang et al. 2025)."""
    shape, n = (8, 2, 1), 2
    mask = np.zeros((8, 8), bool)
    for query, key in np.ndindex(8, 8):
        if isinstance(pattern, TeacherForcing):
            own, other, noisy, clean = query % 4 // 2, key % 4 // 2, query >= 4, key < 4
            mask[query, key] = other < own and clean or other == own and noisy != clean
        else:
            end = (query // pattern.block + 1) * pattern.block
            recent = pattern.window is None or key >= end - pattern.window or key < pattern.sink
            mask[query, key] = key < end and recent
    assert_close(lambda **a: attend(**a, pattern=pattern, kernel=kernel, context=context), inputs(shape),
                 np.kron(mask, np.ones((n, n), bool)))
