"""Tokens of pictures from an image encoder, to which a video transformer attends with keys and values of their own."""

from __future__ import annotations

from vdm_jax.conditions.inputs import InputCondition

IMAGE_TOKENS = "image_tokens"


class ImageTokens(InputCondition):
    """Penultimate hidden states of CLIP's image encoder of the first frame (and the last one, after them) `[M, C]`, the
    field `image_tokens` of a clip. Zeros where they are left out, which guidance by their name does, and guidance by
    the prompt does not: Wan's unconditional estimate sees the picture too."""

    name = IMAGE_TOKENS
    enters = "tokens"
