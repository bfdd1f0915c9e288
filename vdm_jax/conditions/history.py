"""The clean clip that a causal video transformer sees in training: teacher forcing (Self-Forcing: Huang et al. 2025,
arXiv 2506.08009, section 3.1). In sampling the frames that are finished take its place."""

from __future__ import annotations

from typing import Any

from vdm_jax.conditions.conditioning import Condition, Conditioning, Network, Shapes, Sizes, Stage, TrainingClips


class History(Condition):
    """The clips of the batch, without noise."""

    name = "history"
    enters = "frames"
    parts = ("history",)
    frame_parts = ("history",)
    made = True

    def taken(self, network: Network) -> bool:
        """Where the network is trained with teacher forcing."""
        return network.teacher_forcing

    def needed(self, network: Network) -> tuple[str, ...]:
        """None: in sampling there is none."""
        return ()

    def shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """None of what is sampled."""
        return {}

    def in_training(self, conditioning: Conditioning, clips: TrainingClips) -> dict[str, Any]:
        """The clips, or their latents."""
        return {"history": clips.x}
