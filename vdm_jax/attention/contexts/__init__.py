"""Attention contexts: where the tokens of a clip live while they attend to each other.

One file per context; `spread.py` is what they share, `part.py` what one device computes.
"""

from vdm_jax.attention.contexts import all_gather, halo, relayout, ulysses
from vdm_jax.attention.contexts.spread import Call, Context, context_size, spread

CONTEXTS: dict[str, Context] = {
    "all_gather": Context(all_gather.attention, bias="rows"),
    "halo": Context(halo.attention),
    "ulysses": Context(ulysses.attention, bias="heads", bank="heads", check=ulysses.check),
    "relayout": Context(relayout.attention, bias="sequences", bank="whole"),
}

__all__ = ["CONTEXTS", "Call", "Context", "context_size", "spread"]
