"""MagicVideo's key frames in any size."""

from vdm_jax.diffusion.grids import TimestepGrid
from vdm_jax.diffusion.levels import UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import ScaledLinearBetaSchedule
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet

BETAS = ScaledLinearBetaSchedule()
PROCESS = Process(schedule=BETAS, prediction="eps", level_sampling=UniformTimestep())
SAMPLER = DDIM(grid=TimestepGrid(spacing="leading", offset=1))


def network(unet: LatentUNet) -> LatentNetwork:
    """A U-Net that sees text and the number of frames per second."""
    return LatentNetwork(unet=unet, timesteps=BETAS, text=EmbeddedText(width=unet.token_channels), scalars=("fps",))
