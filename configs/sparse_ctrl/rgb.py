"""SparseCtrl on pictures: AnimateDiff that begins with a picture, or goes from one given frame to the next.

Citation: Guo et al. 2023, arXiv 2311.16933, and the authors' code (guoyww/AnimateDiff): a copy of the first half of the
          image network with a motion module of one attention after each block, zeros in place of the noisy latents, the
          latents of the given frames and their mask by one convolution that begins as zero. How it was trained is not
          known to us. Ours: AnimateDiff's network without a module in the middle, its data, noise and sampling; that
          it is not trained; one to half of the frames given, anywhere; steps, batch, rate, dropped captions.
Hardware: not known to us.
Expected: no numbers are known to us. Not trained by us.
Run:      vdm-jax train sparse_ctrl/rgb     (a folder of AnimateDiffPipeline as animatediff; weights/sd_vae.safetensors
          by vdm-jax convert; captioned videos in data/webvid, captions encoded into data/clip_l by vdm-jax embed)
"""

from vdm_jax.networks.sparse_control import SPARSE_CONTROL_SD1
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.sparse_ctrl import _stage


def get_config() -> Experiment:
    """1,276,658,564 parameters of AnimateDiff and 496,730,880 of the branch; the frames are those of the clips."""
    return _stage.experiment("sparse_ctrl_rgb", "sparse_frames", SPARSE_CONTROL_SD1)
