"""The feed-forward layer of all networks, plain or gated (Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.networks.layers import Dense, Initializer, PartedDense, add_residual, fan_in

Activation = Literal["quick_gelu", "gelu", "gelu_new", "relu", "silu"]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),  # the tanh form
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class FeedForward(nn.Module):
    """`out(act(expand(x)))`, or `out(expand(x) * act(gate(x)))` with a gate: `joint` with `expand` in one kernel, the
    gate second, or `separate`, in the kernel `gate`."""

    hidden: int | None = None  # channels inside; None: by `expansion`
    expansion: int = 4  # channels inside over those of the input
    activation: Activation = "silu"
    gate: Literal["none", "joint", "separate"] = "none"
    use_bias: bool = True
    in_name: str = "expand"
    norm: Callable[[], nn.Module] | None = None  # makes the norm before it
    residual: bool = False  # whether the input is added to the output
    out_init: Initializer = fan_in
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        act, hidden = ACTIVATIONS[self.activation], self.hidden or self.expansion * x.shape[-1]
        options = {"use_bias": self.use_bias, "dtype": self.dtype}
        h = x if self.norm is None else self.norm()(x)
        if self.gate == "joint":
            value, gate = PartedDense(2, (hidden,), name=self.in_name, **options)(h)
            h = value * act(gate)
        elif self.gate == "separate":
            h = act(Dense(hidden, name="gate", **options)(h)) * Dense(hidden, name=self.in_name, **options)(h)
        else:
            h = act(Dense(hidden, name=self.in_name, **options)(h))
        h = Dense(x.shape[-1], kernel_init=self.out_init, name="out", **options)(h)
        return add_residual(x, h) if self.residual else h
