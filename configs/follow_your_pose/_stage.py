"""What the two stages of Follow Your Pose share, and its networks in any size."""

from vdm_jax.conditions.inputs import Input
from vdm_jax.diffusion.grids import TimestepGrid
from vdm_jax.diffusion.levels import UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import ScaledLinearBetaSchedule
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.networks.t2i_adapter import T2IAdapter

BETAS = ScaledLinearBetaSchedule()
PROCESS = Process(schedule=BETAS, prediction="eps", level_sampling=UniformTimestep())
SAMPLER = DDIM(grid=TimestepGrid(spacing="leading", offset=1))
POSES = ("^/control_net_control/",)  # what the first stage trains
# What the second stage trains: queries, and all of the temporal layers but the norms
OVER_FRAMES = ("/self_attention/query/", "/cross_attention/query/", "/temporal_attention/", "/temporal_convolution/")


def network(unet: LatentUNet, encoder: T2IAdapter, pose_free: bool = False) -> LatentNetwork:
    """A U-Net that sees text and what an encoder makes of skeletons, or may do without these."""
    return LatentNetwork(
        unet=unet, timesteps=BETAS, text=EmbeddedText(width=unet.token_channels), control_nets=(encoder,),
        conditions=(Input(name="control", width=encoder.hint_channels, optional=pose_free),))
