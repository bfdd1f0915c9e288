"""Animate Anyone in miniature, on the clips of the folder `videos`, with `poses`, `pictures` and `vectors` next to it,
for tests and for trying it out. The weights of its U-Net and autoencoder are files in the current folder."""

from dataclasses import replace

from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.latent_frames import Motion
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.networks.pose_guider import PoseGuider
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import InitFrom, InitFromFile, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax_configs.animate_anyone import _stage

UNET = LatentUNet(widths=(8, 8), blocks=1, attention=(True, False), heads=(2, 2), only_cross_attention=(False, False),
                  token_channels=6, groups=4)
GUIDER = PoseGuider(features=8, hint_widths=(4, 8))
MOTION = Motion(heads=2, frames=4, groups=4)
DATA = VideoFolder(path="videos", references="pictures", image_prompts="vectors", controls="poses", height=16, width=16,
                   fractions=(0.8, 0.2, 0.0), cache="cache", clips="one")


def experiment(name: str, frames: int, motion: Motion | None, training: Training, autoencoder: Autoencoder
               ) -> Experiment:
    """One of the two stages."""
    stage = Stage(
        name="base", video=VideoSpec(frames=frames, height=16, width=16, fps=8), process=_stage.PROCESS,
        latent=Latent(autoencoder=autoencoder, weights="autoencoder.safetensors"),
        network=_stage.network(UNET, GUIDER, motion),
        training=replace(training, batch_size=8, learning_rate=3e-3, warmup_steps=2, ema_decay=0.5, text_dropout=0.1,
                         log_every=1, checkpoint_every=training.steps, sample_every=0, validate_every=0,
                         random_starts=True),
        sampling=Sampling(sampler=_stage.SAMPLER, steps=2, guidance=1.0, threshold=None, batch_size=4))
    return Experiment(name=name, stages=(stage,), data=replace(DATA, frames=frames))


def images(autoencoder: Autoencoder, steps: int = 40) -> Experiment:
    """The networks of single frames."""
    network = _stage.network(UNET, GUIDER)
    return experiment("tiny_animate_images", 1, None, Training(
        steps=steps, trainable=_stage.of_images(network.unet), init_from=InitFromFile(path="unet.safetensors")),
        autoencoder)


def videos(autoencoder: Autoencoder, run: str, steps: int = 120) -> Experiment:
    """The same with motion modules, which alone are trained."""
    return experiment("tiny_animate_videos", 4, MOTION, Training(
        steps=steps, trainable=_stage.OVER_FRAMES, init_from=InitFrom(stage="base", run=run)), autoencoder)
