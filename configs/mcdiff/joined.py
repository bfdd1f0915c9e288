"""MCDiff, second phase: the prediction sees the completed flow, and both networks are trained as one, 256x256.

Citation: Chen et al. 2023, arXiv 2304.14404, section 3.4 and equation 3, by a review of the paper: 100,000 steps of 20
          pairs on the weighted sum of both losses, whose weights are not known to us: here 1 and 1. apart.py says what
          else is ours.
Hardware: not known.
Expected: the results in mcdiff/apart. Not trained by us.
Run:      vdm-jax train mcdiff/joined     (after mcdiff/apart, on the same data; then vdm-jax sample mcdiff_joined
          --image start.png --control strokes.json --frames 16)
"""

from dataclasses import replace

from vdm_jax.stages.options import InitFrom
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.mcdiff import apart


def get_config() -> Experiment:
    """Both networks as they are after the first phase."""
    experiment = apart.get_config()
    stage, = experiment.stages
    training = replace(stage.training, steps=100_000, batch_size=20,
                       init_from=InitFrom(stage="base", run="mcdiff_apart"))
    stage = replace(stage, network=replace(stage.network, joined=True), training=training)
    return replace(experiment, name="mcdiff_joined", stages=(stage,))
