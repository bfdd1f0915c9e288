"""Wan 2.1 image to video, 14B: 81 frames of 480x832 in causal latents, which begin with a picture.

Citation: Wan Team 2025, arXiv 2503.20314; sizes, shift, steps and guidance of the released code. What is not published
          is marked in _stage.py.
Hardware: tokens over `context`, heads over `tensor`, weights over `fsdp`: check a mesh with vdm-jax compile.
Expected: not measured. Training goes on from released weights with
          Training(init_from=InitFromFile(path="transformer.safetensors")), a file of vdm-jax convert FOLDER/transformer
          transformer.safetensors. Not trained by us.
Run:      vdm-jax train wan/image_to_video_14b     (as wan/text_to_video_14b; tokens of the clips' first frames, the
          penultimate states of CLIP ViT-H/14, by
          vdm-jax embed wan/image_to_video_14b --first-frames --encoder Wan2.1-I2V-14B-480P-Diffusers
          A run encodes the picture of vdm-jax sample RUN --image FILE with the same encoder)
"""

from vdm_jax.networks.transformer.config import WAN_14B_IMAGE
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.wan import _stage


def get_config() -> Experiment:
    """The first frame of every clip is given. All parameters are trained."""
    return _stage.experiment("wan_image_to_video_14b", WAN_14B_IMAGE, 480, 832, shift=3.0, steps=40,
                             image_tokens="data/clip_h")
