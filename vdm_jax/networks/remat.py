"""What the backward pass recomputes instead of keeping, by name (Chen et al. 2016, arXiv 1604.06174).

| name | kept of a block | recomputed |
|---|---|---|
| `none` | everything | nothing |
| `dots` | its input, products with weights and convolutions | the rest: norms, activations, attention weights |
| `full` | its input | everything |
| `offload` | its input, in the host's memory | everything |
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

BLOCK_INPUT = "block_input"


def keep_dots(primitive: Any, *arguments: Any, **options: Any) -> Any:
    """Keeps what is expensive to recompute and not as large as attention's logits (products with batch dimensions)."""
    if primitive is lax.conv_general_dilated_p:
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *arguments, **options)


def rematerialised(
    module: nn.Module, block: Any, remat: str, static_argnums: tuple[int, ...] = (), *, scanned: bool = False
) -> Any:
    """A module class with the chosen policy around its call, or a function of a module, in which it makes its layers;
    `offload` needs `name_input` inside. `module` is the network that calls it: while its parameters are initialised
    nothing is differentiated, and tracing without a policy takes less time. The body of a scan (`scanned`) needs no
    barrier against common subexpressions."""
    if remat == "none" or module.is_initializing():
        return block
    policies = {
        "dots": keep_dots,
        "full": jax.checkpoint_policies.nothing_saveable,
        "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=[BLOCK_INPUT], offload_src="device",
            offload_dst="pinned_host"),
    }
    return nn.remat(block, static_argnums=static_argnums, policy=policies[remat],
                    prevent_cse=not scanned)


def name_input(x: Array, remat: str) -> Array:
    """A block's input under the name by which it is offloaded: what follows depends on the named value alone, so that
    the original is not kept on the device next to it."""
    return checkpoint_name(x, BLOCK_INPUT) if remat == "offload" else x
