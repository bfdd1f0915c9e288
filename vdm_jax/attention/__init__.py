"""Attention: who sees whom (patterns), how it is computed (kernels), where the tokens live (contexts).

The three are separate choices joined by one capability table (`capability.py`); `attend` is the only entry.
"""

from vdm_jax.attention.attend import attend, cross_pattern
from vdm_jax.attention.patterns import (
    AttentionPattern,
    Causal,
    External,
    Full,
    LocalWindow,
    SparseCausal,
    Spatial,
    Temporal,
    TemporalCausal,
)
from vdm_jax.attention.relation import Bank

__all__ = ["AttentionPattern", "Bank", "Causal", "External", "Full", "LocalWindow", "SparseCausal", "Spatial",
           "Temporal", "TemporalCausal", "attend", "cross_pattern"]
