"""MagicVideo in miniature, on the clips of the folder `videos` with the embeddings `texts` next to it, for
tests and for trying it out: key frames, and all three networks, the last of which begins on the pictures of the folder
`pictures`. The weights of its image U-Net and autoencoder are files in the current folder."""

from dataclasses import replace

from vdm_jax.attention.patterns import TemporalCausal
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.data.frame_rates import FrameRates
from vdm_jax.data.image_folder import ImageFolder
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.directed import Directed
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import InitFromFile, Sampling, Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec
from vdm_jax_configs.magic_video import _stage

IMAGE = LatentUNet(widths=(8,), blocks=1, attention=(True,), heads=(2,), only_cross_attention=(False,),
                   token_channels=6, groups=4)
VIDEO = replace(IMAGE, scalars=1, scalar_channels=8, directed=Directed(frames=3), temporal_pattern=TemporalCausal())
DATA = VideoFolder(path="videos", captions="captions.csv", frames=3, height=16, width=16, fractions=(0.8, 0.2, 0.0),
                   cache="cache", clips="one")


def key_frames(autoencoder: Autoencoder, mask: str = "before", steps: int = 60) -> Experiment:
    """All of the network, masked before or after the softmax, at 4 or 8 frames per second."""
    training = Training(steps=steps, batch_size=8, learning_rate=1e-2, warmup_steps=2, ema_decay=0.0, text_dropout=0.1,
                        log_every=1, checkpoint_every=steps, sample_every=0, validate_every=0, random_starts=True,
                        frame_rates=FrameRates(lowest=4.0, highest=8.0, first=(1.0, 1.0), last=(1.0, 1.0)),
                        init_from=InitFromFile(path="unet.safetensors"))
    stage = Stage(
        name="base", video=VideoSpec(frames=3, height=16, width=16, fps=8), process=_stage.PROCESS,
        latent=Latent(autoencoder=autoencoder, weights="autoencoder.safetensors"),
        network=_stage.network(replace(VIDEO, directed=replace(VIDEO.directed, mask=mask))), training=training,
        sampling=Sampling(sampler=_stage.SAMPLER, steps=2, guidance=1.0, threshold=None, batch_size=1))
    return Experiment(name="tiny_key_frames", stages=(stage,), data=WithEmbeddings(data=DATA, path="texts", length=2))


def pictures(steps: int = 60) -> Experiment:
    """Super-resolution of pictures from 16x16 to 32x32, learned from windows of 16x16."""
    stage = Stage(
        name="super_resolution", video=VideoSpec(frames=1, height=32, width=32, fps=1), process=_stage.PIXELS,
        source=LowResolution(frames=1, height=16, width=16),
        network=_stage.super_resolution(8, (1, 2), (1, 1), groups=4),
        training=Training(steps=steps, batch_size=8, learning_rate=1e-2, warmup_steps=2, ema_decay=0.0, log_every=1,
                          checkpoint_every=steps, sample_every=0, validate_every=0, crop=(16, 16)),
        sampling=Sampling(steps=2, batch_size=1))
    return Experiment(name="tiny_pictures", stages=(stage,), data=ImageFolder(
        path="pictures", height=32, width=32, fractions=(0.8, 0.2, 0.0)))


def cascade(autoencoder: Autoencoder, run: str, mask: str = "before", steps: int = 60) -> Experiment:
    """Three key frames, one frame between two of them, all of them enlarged; `run` is that of the pictures."""
    (base,), (enlarge,) = (experiment.stages for experiment in (key_frames(autoencoder, mask, steps), pictures()))
    stages = _stage.cascade(base, enlarge, 2, base.training.frame_rates, run, 10)
    return Experiment(name="tiny_magic_video", stages=stages, data=WithEmbeddings(
        data=replace(DATA, frames=5, height=32, width=32), path="texts", length=2))
