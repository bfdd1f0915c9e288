"""What is asked of a cascade, as the conditioning that each of its stages takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.vocabulary import Vocabulary
from vdm_jax.errors import UserError
from vdm_jax.networks.config import EmbeddedText, WordEncoder
from vdm_jax.stages.inputs import text_conditioning
from vdm_jax.stages.stage import Stage


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Captions of a batch, and what some networks take beside or instead of them."""

    captions: tuple[str, ...]
    embeddings: Float[np.ndarray, "b l c"] | None = None  # of the captions, for stages that read those
    text_mask: Bool[np.ndarray, "b l"] | None = None  # True at real tokens of `embeddings`; None: all are
    # Of the empty text, where stages were trained with it, or of what each video should not show
    null_embeddings: Float[np.ndarray, "l c"] | Float[np.ndarray, "b l c"] | None = None
    null_mask: Bool[np.ndarray, " l"] | Bool[np.ndarray, "b l"] | None = None
    labels: Sequence[int] | None = None  # `[B]`, for stages that take a class; -1 is none

    def __post_init__(self):
        if not self.captions:
            raise UserError("captions=[] is not valid; permitted: at least one caption")

    def conditioning(
        self, stage: Stage, fps: float | None = None, motion: float | None = None, noise: float | None = None
    ) -> Conditioning:
        """What a stage is told. Raises `UserError` for embeddings or labels that it needs and that are missing or of
        another shape.

        Args:
          stage: of the cascade.
          fps: frames per second that it is told, where it takes them; None: its own.
          motion: how much moves, likewise.
          noise: standard deviation of that on the picture that videos begin with, likewise.
        """
        found, classes = self._text(stage), stage.network.classes
        if classes:
            labels, count = self.labels, len(self.captions)
            if labels is None or len(labels) != count or not all(-1 <= label < classes for label in labels):
                raise UserError(f"labels={labels} given for stage {stage.name!r}; permitted: {count} numbers from -1 "
                                f"(no class) to {classes - 1}")
            found = found.replace(labels=jnp.asarray(labels, jnp.int32))
        said = {name: value for name, value in (("fps", fps), ("motion", motion), ("noise", noise))
                if value is not None and name in stage.network.scalars}
        return found.replace(scalars={name: jnp.full(len(self.captions), value, jnp.float32)
                                      for name, value in said.items()})

    def _text(self, stage: Stage) -> Conditioning:
        text = stage.network.text
        if isinstance(text, WordEncoder):
            words = Vocabulary(text.words, text.length).encode_prompts(self.captions)
            return text_conditioning(jnp.asarray(words)[:, None])
        if not isinstance(text, EmbeddedText):
            return Conditioning()
        shape = np.shape(self.embeddings)
        if len(shape) != 3 or (shape[0], shape[2]) != (len(self.captions), text.width):
            raise UserError(f"embeddings of shape {list(shape)} given for stage {stage.name!r}; permitted: "
                            f"[{len(self.captions)}, L, {text.width}]")
        mask = np.ones(shape[:2], bool) if self.text_mask is None else np.asarray(self.text_mask, bool)
        if mask.shape != shape[:2]:
            raise UserError(f"text_mask of shape {list(mask.shape)} given for stage {stage.name!r}; permitted: "
                            f"{list(shape[:2])}")
        found = Conditioning(embeddings=jnp.asarray(self.embeddings, jnp.float32)[:, None],
                             text_mask=jnp.asarray(mask)[:, None])
        if self.null_embeddings is None:
            return found
        null = np.shape(self.null_embeddings)
        if null not in (shape[1:], shape):
            raise UserError(f"null_embeddings of shape {list(null)} given for stage {stage.name!r}; permitted: "
                            f"{list(shape[1:])}, as long as the captions'")
        mask = np.ones(null[:-1], bool) if self.null_mask is None else np.asarray(self.null_mask, bool)
        return found.replace(
            null_embeddings=jnp.broadcast_to(jnp.asarray(self.null_embeddings, jnp.float32), shape),
            null_mask=jnp.broadcast_to(jnp.asarray(mask), shape[:2]))
