"""What the LVDM models without text share."""

import dataclasses
from typing import Any

from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.diffusion.grids import TimestepGrid
from vdm_jax.diffusion.levels import UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import ScaledLinearBetaSchedule
from vdm_jax.networks.autoencoders.config import AUTOENCODER_LVDM, LVDM_LATENTS
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec

BETAS = ScaledLinearBetaSchedule(beta_start=0.0015, beta_end=0.0155)  # 1000 timesteps


def experiment(
    name: str, unet: LatentUNet, frames: int, learning_rate: float, *, frames_in: dict[str, Any] | None = None,
    masking: tuple = (), sampling: dict[str, Any] | None = None,
) -> Experiment:
    """Clips of 256x256 in latents of 4 frames x 8 x 8 pixels, as the authors' configs of the Sky data have them.

    Not published, and ours: steps, batch over all devices, decay of the averaged weights, fps.
    """
    network = LatentNetwork(unet=unet, timesteps=BETAS, **(frames_in or {}))
    stage = Stage(
        name="base", video=VideoSpec(frames=frames, height=256, width=256, fps=8), network=network,
        process=Process(schedule=BETAS, prediction="eps", level_sampling=UniformTimestep(), error="absolute"),
        latent=Latent(autoencoder=dataclasses.replace(AUTOENCODER_LVDM, **LVDM_LATENTS["sky"]),
                      weights="runs/lvdm_autoencoder"),
        training=Training(steps=200_000, batch_size=64, learning_rate=learning_rate, text_dropout=0.0,
                          ema_decay=0.9999, masking=masking, random_starts=True),
        sampling=Sampling(sampler=DDIM(grid=TimestepGrid(spacing="leading", offset=1)), steps=50, threshold=None,
                          **(sampling or {})))
    return Experiment(name=name, stages=(stage,), data=VideoFolder(
        path="data/sky", frames=frames, height=256, width=256, clips="one"))
