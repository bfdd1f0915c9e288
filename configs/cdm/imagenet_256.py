"""Cascaded Diffusion Models on ImageNet: class to 32x32, 64x64 and 256x256 pixels; an image is a video of one frame.

Citation: Ho et al. 2021, arXiv 2106.15282, section 4 and appendix B; what is open to us is marked in _stages.py. The
          first two models learn their variance in the paper, and do not here. Counts are not published.
Hardware: not published in our sources.
Expected: FID 4.88 against training images, 4.63 against validation images (50k samples, no guidance). Not
          trained by us.
Run:      vdm-jax train cdm/imagenet_256 --stage sr_256
"""

from vdm_jax.data.array_record import PreparedClips
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.cdm._stages import base_32, sr_64, sr_256


def get_config() -> Experiment:
    """The three stages, on images with labels."""
    return Experiment(name="cdm_imagenet_256", stages=(base_32(), sr_64(), sr_256()),
                      data=PreparedClips(path="data/imagenet_256"))
