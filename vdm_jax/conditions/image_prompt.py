"""Image prompts: pictures whose content or style a video takes over, as what CLIP makes of them (IP-Adapter: Ye et al.
2023, arXiv 2308.06721). `networks/image_prompt.py` has the layers that see them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from vdm_jax.conditions.conditioning import Conditioning, Network, Request, Sizes, Stage, nulled
from vdm_jax.conditions.inputs import InputCondition
from vdm_jax.configuration import NonNegative, check_value
from vdm_jax.errors import UserError

IMAGE_PROMPT, SCALE, NULL = "image_prompt", "image_prompt_scale", "null_image_prompt"


class ImagePromptVectors(InputCondition):
    """Vectors of an image encoder `[M, C]`: the projected summary of each picture, or the hidden states of one, the
    field `image_prompt` of a clip. Where a network has keys and values of its own for them, a request may do without,
    or say by a factor how much they count: 0 is without them, to the last bit. Where guidance or dropout leave them out
    they are zero or, where `null_image_prompt` came along, what the encoder makes of a grey picture."""

    name = IMAGE_PROMPT
    enters = "tokens"
    guidance = "prompt"

    def __init__(self):
        self.fields = (IMAGE_PROMPT, NULL)

    def example(self, network: Network, sizes: Sizes, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Of a network that makes tokens of a picture the hidden states that it reads."""
        adapter = getattr(network, "picture_adapter", None)
        sizes = sizes if adapter is None else dataclasses.replace(sizes, tokens=adapter.tokens)
        return super().example(network, sizes, grid)

    def needed(self, network: Network) -> tuple[str, ...]:
        """The vectors, by networks without keys and values of their own for them."""
        return () if optional(network) else super().needed(network)

    def of_batch(self, stage: Stage, batch: Mapping[str, Array]) -> dict[str, Any]:
        """The field of its name, and the null value where there is one. Raises `UserError` where the batch has none."""
        found = super().of_batch(stage, batch)
        null = {NULL: self.value(stage, batch[NULL])} if NULL in batch else {}
        return {"inputs": found["inputs"] | null}

    def arguments(self, network: Network) -> tuple[str, ...]:
        """The vectors, the null ones, and of those with keys and values of their own the factor."""
        return (IMAGE_PROMPT, NULL, SCALE) if optional(network) else (IMAGE_PROMPT, NULL)

    def of_request(self, stage: Stage, request: Request) -> dict[str, Any]:
        """What is given for each caption, nothing where the factor is 0. Raises `UserError` for another shape, and a
        factor without vectors."""
        given, null, scale = map(request.get, (IMAGE_PROMPT, NULL, SCALE))
        if scale is not None:
            check_value(scale, NonNegative, SCALE)
        if given is None and (scale is not None or null is not None):
            raise UserError(f"{SCALE}={scale} without {IMAGE_PROMPT}; permitted: both, or none")
        if given is None and optional(stage.network):
            return {}
        found = super().of_request(stage, request)
        if scale == 0:
            return {}
        if null is not None:
            shape = np.shape(given)
            if np.shape(null) not in (shape, shape[1:]):
                raise UserError(f"{NULL} of shape {list(np.shape(null))} for {IMAGE_PROMPT} of shape {list(shape)}; "
                                "permitted: the same, or one for all")
            found["inputs"] |= {NULL: self.value(stage, jnp.broadcast_to(jnp.asarray(null), shape))}
        if not optional(stage.network):
            return found
        factor = jnp.full(len(request.captions), 1.0 if scale is None else scale, jnp.float32)
        return found | {"scalars": {SCALE: factor}}

    def request_of(self, network: Network, clips: list[Mapping[str, Any]]) -> dict[str, Any]:
        """The vectors of the clips, and the null ones."""
        null = {NULL: clips[0][NULL]} if NULL in clips[0] else {}
        return super().request_of(network, clips) | null

    def null(self, conditioning: Conditioning, where: Bool[Array, " B"] | None) -> dict[str, Any]:
        """The null value that came along, or zeros."""
        null = conditioning.inputs.get(NULL, 0)
        return {"inputs": {self.name: nulled(conditioning.inputs[self.name], null, where)}}


def optional(network: Network) -> bool:
    """Whether a network is the one without image prompts where there is none."""
    return getattr(network, "image_projection", None) is not None
