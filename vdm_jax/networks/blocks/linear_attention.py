"""Linear attention as a layer: projections, norms and residual of `Attention`, weights without a softmax."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.attention.linear import linear_attend
from vdm_jax.attention.patterns import Pattern
from vdm_jax.attention.positions import LAYOUT_AXES, rotary
from vdm_jax.errors import UserError
from vdm_jax.networks.blocks.attention import Attention


class LinearAttention(Attention):
    """Multi-head linear attention (`attention/linear.py`). Positions are rotary, of the features in the numerator, or
    none. Kernel and context count for nothing: frames that a mesh splits are summed by the devices that hold them.

    Raises `UserError` for patterns that do not relate whole frames, and for tokens from outside.
    """

    def attending(
        self, q: Float[Array, "B T H W K D"], k: Float[Array, "B T H W K D"], v: Float[Array, "B T H W K D"], *,
        pattern: Pattern, frame_mask: Bool[np.ndarray, "T T"] | None = None,
        frame_valid: Bool[Array, "B T"] | None = None, extra_keys: Any = None, **options: Any,
    ) -> Float[Array, "B T H W K D"]:
        """What the queries find."""
        if extra_keys is not None:
            raise UserError("linear attention with tokens from outside; permitted: none", code="linear.extra_keys")
        turn = partial(rotary, axes=LAYOUT_AXES[pattern.layout]) if self.position == "rotary" else jnp.asarray
        return linear_attend(q, k, v, pattern=pattern, turn=turn, frame_mask=frame_mask, frame_valid=frame_valid)

    def _positions(
        self, q: Float[Array, "B T H W K D"], k: Float[Array, "B T H W K D"],
        frame_mask: Bool[np.ndarray, "T T"] | None, numbers: Int[np.ndarray | Array, " T"] | None = None,
    ) -> tuple[Array, Array, dict[str, Any]]:
        """Features get theirs in `attending`."""
        return q, k, {}
