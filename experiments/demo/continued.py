"""Base and first super-resolution of the weights that ship, trained on: what is in the package is where they begin.

Run:  vdm-jax train experiments/demo/continued.py --stage base spatial_1       (stop it at any time; it goes on)
      cp -r vdm_jax/shipped/captioned_digits_full/spatial_2 runs/continued/
      python -m experiments.demo.ship runs/continued captioned_digits_full --command "..."
"""

import dataclasses

from vdm_jax.stages.options import InitFrom
from vdm_jax.stages.stage import Experiment, Stage
from vdm_jax_configs import captioned_digits_full as full


def continued(stage: Stage) -> Stage:
    """The stage, which begins as the one that ships."""
    start = InitFrom(stage=stage.name, run="captioned_digits_full")
    return dataclasses.replace(stage, training=dataclasses.replace(stage.training, init_from=start))


def get_config() -> Experiment:
    """`captioned_digits_full`, of which two stages begin as those that ship."""
    experiment = full.get_config()
    base, spatial_1, spatial_2 = experiment.stages
    return dataclasses.replace(experiment, stages=(continued(base), continued(spatial_1), spatial_2))
