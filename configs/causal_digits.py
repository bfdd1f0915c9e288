"""A causal video transformer on captioned digits: blocks of two frames, trained with teacher forcing.

Citation: teacher forcing and sampling with kept keys of Self-Forcing (Huang et al. 2025, arXiv 2506.08009, section 3),
          on the blocks of DiT (Peebles & Xie 2022, arXiv 2212.09748).
Hardware: any CPU with two cores and 8 GB.
Expected: not measured. Not trained by us.
Run:      vdm-jax train causal_digits
"""

import dataclasses

from vdm_jax.attention.patterns import BlockCausal
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs import dit_digits


def get_config() -> Experiment:
    """The stage of dit_digits with tokens of one frame. Every block has a noise level of its own; noisy blocks see the
    clean ones before them, as they do in sampling."""
    stage = dit_digits.base()
    network = dataclasses.replace(stage.network, patch=(1, 8, 8), patterns=(BlockCausal(block=2),),
                                  teacher_forcing=True)
    process = dataclasses.replace(stage.process, frame_levels=True, frame_block=2)
    stage = dataclasses.replace(stage, network=network, process=process,
                                sampling=dataclasses.replace(stage.sampling, by_blocks=True))
    return dataclasses.replace(dit_digits.get_config(), name="causal_digits", stages=(stage,))
