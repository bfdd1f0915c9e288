"""What the text-to-video networks of Video LDM share."""

from typing import Any

from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.levels import UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import ScaledLinearBetaSchedule
from vdm_jax.networks.autoencoders.config import AUTOENCODER_F8
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Source, Stage, VideoSpec

BETAS = ScaledLinearBetaSchedule()
# Of the networks of Stable Diffusion: temporal layers, shares and inputs for conditioning frames.
OVER_FRAMES = (r"temporal_residual|/time/|/mix/|/places_|/known(_\d+)?/",)


def experiment(
    name: str, unet: LatentUNet, embeddings: str, video: VideoSpec, steps: int, *, source: Source | None = None,
    network: dict[str, Any] | None = None, training: dict[str, Any] | None = None,
    sampling: dict[str, Any] | None = None,
) -> Experiment:
    """Videos of 320x512, latents of 40x64, of captioned clips (WebVid-10M).

    Not published, and ours: batch, dropped captions, guidance by text, steps of sampling; the share of a layer is the
    sigmoid of a learned number. The paper's learning rate of the driving model is taken for all.
    """
    stage = Stage(
        name="base", video=video, source=source,
        network=LatentNetwork(unet=unet, timesteps=BETAS, text=EmbeddedText(width=unet.token_channels),
                              **(network or {})),
        process=Process(schedule=BETAS, prediction="eps", level_sampling=UniformTimestep()),
        latent=Latent(autoencoder=AUTOENCODER_F8, weights="weights/sd_vae.safetensors", encode_frames=1),
        training=Training(**{"steps": steps, "batch_size": 128, "learning_rate": 1e-4, "text_dropout": 0.1,
                             "ema_decay": 0.9999, **(training or {})}),
        sampling=Sampling(sampler=DDIM(), steps=50, threshold=None, **{"guidance": 6.5, **(sampling or {})}))
    return Experiment(name=name, stages=(stage,), data=WithEmbeddings(
        data=PreparedClips(path="data/clips"), path=embeddings, length=77))
