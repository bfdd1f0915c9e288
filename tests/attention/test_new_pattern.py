"""A pattern that this package does not have: no row of the table claims it, and whoever adds it to all rows finds each
of them equal to dense attention or refused. None computes another attention in its place."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.attention.oracle import reference
from tests.refusals import refused
from vdm_jax.attention import Full, Temporal, TemporalCausal, WithExtraKeys, attend, capability
from vdm_jax.attention.kernels import KERNELS, chunked, cudnn, splash
from vdm_jax.attention.patterns import Pattern, attention_flops
from vdm_jax.errors import UserError
from vdm_jax.parallel.mesh import MeshSpec, make_mesh

SHAPE, HEADS, DIM = (8, 2, 3), 4, 8
TABLE = dict(capability.CAPABILITIES)


@dataclasses.dataclass(frozen=True)
class Parity(Pattern):
    """Frames of the same parity, all their tokens."""

    def frame_visible(self, query, key):
        return (query - key) % 2 == 0


@dataclasses.dataclass(frozen=True)
class SameRow(Pattern):
    """Tokens of the same row, in all frames; `height` is not the extent of a window."""

    height: int = 1

    def position_visible(self, query, key, size):
        return query // size[1] == key // size[1]


@dataclasses.dataclass(frozen=True)
class Columns(Pattern):
    """Tokens of the same column of the own frame."""

    layout = "frames"

    def frame_visible(self, query, key):
        return query == key

    def position_visible(self, query, key, size):
        return query % size[1] == key % size[1]

    def bounded_frames(self):
        return True


@dataclasses.dataclass(frozen=True)
class Later(Temporal):
    """The same position in later frames and the own one: a kind of `Temporal` that is not one."""

    def frame_visible(self, query, key):
        return key >= query


@dataclasses.dataclass(frozen=True)
class Neighbours(Pattern):
    """The frames before and after, not the own one."""

    def frame_visible(self, query, key):
        return (key == query - 1) | (key == query + 1)

    def bounded_frames(self):
        return True


@dataclasses.dataclass(frozen=True)
class Past(Pattern):
    """All earlier frames: the first one sees nothing."""

    def frame_visible(self, query, key):
        return key < query


NEW = (Parity(), SameRow(), Columns(), Later(), Neighbours(), Past())


def oracle(pattern):
    """Dense mask by comparing every two tokens."""
    frames, height, width = SHAPE
    n = height * width
    return np.array([[bool(pattern.frame_visible(np.int64(q // n), np.int64(k // n))
                           and pattern.position_visible(np.int64(q % n), np.int64(k % n), (height, width)))
                      for k in range(frames * n)] for q in range(frames * n)])


def tokens():
    rng = np.random.default_rng(0)
    return [jnp.asarray(1.5 * rng.normal(size=(2, *SHAPE, HEADS, DIM)), jnp.float32) for _ in range(3)]


@pytest.fixture
def claimed(monkeypatch):
    """Every row claims every new pattern, on every platform; kernels of accelerators run here."""
    names = frozenset(type(p).__name__ for p in NEW)
    table = {key: dataclasses.replace(entry, patterns=entry.patterns | names, platforms=("cpu",), dtypes=None,
                                      bounded=False) for key, entry in TABLE.items()}
    monkeypatch.setattr(capability, "CAPABILITIES", table)
    monkeypatch.setattr(cudnn, "IMPLEMENTATION", "xla")
    monkeypatch.setattr(splash, "INTERPRET", True)
    monkeypatch.setattr(chunked, "BLOCK", 16)


@pytest.mark.parametrize("pattern", NEW, ids=lambda p: type(p).__name__)
def test_no_row_lists_a_pattern_that_nobody_added(pattern):
    assert capability.entries_for(pattern) == {}
    try:
        assert capability.entries_for(WithExtraKeys(inner=pattern)) == {}  # that of a subclass of a known one
    except UserError as error:
        assert f"WithExtraKeys.inner={type(pattern).__name__}" in str(error)  # noqa: PT017


def result(pattern, kernel, context):
    """What attend computes, or None where it refuses."""
    try:
        return attend(*tokens(), pattern=pattern, kernel=kernel, context=context)
    except UserError as error:
        assert "permitted" in str(error)
        return None


# Which kernels compute them; the others refuse.
COMPUTED = {"Parity": {"xla", "chunked", "gather", "splash"}, "SameRow": {"xla", "chunked", "gather", "splash"},
            "Columns": {"xla", "chunked", "gather", "splash"}, "Later": {"xla", "chunked", "gather"},
            "Neighbours": {"xla", "chunked", "gather", "splash", "cudnn"},
            "Past": {"xla", "chunked", "gather", "splash"}}


@pytest.mark.parametrize("pattern", NEW, ids=lambda p: type(p).__name__)
def test_a_kernel_computes_a_new_pattern_or_refuses_it(pattern, claimed):
    expected = reference(*tokens(), oracle(pattern))
    found = {kernel: result(pattern, kernel, "none") for kernel in KERNELS}
    assert {kernel for kernel, out in found.items() if out is not None} == COMPUTED[type(pattern).__name__]
    for kernel, out in found.items():
        if out is not None:
            np.testing.assert_allclose(out, expected, atol=2e-5, err_msg=kernel)


ROWS = [row for row in TABLE if row[1] != "none"]
ALWAYS = [("cudnn", "halo"), ("xla", "relayout")]


@pytest.mark.parametrize("row", [row if row in ALWAYS else pytest.param(row, marks=pytest.mark.full) for row in ROWS],
                         ids="-".join)
def test_a_context_computes_a_new_pattern_or_refuses_it(row, claimed):
    computed = 0
    with jax.set_mesh(make_mesh(MeshSpec(data=2, context=4))):
        for pattern in NEW:
            out = result(pattern, *row)
            computed += out is not None
            if out is not None:
                np.testing.assert_allclose(out, reference(*tokens(), oracle(pattern)), atol=2e-5, err_msg=str(pattern))
    assert computed or row[0] in ("cudnn", "splash")


def test_flops_of_a_new_pattern_are_those_of_its_mask():
    for pattern in NEW:
        assert attention_flops(pattern, SHAPE, heads=1, head_dim=1) == 4 * oracle(pattern).sum()


@pytest.mark.parametrize(("layout", "message"), [
    ("frames", ("patterns.check_layout", "layout='frames'", "layout='all'")),
    ("positions", ("patterns.check_layout", "layout='positions'", "layout='all'")),
    ("rows", ("patterns.check_layout", "layout='rows'", "'frames'", "'positions'", "'all'")),
])
def test_a_pattern_that_sees_beyond_its_layout_is_refused(layout, message):
    pattern = type("Wide", (Parity,), {"layout": layout})()
    with refused(*message):
        attend(*tokens(), pattern=pattern, kernel="xla")


def test_a_kind_of_a_known_pattern_is_not_taken_for_it():
    request = capability.Request(pattern=Later(), shape=SHAPE, batch=1, heads=1, head_dim=8, dtype="float32",
                                 platform="cpu")
    assert not request.unmasked and dataclasses.replace(request, pattern=Full()).unmasked
    assert "TemporalCausal" in capability.CAPABILITIES["cudnn", "none"].patterns
    assert cudnn._causal_window(TemporalCausal(window=3).frame_table(8)) == 3
    assert cudnn._causal_window(Later().frame_table(8)) == 0
