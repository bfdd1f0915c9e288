"""Image prompt adapters as their authors publish them, one safetensors file each (IP-Adapter: Ye et al. 2023, arXiv
2308.06721): the adapters of summaries, those called "plus", with a resampler, "full", with a perceptron of each hidden
state, and "FaceID", with one of the vectors of faces and a LoRA. Adapters of faces were released as pickles, which are
not read: their tensors have to be written to a safetensors file by their names, `image_proj.` or `ip_adapter.` first.

Such a file has no config: sizes are read from shapes. Heads of a resampler have 64 channels in all that were released.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from vdm_jax.errors import UserError
from vdm_jax.networks.image_prompt import ImageProjection, ImagePromptAdapter
from vdm_jax.weights.pretrained import Pretrained, loaded, parameters_of
from vdm_jax.weights.tensor_files import Tensor, open_file

HEAD_DIM = 64
_LAYER = re.compile(r"ip_adapter\.(\d+)\.to_k_ip\.weight")
_RESAMPLED = re.compile(r"image_proj\.layers\.(\d+)\.0\.to_q\.weight")


def adapter_config(tensors: Mapping[str, Tensor], where: str, head_dim: int = HEAD_DIM) -> ImagePromptAdapter:
    """Sizes of the adapter in a file. Raises `UserError` for files that hold another kind, or none."""
    keys = {int(match[1]): tensor.shape for name, tensor in tensors.items() if (match := _LAYER.fullmatch(name))}
    shapes = {name.removeprefix("image_proj."): tensor.shape for name, tensor in tensors.items()}
    plain, plus = shapes.get("proj.weight", ()), shapes.get("latents", ())
    perceptron = _is_perceptron(shapes)
    if not keys or not (len(plain) == 2 or len(plus) == 3 or perceptron) or any(
            len(shape) != 2 for shape in keys.values()):
        raise UserError(f"{where} holds no image prompt adapter that is read here; permitted: IP-Adapter's files with "
                        "a projection of the summary (image_proj.proj.weight), with a resampler (image_proj.latents), "
                        "or with a perceptron of hidden states (image_proj.proj.3) or faces (image_proj.proj.2 and "
                        "norm)", "image_prompt.file")
    layers, channels = tuple(keys[number][0] for number in sorted(keys)), keys[min(keys)][1]
    if len(plain) == 2:
        projection = ImageProjection(width=plain[1], tokens=max(plain[0] // channels, 1), token_channels=channels)
        return ImagePromptAdapter(projection=projection, layers=layers)
    if perceptron:
        factors = tensors.get("ip_adapter.0.to_q_lora.down.weight")
        return ImagePromptAdapter(projection=_perceptron(shapes, channels), layers=layers,
                                  rank=0 if factors is None else factors.shape[0])
    count = len({match[1] for name in tensors if (match := _RESAMPLED.fullmatch(name))})
    query, inner = (shapes.get(name, (0, 0)) for name in ("layers.0.0.to_q.weight", "proj_in.weight"))
    if not count or len(query) != 2 or len(inner) != 2 or query[0] % head_dim:
        raise UserError(f"{where} has a resampler of {count} layers with queries of {query[0]}; permitted: one or more "
                        f"layers, heads of {head_dim}", "image_prompt.file")
    return ImagePromptAdapter(layers=layers, projection=ImageProjection(
        width=inner[1], tokens=plus[1], token_channels=channels, layers=count, hidden=plus[2],
        heads=query[0] // head_dim, head_dim=head_dim))


def _is_perceptron(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a projection is one of those with two affine maps; the norm after them has a name or a number, and those
    with a resampler too are others."""
    matrices = all(len(shapes.get(f"proj.{number}.weight", ())) == 2 for number in (0, 2))
    return matrices and ("norm.weight" in shapes) != ("proj.3.weight" in shapes) and not any(
        name.startswith("perceiver_resampler.") for name in shapes)


def _perceptron(shapes: Mapping[str, tuple[int, ...]], channels: int) -> ImageProjection:
    (inner, width), outer = shapes["proj.0.weight"], shapes["proj.2.weight"][0]
    faces = "norm.weight" in shapes
    return ImageProjection(width=width, tokens=max(outer // channels, 1) if faces else 1, token_channels=channels,
                           perceptron=inner, vectors="faces" if faces else "pictures")


def load_image_prompt(path: str | os.PathLike) -> Pretrained:
    """The adapter of a file, on the default device; `image_prompt.join` puts it into a network, and
    `pretrained.save_original` writes it again.

    Raises `UserError` for a pickle, a damaged or another file, and tensors that are missing, unexpected or misshapen,
    by name.
    """
    tensors = open_file(path)
    config = adapter_config(tensors, str(path))
    return Pretrained(config, loaded(parameters_of(config, tensors, f"{path} is no whole image prompt adapter")))
