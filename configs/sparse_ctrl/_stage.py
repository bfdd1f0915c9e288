"""SparseCtrl on AnimateDiff, for pictures and for sketches of single frames."""

from vdm_jax.conditions.inputs import Input
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.diffusion.grids import TimestepGrid
from vdm_jax.diffusion.levels import UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import LinearBetaSchedule
from vdm_jax.networks.autoencoders.config import AUTOENCODER_F8
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LATENT_UNET_ANIMATEDIFF_V3
from vdm_jax.networks.sparse_control import SparseControlNet
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import InitFrom, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec


def experiment(name: str, condition: str, net: SparseControlNet, controls: str | None = None) -> Experiment:
    """The branch next to AnimateDiff, which stays as it is. `controls` is the folder of the maps."""
    betas = LinearBetaSchedule(beta_start=0.00085, beta_end=0.012)
    network = LatentNetwork(
        unet=LATENT_UNET_ANIMATEDIFF_V3, timesteps=betas, text=EmbeddedText(width=768),
        conditions=(Input(name=condition, width=net.hint_channels),), control_nets=(net,))
    stage = Stage(
        name="base", video=VideoSpec(frames=16, height=256, width=256, fps=8), network=network,
        process=Process(schedule=betas, prediction="eps", level_sampling=UniformTimestep()),
        latent=Latent(autoencoder=AUTOENCODER_F8, weights="weights/sd_vae.safetensors", encode_frames=1),
        training=Training(steps=100_000, batch_size=64, learning_rate=1e-4, text_dropout=0.1, ema_decay=0.0,
                          random_starts=True, trainable=("^/control_net_",),
                          init_from=InitFrom(stage="video", run="animatediff")),
        sampling=Sampling(sampler=DDIM(grid=TimestepGrid(spacing="leading", offset=1)), steps=25, guidance=7.0,
                          threshold=None))
    videos = VideoFolder(path="data/webvid", captions="data/webvid/captions.csv", controls=controls, frames=16,
                         height=256, width=256, frame_stride=4, clips="one")
    return Experiment(name=name, stages=(stage,), data=WithEmbeddings(data=videos, path="data/clip_l", length=77))
