"""Attention contexts: where the tokens of a clip live while they attend to each other.

One file per context; `spread.py` is what they share, `part.py` what one device computes.
"""

import functools

from vdm_jax.attention.contexts import all_gather, halo, local, relayout, ring, ulysses, ulysses_ring
from vdm_jax.attention.contexts.spread import Call, Context, context_size, spread

CONTEXTS: dict[str, Context] = {
    "all_gather": Context(all_gather.attention, bias="rows"),
    "halo": Context(halo.attention),
    "ulysses": Context(ulysses.attention, bias="heads", bank="heads", check=ulysses.check),
    "ring": Context(ring.attention),
    "zigzag_ring": Context(functools.partial(ring.attention, zigzag=True), check=ring.check_halves),
    "ulysses_ring": Context(ulysses_ring.attention, bank="whole", check=ulysses_ring.check),
    "relayout": Context(relayout.attention, bias="sequences", bank="whole"),
}

__all__ = ["CONTEXTS", "Call", "Context", "context_size", "local", "spread"]
