"""Image prompts of what samples: an adapter that joins a copy of the network's parameters, and pictures as arguments.

    prompts = ImagePrompts("IP-Adapter/models/ip-adapter_sd15.safetensors")      # with image_encoder/ next to it
    pictured = prompts.joined(generator)                                       # `generator` stays as it is
    pictured(["a fox"], **prompts.arguments(["ink.png"], scale=0.6))
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from vdm_jax.conditions.image_prompt import IMAGE_PROMPT, NULL, SCALE
from vdm_jax.conditions.inputs import Input
from vdm_jax.data.image_prompts import read_vectors
from vdm_jax.data.picture_encoding import PART, PictureEncoder
from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.released.pictures import Picture, open_pictures
from vdm_jax.networks.image_prompt import ImageProjection, join
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.parallel.rules import parameter_shardings
from vdm_jax.stages.stage import Stage
from vdm_jax.weights.image_prompt_files import load_image_prompt

Given = Picture | Float[np.ndarray, "M C"]  # a picture, or for adapters of faces vectors of these, or a file of them


class ImagePrompts:
    """An adapter in the file of its authors, and the image encoder that it was trained with, which those of faces do
    not need: what a recogniser makes of faces is given.

    Args:
      adapter: a safetensors file.
      encoder: folder of the image encoder; `image_encoder/` next to the file, or next to its folder, by default.
      mesh: over which the adapter's parameters are split; None: the default device.

    Raises `UserError` for another file, a folder that is not there, and an encoder whose vectors the adapter cannot
    read.
    """

    def __init__(self, adapter: str | Path, encoder: str | Path | None = None, mesh: Mesh | None = None):
        self.adapter = load_image_prompt(adapter)
        if mesh is not None:
            shardings = parameter_shardings(self.adapter.params, mesh)
            self.adapter = dataclasses.replace(self.adapter, params=jax.device_put(self.adapter.params, shardings))
        if self.faces and encoder is not None:
            raise UserError(f"image encoder {encoder} for an adapter of faces, which reads what a recogniser makes of "
                            "them; permitted: none", "image_prompt.encoder")
        self.encoder = None if self.faces else open_encoder(
            encoder or _next_to(Path(adapter)), self.projection.width, self.hidden)

    @property
    def projection(self) -> ImageProjection:
        """Sizes of the adapter's projection."""
        return self.adapter.config.projection

    @property
    def hidden(self) -> bool:
        """Whether it reads hidden states, and not summaries."""
        return self.projection.hidden_states

    @property
    def faces(self) -> bool:
        """Whether it reads vectors of faces, and not pictures."""
        return self.projection.vectors == "faces"

    def opened(self, given: Given | Sequence[Given]) -> list[Any]:
        """What is given as pictures, or vectors `[M, C]` of the faces of each video. Raises `UserError` for what is
        neither."""
        if not self.faces:
            return open_pictures(given)
        single = isinstance(given, str | os.PathLike) or (isinstance(given, np.ndarray) and given.ndim < 3)
        return [self._vectors(one) for one in ([given] if single else given)]

    def _vectors(self, given: Any) -> Float[np.ndarray, "M C"]:
        found = read_vectors(Path(given)) if isinstance(given, str | os.PathLike) else np.atleast_2d(given)
        if found.ndim != 2 or found.dtype.kind != "f" or found.shape[1] != self.projection.width:
            raise UserError(f"image_prompt of {found.dtype} {list(found.shape)}; permitted: vectors of faces "
                            f"[M, {self.projection.width}], or a .npy file of them", "image_prompt")
        return found.astype(np.float32)

    def joined_stage(self, stage: Stage, params: Any) -> tuple[Stage, Any]:
        """A stage and its parameters with the adapter. Raises `UserError` for a stage of another kind of network, or of
        other sizes."""
        network = stage.network
        if not isinstance(network, LatentNetwork):
            raise UserError(f"an image prompt adapter for stage {stage.name!r}, a {type(network).__name__}; permitted: "
                            "stages of a LatentNetwork", "image_prompt.stage")
        unet, params = join(network.unet, params, self.adapter.config, self.adapter.params)
        entry = Input(name=IMAGE_PROMPT, width=self.projection.width)
        network = dataclasses.replace(network, unet=unet, image_projection=self.projection,
                                      conditions=(*network.conditions, entry))
        return dataclasses.replace(stage, network=network), params

    def joined(self, generator: Generator) -> Generator:
        """A generator whose first stage has the adapter. Raises `UserError` as `joined_stage` does."""
        first, *others = generator.experiment.stages
        if first.name not in generator.params:
            raise UserError(f"an image prompt adapter for stage {first.name!r}, which is not trained; permitted: a "
                            "trained one", "image_prompt.stage")
        stage, params = self.joined_stage(first, generator.params[first.name])
        experiment = dataclasses.replace(generator.experiment, stages=(stage, *others))
        return generator.of(experiment, {**generator.params, first.name: params})

    def arguments(self, pictures: Sequence[Given], scale: float | None = None) -> dict[str, Any]:
        """What a generator is called with: one picture, or vectors of faces, for each video. Raises `UserError` for
        what is none, and different numbers of faces."""
        if self.faces:
            vectors = self.opened(list(pictures))
            if len({len(one) for one in vectors}) > 1:
                raise UserError(f"image_prompt of {[len(one) for one in vectors]} faces; permitted: as many for each "
                                "video", "image_prompt")
            return {IMAGE_PROMPT: np.stack(vectors), NULL: np.zeros_like(vectors[0]), SCALE: scale}
        return picture_arguments(self.encoder, pictures, scale, self.hidden)


def picture_arguments(
    encoder: PictureEncoder, pictures: Sequence[Picture], scale: float | None = None, hidden: bool = False,
    last: bool = False,
) -> dict[str, Any]:
    """The vectors of pictures, one for each video, and how much they count."""
    made = encoder(open_pictures(list(pictures)), hidden, last=last)
    return {IMAGE_PROMPT: made.vectors, NULL: np.asarray(made.null), SCALE: scale}


def open_encoder(folder: str | Path, width: int, hidden: bool) -> PictureEncoder:
    """An image encoder whose summaries or hidden states have so many channels. Raises `UserError` for another one."""
    encoder = PictureEncoder(folder)
    if encoder.width(hidden) != width:
        what = "hidden states" if hidden else "summaries"
        raise UserError(f"{encoder.folder} makes {what} of {encoder.width(hidden)} channels; permitted here: {width}",
                        "image_prompt.encoder")
    return encoder


def _next_to(adapter: Path) -> Path:
    """The image encoder's folder where the authors have it. Raises `UserError` where there is none."""
    for folder in (adapter.parent / PART, adapter.parent.parent / PART):
        if folder.is_dir():
            return folder
    raise UserError(f"{adapter.parent} has no {PART}/ for the image prompt adapter; permitted: the folder of its image "
                    "encoder (image_encoder)", "image_prompt.encoder")
