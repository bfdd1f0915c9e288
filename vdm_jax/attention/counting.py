"""Counting instead of computing: what a traced network asks of `attend`.

FLOPs of attention cannot be read from a program: loops hide them, Pallas kernels have none, dense kernels compute what
the mask hides. While `counted` is open, `attend` writes down each call after checking it and returns zeros, so that a
trace of the network holds everything but attention, and the calls hold the rest.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator

import numpy as np

from vdm_jax.attention.patterns import Pattern, Shape, attention_flops


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """One call of `attend`, of the whole batch on all devices."""

    pattern: Pattern  # of the own tokens
    shape: Shape  # frames, height, width in tokens
    batch: int
    heads: int
    head_dim: int
    kernel: str  # that `auto` chose
    context: str
    own: bool  # whether the own tokens are seen
    extra_keys: int  # outside tokens that each token sees
    frame_mask: bytes | None

    @property
    def flops(self) -> int:
        """FLOPs of the visible pairs of queries and keys, forward: two products of 2 FLOPs per pair and channel."""
        frames = self.shape[0]
        mask = None if self.frame_mask is None else np.frombuffer(self.frame_mask, bool).reshape(frames, frames)
        own = attention_flops(self.pattern, self.shape, heads=self.heads, head_dim=self.head_dim, frame_mask=mask)
        return self.batch * ((own if self.own else 0) + self._outside)

    @property
    def computed(self) -> int:
        """FLOPs that the kernel does: the dense one computes every pair of a sequence, the others are taken to compute
        what is visible (their blocks hold somewhat more)."""
        if self.kernel != "xla" or not self.own:
            return self.flops
        frames, height, width = self.shape
        rows = {"frames": height * width, "positions": frames, "all": frames * height * width}[self.pattern.layout]
        return self.batch * (4 * frames * height * width * rows * self.heads * self.head_dim + self._outside)

    @property
    def _outside(self) -> int:
        return 4 * int(np.prod(self.shape)) * self.extra_keys * self.heads * self.head_dim


_calls: contextvars.ContextVar[list[AttentionCall] | None] = contextvars.ContextVar("attention calls", default=None)


@contextlib.contextmanager
def counted() -> Iterator[list[AttentionCall]]:
    """The calls of `attend` made inside, which compute nothing. For tracing only."""
    token = _calls.set([])
    try:
        yield _calls.get()
    finally:
        _calls.reset(token)


def calls() -> list[AttentionCall] | None:
    """Where to write calls down; None while nobody counts."""
    return _calls.get()


@contextlib.contextmanager
def loop(times: int) -> Iterator[None]:
    """Calls made inside count `times` as often: those of the layers of a scan, which is traced once for all of them.
    Its body calls `first_layer`, since a trace may be repeated."""
    outer = _calls.get()
    if outer is None:
        yield
        return
    token = _calls.set([])
    try:
        yield
        outer.extend(_calls.get() * times)
    finally:
        _calls.reset(token)


def first_layer() -> None:
    """Forgets the calls of an earlier trace of the same body."""
    if (noted := _calls.get()) is not None:
        noted.clear()
