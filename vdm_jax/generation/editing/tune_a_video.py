"""Tune-A-Video: a network tuned on the given video, sampled from the noise that DDIM inversion of it ends at (Wu et al.
2022, arXiv 2212.11565). The tuning is a training run: `configs/tune_a_video/`."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vdm_jax.configuration import config
from vdm_jax.generation.editing.ddim_inversion import DDIMInversion, Refinements
from vdm_jax.parallel.rules import path_name
from vdm_jax.stages.stage import Stage


@config
class TuneAVideo(DDIMInversion):
    """Plain DDIM inversion of all steps without a caption (give no `source_captions`) or guidance, then DDIM with the
    new caption."""

    name: ClassVar[str] = "tune_a_video"

    refinements: Refinements = 0

    def notes(self, stage: Stage, params: Any) -> list[str]:
        """Says of a network that no training on a video has changed that it was never tuned."""
        leaves = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
        began_with_zeros = [leaf for name, leaf in leaves if name.endswith("/temporal_attention/out/kernel")]
        if any(bool(jnp.any(leaf != 0)) for leaf in began_with_zeros):
            return []
        reason = "its temporal attention is as it began" if began_with_zeros else "it has no temporal attention of it"
        return [f"stage {stage.name!r} was never tuned on a video for {self.name}: {reason}; configs/tune_a_video/ "
                "tunes it"]
