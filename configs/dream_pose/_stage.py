"""What the stages of DreamPose share, and its network in any size."""

from vdm_jax.conditions.inputs import Input
from vdm_jax.diffusion.grids import TimestepGrid
from vdm_jax.diffusion.levels import UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import PNDM
from vdm_jax.diffusion.schedules import ScaledLinearBetaSchedule
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.networks.picture_adapter import PictureAdapter
from vdm_jax.stages.autoencoding import AutoencoderLoss
from vdm_jax.stages.options import Dropout, GuidanceTerm

BETAS = ScaledLinearBetaSchedule()
# Frames are denoised one by one: each has a noise level of its own.
PROCESS = Process(schedule=BETAS, prediction="eps", level_sampling=UniformTimestep(), frame_levels=True)
SAMPLER = PNDM(grid=TimestepGrid(spacing="leading", offset=1))
PICTURE, POSES = "reference_picture", "control"
DROPOUT = tuple(Dropout(names=names, probability=0.05) for names in ((PICTURE,), (POSES,), (PICTURE, POSES)))
DECODER = ("^/decoder/",)  # what of the autoencoder is tuned to a person, by squared errors
SQUARED = AutoencoderLoss(reconstruction="l2", kl_weight=0.0, perceptual_weight=0.0)
TERMS = GuidanceTerm(name=PICTURE, scale=8.0), GuidanceTerm(name=POSES, scale=3.0)


def network(unet: LatentUNet, adapter: PictureAdapter) -> LatentNetwork:
    """An image U-Net that sees a window of five poses along the channels, of two each, and a picture as tokens in the
    place of text."""
    poses = Input(name=POSES, width=3, enters="channels", window=5, channels=2)
    return LatentNetwork(unet=unet, timesteps=BETAS, picture_adapter=adapter,
                         conditions=(Input(name="image_prompt", width=adapter.width), poses))
