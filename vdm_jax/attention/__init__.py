"""Attention: who sees whom (patterns), how it is computed (kernels), where the tokens live (contexts).

The three are separate choices joined by one capability table (`capability.py`); `attend` is the only entry.
"""

from vdm_jax.attention.attend import attend
from vdm_jax.attention.patterns import AttentionPattern, Full, Spatial, Temporal

__all__ = ["AttentionPattern", "Full", "Spatial", "Temporal", "attend"]
