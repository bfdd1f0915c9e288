"""CogVideoX-5B: 49 frames of 480x720 in causal latents, whose text is part of the sequence.

Citation: Yang et al. 2024, arXiv 2408.06072; sizes, noise, steps and guidance of the released code. What is not
          published is marked in _stage.py.
          Sampled by DDIM here; the authors' sampler of this model is DPM-Solver++ as a stochastic equation.
Hardware: weights over `fsdp`, heads over `tensor`: check a mesh with vdm-jax compile.
Expected: not measured. Training goes on from released weights with
          Training(init_from=InitFromFile(path="transformer.safetensors")), a file of vdm-jax convert FOLDER/transformer
          transformer.safetensors. Not trained by us.
Run:      vdm-jax train cogvideox/text_to_video_5b     (weights/cogvideox_vae.safetensors by vdm-jax convert FOLDER/vae;
          clips made by vdm-jax prepare; T5-v1.1-XXL states of each caption by vdm-jax embed;
          for released weights with those of padding, see _stage.py)
"""

from vdm_jax.networks.transformer.members import COGVIDEOX_5B
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.cogvideox import _stage


def get_config() -> Experiment:
    """All parameters are trained."""
    return _stage.experiment("cogvideox_text_to_video_5b", COGVIDEOX_5B, scale=0.7)
