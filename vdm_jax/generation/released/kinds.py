"""The classes of pipelines that load, and what their authors sample with."""

from __future__ import annotations

from typing import Literal, NamedTuple

from vdm_jax.errors import UserError
from vdm_jax.generation.released.folder import Folder


class Kind(NamedTuple):
    """What the authors of a class of pipelines sample with."""

    stage: Literal["image", "video"]
    frames: int
    fps: float  # frames per second
    steps: int  # of the scheduler
    guidance_scale: tuple[float, float]  # s = 1 + w of the first and of the last frame
    size: tuple[int, int] | None = None  # height and width, pixels; None: by the U-Net's file
    threshold_per: Literal["clip", "frame"] = "clip"  # what dynamic thresholding measures


# Class in `model_index.json` -> its kind. Further ones are added here. The schedulers of ModelScope see frames as
# pictures.
KINDS = {
    "AnimateDiffControlNetPipeline": Kind("video", 16, 8, 50, (7.5, 7.5)),
    "AnimateDiffSparseControlNetPipeline": Kind("video", 16, 8, 50, (7.5, 7.5)),
    "AnimateDiffPipeline": Kind("video", 16, 8, 50, (7.5, 7.5)),
    "CogVideoXPipeline": Kind("video", 49, 8, 50, (6.0, 6.0), (480, 720)),
    "HunyuanVideoPipeline": Kind("video", 129, 24, 50, (6.0, 6.0), (720, 1280)),
    "LatentConsistencyModelPipeline": Kind("image", 1, 1, 4, (8.5, 8.5)),
    "LTXImageToVideoPipeline": Kind("video", 161, 25, 50, (3.0, 3.0), (512, 704)),
    "LTXPipeline": Kind("video", 161, 25, 50, (3.0, 3.0), (512, 704)),
    "StableDiffusionAdapterPipeline": Kind("image", 1, 1, 50, (7.5, 7.5)),
    "StableDiffusionControlNetPipeline": Kind("image", 1, 1, 50, (7.5, 7.5)),
    "StableDiffusionPipeline": Kind("image", 1, 1, 50, (7.5, 7.5)),
    "StableVideoDiffusionPipeline": Kind("video", 14, 7, 25, (1.0, 3.0), (576, 1024)),
    "TextToVideoSDPipeline": Kind("video", 16, 8, 50, (9.0, 9.0), threshold_per="frame"),
    "WanImageToVideoPipeline": Kind("video", 81, 16, 40, (5.0, 5.0), (480, 832)),  # likewise
    "WanPipeline": Kind("video", 81, 16, 50, (5.0, 5.0), (480, 832)),  # and as `transformers.usual` says
}


def kind_of(folder: Folder) -> Kind:
    """Raises `UserError` for a class of pipeline that we do not have."""
    if folder.kind not in KINDS:
        raise UserError(f"{folder.path} is a {folder.kind}; permitted: {', '.join(KINDS)}")
    return KINDS[folder.kind]
