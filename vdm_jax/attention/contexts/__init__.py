"""Attention contexts: where the tokens of a clip live while they attend to each other.

One file per context; `spread.py` is what they share, `part.py` what one device computes.
"""

from vdm_jax.attention.contexts import all_gather
from vdm_jax.attention.contexts.spread import Call, Context, context_size, spread

CONTEXTS: dict[str, Context] = {
    "all_gather": Context(all_gather.attention, bias="rows"),
}

__all__ = ["CONTEXTS", "Call", "Context", "context_size", "spread"]
