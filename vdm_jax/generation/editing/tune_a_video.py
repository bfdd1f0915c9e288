"""Tune-A-Video: a network tuned on the given video, sampled from the noise that DDIM inversion of it ends at (Wu et al.
2022, arXiv 2212.11565). The tuning is a training run: `configs/tune_a_video/`."""

from __future__ import annotations

from typing import ClassVar

from vdm_jax.configuration import config
from vdm_jax.generation.editing.ddim_inversion import DDIMInversion, Refinements


@config
class TuneAVideo(DDIMInversion):
    """Plain DDIM inversion of all steps without a caption (give no `source_captions`) or guidance, then DDIM with the
    new caption."""

    name: ClassVar[str] = "tune_a_video"

    refinements: Refinements = 0
