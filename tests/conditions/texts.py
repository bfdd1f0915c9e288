"""Conditioning on captions, as tests give it to networks."""

from __future__ import annotations

from jaxtyping import Array, Int

from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.text import of_tokens


def text_conditioning(tokens: Int[Array, "B G L"]) -> Conditioning:
    """Conditioning on word ids alone; padding is masked."""
    return Conditioning(**of_tokens(tokens))
