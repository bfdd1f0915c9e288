"""Attention contexts: where the tokens of a clip live while they attend to each other.

One file per context; `sharded.py` is what they share, `shard_mask.py` what one device computes.
"""

import functools

from vdm_jax.attention.contexts import all_gather, halo, local, relayout, ring, ulysses, ulysses_ring
from vdm_jax.attention.contexts.sharded import Call, Context, context_size, run_sharded

CONTEXTS: dict[str, Context] = {
    "all_gather": Context(all_gather.attention, bias="rows"),
    "halo": Context(halo.attention),
    "ulysses": Context(ulysses.attention, bias="heads", extra="heads", check=ulysses.check),
    "ring": Context(ring.attention),
    "zigzag_ring": Context(functools.partial(ring.attention, zigzag=True), check=ring.check_halves),
    "ulysses_ring": Context(ulysses_ring.attention, extra="whole", check=ulysses_ring.check),
    "relayout": Context(relayout.attention, bias="sequences", extra="whole"),
}

__all__ = ["CONTEXTS", "Call", "Context", "context_size", "local", "run_sharded"]
