"""A small KL autoencoder for captioned moving digits: latents of 16x16x4 from frames of 64x64.

Citation: losses and layers of latent diffusion (Rombach et al. 2022, arXiv 2112.10752, appendix G) in miniature. LPIPS
          is left out, since its weights are an extra: --autoencoder.training.loss.perceptual-weight 1 turns it on.
Hardware: any CPU with two cores and 4 GB.
Expected: a run of 800 steps (discriminator from 600 on) on digits of 20 px reached PSNR 24.1 dB, SSIM 0.936 on 128
          validation clips, with latents of scale 0.563 and shift -3.05: shapes and places are right, colours pale. That
          took about five minutes of one core; the 4000 steps below would take about 20. Not trained by us.
Run:      vdm-jax train autoencoder/digits
"""

from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.discriminator import Discriminator
from vdm_jax.stages.autoencoding import AutoencoderExperiment, AutoencoderLoss, AutoencoderStage, AutoencoderTraining
from vdm_jax.stages.stage import VideoSpec

# Shrinks by 4, to 4 channels.
NETWORK = Autoencoder(widths=(8, 16, 32), blocks=1, groups=4, middle_attention=False)


def get_config() -> AutoencoderExperiment:
    """Frames are encoded one by one, so two of a clip are enough to learn from. The discriminator joins for the last
    quarter."""
    loss = AutoencoderLoss(perceptual_weight=0.0, discriminators=(Discriminator(width=8, layers=2),),
                           discriminator_weight=0.1, discriminator_start=3000)
    stage = AutoencoderStage(
        name="autoencoder", video=VideoSpec(frames=2, height=64, width=64, fps=8),
        network=NETWORK,
        training=AutoencoderTraining(
            loss=loss, steps=4000, batch_size=4, learning_rate=2e-3, warmup_steps=50, decay=True, b1=0.9, b2=0.99,
            ema_decay=0.99, log_every=50, checkpoint_every=1000, sample_every=0, validate_every=500,
            measured_clips=128))
    return AutoencoderExperiment(name="autoencoder_digits", stages=(stage,), data=CaptionedDigits(
        train_clips=2000, validation_clips=128, test_clips=16))
