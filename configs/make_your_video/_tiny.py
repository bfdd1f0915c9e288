"""Make-Your-Video in miniature, on the clips of the folder `videos`, with `depth` and the embeddings `texts` next to
it, for tests and for trying it out. The weights of its image U-Net and autoencoder are files in the current folder."""

from dataclasses import replace

from vdm_jax.attention.patterns import TemporalCausal
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.latent_frames import TemporalConv
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import InitFrom, InitFromFile, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax_configs.make_your_video import _stage

TEXT = LatentUNet(widths=(8,), blocks=1, attention=(True,), heads=(2,), only_cross_attention=(False,), token_channels=6,
                  groups=4, use_linear_projection=True)
IMAGE = replace(TEXT, in_channels=5)
VIDEO = replace(IMAGE, temporal_conv=TemporalConv(spatial=True, stem=False, max_relative_position=3),
                temporal_pattern=TemporalCausal(window=3))
DATA = VideoFolder(path="videos", captions="captions.csv", controls="depth", height=16, width=16,
                   fractions=(0.8, 0.2, 0.0), cache="cache", clips="one")


def experiment(name: str, unet: LatentUNet, training: Training, frames: int, autoencoder: Autoencoder) -> Experiment:
    """One of the two stages."""
    stage = Stage(
        name="base", video=VideoSpec(frames=frames, height=16, width=16, fps=8), process=_stage.PROCESS,
        latent=Latent(autoencoder=autoencoder, weights="autoencoder.safetensors"), network=_stage.network(unet),
        training=replace(training, batch_size=8, warmup_steps=2, ema_decay=0.0, text_dropout=0.1, log_every=1,
                         checkpoint_every=training.steps, sample_every=0, validate_every=0, random_starts=True),
        sampling=Sampling(sampler=_stage.SAMPLER, steps=2, guidance=1.0, threshold=None, batch_size=1))
    return Experiment(name=name, stages=(stage,),
                      data=WithEmbeddings(data=replace(DATA, frames=frames), path="texts", length=2))


def images(autoencoder: Autoencoder, steps: int = 60) -> Experiment:
    """The image network, which learns to see depth."""
    training = Training(steps=steps, learning_rate=1e-2, init_from=InitFromFile(path="unet.safetensors"))
    return experiment("tiny_depth_images", IMAGE, training, 1, autoencoder)


def videos(autoencoder: Autoencoder, run: str, steps: int = 60) -> Experiment:
    """Temporal layers, on clips of three frames."""
    training = Training(steps=steps, learning_rate=1e-2, trainable=_stage.OVER_FRAMES,
                        init_from=InitFrom(stage="base", run=run))
    return experiment("tiny_depth_videos", VIDEO, training, 3, autoencoder)
