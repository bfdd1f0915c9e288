"""A pipeline's folder as a callable."""

from __future__ import annotations

import os
from collections.abc import Callable

from vdm_jax.errors import UserError
from vdm_jax.generation.released.folder import Folder, open_folder
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.pipelines.base import LatentPipeline
from vdm_jax.pipelines.cogvideox import CogVideoXTextToVideo
from vdm_jax.pipelines.hunyuan import HunyuanTextToVideo
from vdm_jax.pipelines.image_to_video import ImageToVideo
from vdm_jax.pipelines.ltx import LTXImageToVideo, LTXTextToVideo
from vdm_jax.pipelines.text_to_image import AdaptedTextToImage, ControlledTextToImage, TextToImage
from vdm_jax.pipelines.text_to_video import AnimateDiff, ControlledAnimateDiff, SparseAnimateDiff, TextToVideo
from vdm_jax.pipelines.wan import WanImageToVideo, WanTextToVideo

# Class in `model_index.json` -> what makes a pipeline of the folder. Further ones are added here.
PIPELINES: dict[str, Callable[[Folder], LatentPipeline]] = {
    "AnimateDiffControlNetPipeline": ControlledAnimateDiff,
    "AnimateDiffPipeline": AnimateDiff,
    "AnimateDiffSparseControlNetPipeline": SparseAnimateDiff,
    "CogVideoXPipeline": CogVideoXTextToVideo,
    "HunyuanVideoPipeline": HunyuanTextToVideo,
    "StableDiffusionAdapterPipeline": AdaptedTextToImage,
    "StableDiffusionControlNetPipeline": ControlledTextToImage,
    "LatentConsistencyModelPipeline": TextToImage,
    "LTXImageToVideoPipeline": LTXImageToVideo,
    "LTXPipeline": LTXTextToVideo,
    "StableDiffusionPipeline": TextToImage,
    "StableVideoDiffusionPipeline": ImageToVideo,
    "TextToVideoSDPipeline": TextToVideo,
    "WanImageToVideoPipeline": WanImageToVideo,
    "WanPipeline": WanTextToVideo,
}


def from_pretrained(
    folder: str | os.PathLike, *, dtype: str | None = None, variant: str | None = None, mesh: MeshSpec | None = None,
    scheduler: str | None = None,
) -> LatentPipeline:
    """A released model, ready to be called with a prompt or a picture.

    Args:
      folder: a local folder in the layout of diffusers, with `model_index.json`. Nothing is downloaded.
      dtype: of parameters and activations: float32, bfloat16, float16; None: parameters as stored. The autoencoder
        stays in float32 where float16 is asked for, which it overflows.
      variant: part of the weights' file names, such as `fp16`; parts of the pipeline without it have plain names.
      scheduler: sampled with instead of the folder's, by the noise that its file states: cogvideox_ddim,
        cogvideox_dpm, ddim, ddpm, deis, dpm++, dpm++_3m, dpm++_sde, edm_euler, euler, euler_ancestral, flow_euler,
        heun, lcm, lms, pndm, unipc, or a class of diffusers.
      mesh: devices per axis, for weights split over several of them; one device by default.

    Tensors are read one by one: at no time is there more in memory than the model and its largest tensor.

    Raises `UserError` for a folder that is no pipeline, one of another kind, missing or damaged parts, settings that we
    do not have, by name, and pickled weights.
    """
    opened = open_folder(folder, dtype=dtype, variant=variant, mesh=mesh, scheduler=scheduler)
    if opened.kind not in PIPELINES:
        raise UserError(f"{folder} is a {opened.kind}; permitted: {', '.join(PIPELINES)}")
    return PIPELINES[opened.kind](opened)
