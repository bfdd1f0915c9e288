"""What a user says of sampling, in place of what a stage says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vdm_jax.diffusion.guidance import guidance_weight
from vdm_jax.errors import UserError
from vdm_jax.stages.options import GuidanceTerm, Sampling


def with_overrides(sampling: Sampling, **changes: Any) -> Sampling:
    """The stage's sampling with what the user changed; None changes nothing. A weight of the guidance is that of all
    noise levels, unless one for much noise is given too."""
    changes = {name: value for name, value in changes.items() if value is not None}
    if "guidance" in changes:
        changes = {"high_noise_guidance": None} | ({} if changes["guidance"] else {"dynamic_guidance": False}) | changes
    return dataclasses.replace(sampling, **changes)


def with_guide(sampling: Sampling, guide: Mapping[str, float] | None) -> Sampling:
    """The stage's sampling with guidance by these names, in their order, in place of its own; None changes nothing.
    Raises `UserError` for what are no numbers."""
    if guide is None:
        return sampling
    terms = tuple(GuidanceTerm(name=name, scale=scale) for name, scale in guide.items())
    return dataclasses.replace(sampling, terms=terms, guidance=0.0, last_frame_guidance=None, high_noise_guidance=None,
                               oscillation=None, dynamic_guidance=False)


def one_guidance(guidance: float | None, guidance_scale: float | None, guide: Mapping[str, float] | None
                 ) -> float | None:
    """The weight w, however it is written; None where none is given, or names are. Raises `UserError` where two are."""
    weight = guidance_weight(guidance, guidance_scale)
    if weight is not None and guide is not None:
        raise UserError(f"guidance={weight} with guide={dict(guide)}; permitted: one of them")
    return weight
