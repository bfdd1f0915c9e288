"""What the two phases of MCDiff share, and its stage in any size."""

from vdm_jax.conditions.frame_masks import FrameMask
from vdm_jax.conditions.frames import CurrentFrame
from vdm_jax.diffusion.grids import TimestepGrid
from vdm_jax.diffusion.levels import UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import ScaledLinearBetaSchedule
from vdm_jax.networks.flow_predictor import FlowPredictor
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Stage, VideoSpec

PROCESS = Process(schedule=ScaledLinearBetaSchedule(), prediction="eps", level_sampling=UniformTimestep())
SAMPLER = DDIM(grid=TimestepGrid(spacing="leading", offset=1))
GIVEN = (FrameMask(first=1),)  # the current frame


def stage(side: int, fps: float, latent: Latent, network: FlowPredictor, training: Training, sampling: Sampling
          ) -> Stage:
    """Pairs of frames, the second of which is made."""
    return Stage(name="base", video=VideoSpec(frames=2, height=side, width=side, fps=fps), source=CurrentFrame(),
                 process=PROCESS, latent=latent, network=network, training=training, sampling=sampling)
