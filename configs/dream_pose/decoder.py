"""DreamPose, second phase: the decoder of Stable Diffusion's autoencoder tuned to one person.

Citation: Karras et al. 2023, arXiv 2304.06025; the authors' code (johannakarras/DreamPose): 1,500 steps of 16 frames at
          rate 5e-5, squared errors alone; the encoder stays, so that latents do too. Ours: no averaged weights.
Hardware: one A100; about 20 minutes.
Expected: as dream_pose/frames. Not trained by us.
Run:      vdm-jax train dream_pose/decoder     (weights/sd_vae.safetensors by vdm-jax convert; data/person; docs/how-to/
          control.md says how a run is sampled with it)
"""

from dataclasses import replace

from vdm_jax.networks.autoencoders.config import AUTOENCODER_F8
from vdm_jax.stages.autoencoding import AutoencoderExperiment, AutoencoderStage, AutoencoderTraining
from vdm_jax.stages.stage import VideoSpec
from vdm_jax_configs.dream_pose import _stage
from vdm_jax_configs.dream_pose.subject import DATA


def get_config() -> AutoencoderExperiment:
    """The decoder of 49.5M parameters is trained."""
    training = AutoencoderTraining(
        loss=_stage.SQUARED, steps=1500, batch_size=16, learning_rate=5e-5, b1=0.9, b2=0.999, weight_decay=0.01,
        clip_norm=1.0, ema_decay=0.0, sample_every=0, validate_every=0, random_starts=True, trainable=_stage.DECODER,
        init_from="weights/sd_vae.safetensors")
    stage = AutoencoderStage(name="autoencoder", video=VideoSpec(frames=1, height=640, width=512, fps=30),
                             network=AUTOENCODER_F8, training=training)
    data = replace(DATA, frames=1, references=None, image_prompts=None, controls=None)
    return AutoencoderExperiment(name="dream_pose_decoder", stages=(stage,), data=data, validation_split="train")
