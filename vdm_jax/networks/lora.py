"""LoRA (Hu et al. 2021, arXiv 2106.09685): low-rank factors that are added to kernels, W + (alpha / rank) A B.

    adapted = with_adapters(params, [(adapter, 0.8), (another, 0.4)])     # a new tree: `params` stays as it is

The factors are a tree of their own: at the path of each module whose kernel they change, `down` (A) and `up` (B), each
with a `kernel`. Networks need no change, since the sum is a kernel like any other. That of a convolution has the window
of the kernel in `down`, and 1x1x1 in `up`; those of layers that a scan stacks have the layers as their first axis.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, PRNGKeyArray

from vdm_jax.configuration import Length, Positive, Width, config
from vdm_jax.errors import UserError

FACTORS = "lora"  # where the factors stand next to the parameters of the network in training
KERNEL = "kernel"


@config
class LoRA:
    """Low-rank factors of the kernels whose paths match one of the patterns."""

    rank: Width = 16
    alpha: Positive | None = None  # the factors count alpha / rank; None: alpha = rank
    # Regular expressions found in the paths of kernels, dense or of convolutions, which are written like
    # /down_0_0_transformer/space/self_attention/query/kernel
    patterns: Annotated[tuple[str, ...], Length()] = ("attention",)

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied with."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Factors of one network, and what their products are multiplied with, by the path of the module."""

    factors: Mapping[str, Any]  # nested dict
    scales: Mapping[str, float]

    @property
    def pairs(self) -> dict[str, tuple[Array, Array]]:
        """Path of each module, such as `out` or `down_0_0/residual/conv_in`, to `down` and `up`."""
        flat = traverse_util.flatten_dict(dict(self.factors), sep="/")
        ends = {part: f"/{part}/{KERNEL}" for part in ("down", "up")}
        modules = [name.removesuffix(ends["down"]) for name in flat if name.endswith(ends["down"])]
        return {module: (flat[module + ends["down"]], flat[module + ends["up"]]) for module in modules}


def adapted(specs: Sequence[LoRA], params: Any) -> dict[str, LoRA]:
    """Path of each module whose kernel the first of `specs` that matches it changes; `params` are parameters or their
    shapes.

    Raises `UserError` for a pattern that is found in the path of no kernel.
    """
    kernels = [name for name, leaf in traverse_util.flatten_dict(params, sep="/").items()
               if name.endswith(f"/{KERNEL}") and leaf.ndim in (2, 3, 5)]
    for spec in specs:
        for pattern in spec.patterns:
            if not any(re.search(pattern, f"/{name}") for name in kernels):
                shown = ", ".join(f"/{name}" for name in kernels[:: max(len(kernels) // 4, 1)][:5])
                raise UserError(f"LoRA.patterns has {pattern!r}, which no kernel matches; permitted: regular "
                                f"expressions found in paths such as {shown}")
    found = {}
    for name in kernels:
        for spec in specs:
            if any(re.search(pattern, f"/{name}") for pattern in spec.patterns):
                found[name.removesuffix(f"/{KERNEL}")] = spec
                break
    return found


def initial_factors(specs: Sequence[LoRA], params: Any, key: PRNGKeyArray) -> dict[str, Any]:
    """Factors that change nothing yet: `up` is zero, and `down` uniform up to 1 / sqrt(inputs), as in the authors'
    `loralib`. Raises `UserError` as `adapted` does."""
    flat, factors = traverse_util.flatten_dict(params, sep="/"), {}
    for number, (module, spec) in enumerate(adapted(specs, params).items()):
        kernel = flat[f"{module}/{KERNEL}"]
        down, up = factor_shapes(kernel.shape, spec.rank)
        bound = 1 / math.sqrt(math.prod(down[len(down) == 3 : -1]))
        factors[f"{module}/down/{KERNEL}"] = jax.random.uniform(
            jax.random.fold_in(key, number), down, kernel.dtype, -bound, bound)
        factors[f"{module}/up/{KERNEL}"] = jnp.zeros(up, kernel.dtype)
    return traverse_util.unflatten_dict(factors, sep="/")


def factor_shapes(kernel: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of `down` and `up` for that of a kernel: of a matrix, of matrices of stacked layers, of a convolution."""
    *window, _, _ = kernel
    before = kernel[:1] if len(kernel) == 3 else (1 for _ in window)
    return (*kernel[:-1], rank), (*before, rank, kernel[-1])


def trained_adapter(specs: Sequence[LoRA], params: Any, factors: Mapping[str, Any]) -> Adapter:
    """The factors with the scales of the specs that they were made by."""
    return Adapter(factors, {module: spec.scale for module, spec in adapted(specs, params).items()})


def with_adapters(params: Any, adapters: Iterable[tuple[Adapter, float]]) -> dict[str, Any]:
    """A new tree: the parameters with the weighted products of all factors added, summed in float32 and in the order
    given. What no factor changes is the same array as before; an adapter of weight 0 changes nothing. Jittable.

    Raises `UserError` for factors of a module that is not there or whose kernel has another shape.
    """
    flat, added = traverse_util.flatten_dict(params, sep="/"), {}
    for adapter, weight in adapters:
        if misfit := misfits(adapter, {name: leaf.shape for name, leaf in flat.items()}):
            raise UserError(f"the LoRA is for another network: {misfit}; permitted: one for this network")
        for module, (down, up) in adapter.pairs.items() if weight else ():
            down, up = jnp.asarray(down, jnp.float32), jnp.asarray(up, jnp.float32)  # of files too: the same bits
            up = up if up.ndim == 3 else up.reshape(up.shape[-2:])
            product = jnp.matmul(down, up, precision=jax.lax.Precision.HIGHEST)
            name = f"{module}/{KERNEL}"
            added[name] = added.get(name, 0) + (weight * adapter.scales[module]) * product
    sums = {name: (flat[name].astype(jnp.float32) + part).astype(flat[name].dtype) for name, part in added.items()}
    return traverse_util.unflatten_dict({**flat, **sums}, sep="/")


def misfits(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Which factors do not fit parameters of these shapes, on one line; empty where all fit."""
    wrong = []
    for module, (down, up) in adapter.pairs.items():
        kernel = shapes.get(f"{module}/{KERNEL}")
        found = (tuple(down.shape), tuple(up.shape))
        if kernel is None:
            wrong.append(f"{module} is not there")
        elif not down.shape or not down.shape[-1] or found != factor_shapes(kernel, down.shape[-1]):
            wrong.append(f"{module} has factors {list(found[0])} and {list(found[1])} for a kernel {list(kernel)}")
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more
