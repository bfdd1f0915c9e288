"""SparseCtrl on sketches of single frames, or other maps of them: AnimateDiff that follows a few drawings.

Citation: Guo et al. 2023, arXiv 2311.16933, and the authors' code (guoyww/AnimateDiff): as sparse_ctrl/rgb, but maps of
          pixels and their mask enter by the convolutions of a ControlNet. How it was trained, and on which sketches, is
          not known to us. Ours: as sparse_ctrl/rgb; edges of HED as maps.
Hardware: not known to us.
Expected: no numbers are known to us. Not trained by us.
Run:      vdm-jax train sparse_ctrl/scribble     (as for sparse_ctrl/rgb; maps by vdm-jax annotate data/webvid --kind
          hed)
"""

from vdm_jax.networks.sparse_control import SPARSE_CONTROL_SD1_SCRIBBLE
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.sparse_ctrl import _stage


def get_config() -> Experiment:
    """1,276,658,564 parameters of AnimateDiff and 497,802,784 of the branch."""
    return _stage.experiment("sparse_ctrl_scribble", "sparse_control", SPARSE_CONTROL_SD1_SCRIBBLE, "data/webvid-hed")
