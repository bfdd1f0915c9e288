"""Wan 2.1 image to video, 14B: 81 frames of 480x832 in causal latents, which begin with a picture.

Citation: Wan Team 2025, arXiv 2503.20314; sizes, shift, steps and guidance of the released code. What is not published
          is marked in _stage.py.
Hardware: tokens over `context`, heads over `tensor`, weights over `fsdp`: check a mesh with vdm-jax compile.
Expected: not measured. Training goes on from released weights with
          Training(init_from=InitFromFile(path="transformer.safetensors")), a file of vdm-jax convert FOLDER/transformer
          transformer.safetensors. Not trained by us.
Run:      vdm-jax train wan/image_to_video_14b     (as wan/text_to_video_14b; clips also have `image_tokens` float32
          [257, 1280], the penultimate states of CLIP ViT-H/14 of their first frame, which a data set of yours brings:
          those of vdm-jax prepare have none; a run of it is sampled from Python alone, as generator(..., image_tokens=
          ARRAY, masked_video=masked_first_frame(...)), since no command encodes pictures for a run. A released folder
          encodes them itself: vdm-jax generate FOLDER --image FILE)
"""

from vdm_jax.networks.transformer.config import WAN_14B_IMAGE
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.wan import _stage


def get_config() -> Experiment:
    """The first frame of every clip is given. All parameters are trained."""
    return _stage.experiment("wan_image_to_video_14b", WAN_14B_IMAGE, 480, 832, shift=3.0, steps=40)
