"""What the two Stable Diffusion models share."""

from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.grids import TimestepGrid
from vdm_jax.diffusion.levels import UniformTimestep
from vdm_jax.diffusion.predictions import Prediction
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import PNDM
from vdm_jax.diffusion.schedules import ScaledLinearBetaSchedule
from vdm_jax.networks.autoencoders.config import AUTOENCODER_F8
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec

BETAS = ScaledLinearBetaSchedule()  # 1000 timesteps, beta from 0.00085 to 0.012


def experiment(
    name: str, unet: LatentUNet, size: int, prediction: Prediction, steps: int, embeddings: str
) -> Experiment:
    """Images as videos of one frame. Batch, learning rate, warm-up and dropped captions are those of the model card of
    v1; decay of the averaged weights and of weights is ours."""
    network = LatentNetwork(unet=unet, timesteps=BETAS, text=EmbeddedText(width=unet.token_channels))
    process = Process(schedule=BETAS, prediction=prediction, level_sampling=UniformTimestep())
    stage = Stage(
        name="base", video=VideoSpec(frames=1, height=size, width=size, fps=1), network=network, process=process,
        latent=Latent(autoencoder=AUTOENCODER_F8, weights="weights/sd_vae.safetensors"),
        training=Training(steps=steps, batch_size=2048, learning_rate=1e-4, warmup_steps=10_000, b2=0.999,
                          weight_decay=0.01, text_dropout=0.1, ema_decay=0.9999),
        # The demo's 50 steps and scale 7.5, which is w = 6.5.
        sampling=Sampling(sampler=PNDM(grid=TimestepGrid(spacing="leading", offset=1)), steps=50, guidance=6.5,
                          threshold=None))
    return Experiment(name=name, stages=(stage,), data=WithEmbeddings(
        data=PreparedClips(path="data/images"), path=embeddings, length=77, empty="encoded"))
