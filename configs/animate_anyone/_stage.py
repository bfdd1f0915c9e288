"""What the two stages of Animate Anyone share, and its networks in any size."""

import re
from dataclasses import replace

from vdm_jax.attention.patterns import Spatial, WithExtraKeys
from vdm_jax.conditions.inputs import Input
from vdm_jax.diffusion.beta_tables import LinearBetaSchedule
from vdm_jax.diffusion.grids import TimestepGrid
from vdm_jax.diffusion.levels import UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.weightings import MinSNRWeighting
from vdm_jax.networks.latent_frames import Motion
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.networks.pose_guider import PoseGuider

# Of the open code, not of the paper: linear betas whose last timestep is pure noise, and the prediction v.
BETAS = LinearBetaSchedule(beta_start=0.00085, beta_end=0.012, zero_terminal_snr=True)
PROCESS = Process(schedule=BETAS, prediction="v", level_sampling=UniformTimestep(),
                  weighting=MinSNRWeighting(gamma=5.0))
SAMPLER = DDIM(grid=TimestepGrid(spacing="trailing"))


def network(unet: LatentUNet, guider: PoseGuider, motion: Motion | None = None) -> LatentNetwork:
    """An image U-Net that sees a reference picture by a second one, poses, and the picture's CLIP embedding in place of
    text; with motion modules for videos."""
    unet = replace(unet, spatial_pattern=WithExtraKeys(inner=Spatial()), motion=motion)
    return LatentNetwork(
        unet=unet, timesteps=BETAS, reference_net=True, control_nets=(guider,),
        conditions=(Input(name="image_prompt", width=unet.token_channels),
                    Input(name="control", width=guider.hint_channels)))


def of_images(unet: LatentUNet) -> tuple[str, ...]:
    """What the first stage trains: all but the layers of the reference network behind the last features that are
    seen."""
    last = re.escape(list(unet.transformers)[-1])
    unused = "self_attention|cross_attention|feed_forward_1|norm_context|norm_feed_forward"
    return (rf"^(?!/reference_net/((out|norm)/|{last}/(out/|space/({unused})/)))",)


OVER_FRAMES = ("_motion/",)  # what the second stage trains
