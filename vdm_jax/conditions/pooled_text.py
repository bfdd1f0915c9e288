"""The pooled text of CLIP, which joins the noise level of a video transformer (HunyuanVideo)."""

from __future__ import annotations

from vdm_jax.conditions.inputs import InputCondition

POOLED_TEXT = "pooled_text"


class PooledText(InputCondition):
    """One vector of each caption `[C]`, the field `pooled_text` of a clip. Zeros where it is left out."""

    name = POOLED_TEXT
    enters = "vector"
