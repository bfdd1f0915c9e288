"""DreamPose in miniature, on the clips of the folder `videos`, with `poses`, `pictures` and `vectors` next to it, for
tests and for trying it out. The weights of its U-Net and autoencoder are files in the current folder."""

from dataclasses import replace

from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.networks.picture_adapter import PictureAdapter
from vdm_jax.stages.autoencoding import AutoencoderExperiment, AutoencoderStage, AutoencoderTraining
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import InitFrom, InitFromFile, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax_configs.dream_pose import _stage

UNET = LatentUNet(widths=(8,), blocks=1, attention=(True,), heads=(2,), only_cross_attention=(False,), token_channels=6,
                  groups=4)
ADAPTER = PictureAdapter(tokens=5, width=6, positions=16)
DATA = VideoFolder(path="videos", references="pictures", image_prompts="vectors", controls="poses", frames=3, height=16,
                   width=16, fractions=(0.8, 0.2, 0.0), cache="cache", clips="one")


def experiment(name: str, start: InitFrom | InitFromFile, autoencoder: Autoencoder, steps: int) -> Experiment:
    """One of the two phases of the U-Net and its adapter."""
    training = Training(steps=steps, batch_size=8, learning_rate=1e-2, warmup_steps=2, ema_decay=0.0, text_dropout=0.0,
                        dropout=_stage.DROPOUT, log_every=1, checkpoint_every=steps, sample_every=0, validate_every=0,
                        random_starts=True, init_from=start)
    stage = Stage(
        name="base", video=VideoSpec(frames=3, height=16, width=16, fps=8), process=_stage.PROCESS,
        latent=Latent(autoencoder=autoencoder, weights="autoencoder.safetensors"),
        network=_stage.network(replace(UNET, in_channels=14), ADAPTER), training=training,
        sampling=Sampling(sampler=_stage.SAMPLER, steps=2, terms=_stage.TERMS, threshold=None, shared_noise=True,
                          batch_size=1))
    return Experiment(name=name, stages=(stage,), data=DATA)


def frames(autoencoder: Autoencoder, steps: int = 60) -> Experiment:
    """All persons."""
    return experiment("tiny_dream_frames", InitFromFile(path="unet.safetensors"), autoencoder, steps)


def subject(autoencoder: Autoencoder, run: str, steps: int = 4) -> Experiment:
    """One of them."""
    return experiment("tiny_dream_subject", InitFrom(stage="base", run=run), autoencoder, steps)


def decoder(autoencoder: Autoencoder, steps: int = 30) -> AutoencoderExperiment:
    """The decoder of the autoencoder."""
    training = AutoencoderTraining(
        loss=_stage.SQUARED, steps=steps, batch_size=8, learning_rate=1e-3, ema_decay=0.0, log_every=1,
        checkpoint_every=steps, sample_every=0, validate_every=0, measured_clips=8, random_starts=True,
        trainable=_stage.DECODER, init_from="autoencoder.safetensors")
    stage = AutoencoderStage(name="autoencoder", video=VideoSpec(frames=1, height=16, width=16, fps=8),
                             network=autoencoder, training=training)
    data = replace(DATA, frames=1, references=None, image_prompts=None, controls=None)
    return AutoencoderExperiment(name="tiny_dream_decoder", stages=(stage,), data=data)
