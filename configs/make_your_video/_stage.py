"""What the two stages of Make-Your-Video share, and its network in any size."""

from vdm_jax.conditions.inputs import Input
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
SAMPLER = DDIM(grid=TimestepGrid(spacing="leading", offset=1), eta=1.0)
OVER_FRAMES = ("_frames/", "_motion/")  # what the second stage trains: all of the temporal layers


def network(unet: LatentUNet) -> LatentNetwork:
    """A U-Net that sees text, and a depth map along the channels of the noisy latents, from -1 to 1."""
    depth = Input(name="control", width=3, enters="channels", channels=1, signed=True)
    return LatentNetwork(unet=unet, timesteps=BETAS, text=EmbeddedText(width=unet.token_channels), conditions=(depth,))
