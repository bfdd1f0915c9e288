"""Wan 2.1 text to video, 14B: 81 frames of 720x1280 in causal latents. 75,600 tokens.

Citation: Wan Team 2025, arXiv 2503.20314; sizes, shift, steps and guidance of the released code. What is not published
          is marked in _stage.py.
Hardware: tokens over `context`, heads over `tensor`, weights over `fsdp`: check a mesh with vdm-jax compile.
Expected: VBench 83.69 (as the README of SANA-Video quotes it). Not trained by us.
          Training goes on from released weights with
          Training(init_from=InitFromFile(path="transformer.safetensors")), a file of vdm-jax convert FOLDER/transformer
          transformer.safetensors.
Run:      vdm-jax train wan/text_to_video_14b     (weights/wan_vae.safetensors by vdm-jax convert FOLDER/vae; clips made
          by vdm-jax prepare; UMT5-XXL states of each caption by vdm-jax embed)
"""

from vdm_jax.networks.transformer.config import WAN_14B
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.wan import _stage


def get_config() -> Experiment:
    """All parameters are trained."""
    return _stage.experiment("wan_text_to_video_14b", WAN_14B, 720, 1280)
