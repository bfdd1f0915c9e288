"""Attention: who sees whom (patterns), how it is computed (kernels), where the tokens live (contexts).

The three are separate choices joined by one capability table (`capability.py`); `attend` is the only entry.
"""

from vdm_jax.attention.attend import attend, cross_pattern
from vdm_jax.attention.block_mask import ExtraKeys
from vdm_jax.attention.patterns import (
    AttentionPattern,
    BlockCausal,
    Causal,
    FirstFrames,
    Full,
    LocalWindow,
    Neighbourhood,
    PerHead,
    Radial,
    SlidingTiles,
    SparseCausal,
    Spatial,
    TeacherForcing,
    Temporal,
    TemporalCausal,
    WithExtraKeys,
)

__all__ = ["AttentionPattern", "BlockCausal", "Causal", "ExtraKeys", "FirstFrames", "Full", "LocalWindow",
           "Neighbourhood", "PerHead", "Radial", "SlidingTiles", "SparseCausal", "Spatial", "TeacherForcing",
           "Temporal", "TemporalCausal", "WithExtraKeys", "attend", "cross_pattern"]
