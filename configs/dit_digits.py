"""A video transformer on captioned digits: DiT's blocks on patches of space and time, text by cross-attention.

Citation: blocks of DiT (Peebles & Xie 2022, arXiv 2212.09748), patches and full attention over space and time of Wan
          (Wan Team 2025, arXiv 2503.20314), flow matching with logit-normal times (Esser et al. 2024, arXiv
          2403.03206).
Hardware: any CPU with two cores and 8 GB.
Expected: not measured. Not trained by us.
Run:      vdm-jax train dit_digits
"""

from vdm_jax.attention.positions import RotaryAxes
from vdm_jax.diffusion.levels import LogitNormalTime
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import FlowSchedule
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.config import WordEncoder
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec


def base() -> Stage:
    """8 frames of 32x32 from a caption: 64 tokens of 2 frames and 8x8 pixels.

    A network with fewer channels than a patch has values predicts the clean video: noise has no low-dimensional
    structure to squeeze through. Where a digit is and where it goes is decided at high noise, where the shift puts more
    of the steps.
    """
    network = VideoTransformer(
        out_channels=3, patch=(2, 8, 8), width=192, heads=6, hidden=768, layers=6,
        rotary=RotaryAxes(dims=(8, 12, 12), bases=(100.0, 100.0, 100.0)), qk_norm="heads",
        text=WordEncoder(length=16, width=64, layers=1, pooling="attention"))
    return Stage(
        name="base", video=VideoSpec(frames=8, height=32, width=32, fps=4), network=network,
        process=Process(schedule=FlowSchedule(shift=3.0), prediction="x", level_sampling=LogitNormalTime()),
        training=Training(steps=2600, batch_size=16, learning_rate=1e-3, warmup_steps=100, decay=True, ema_decay=0.99,
                          log_every=50, checkpoint_every=1000, sample_every=0, validate_every=0),
        sampling=Sampling(sampler=DDIM(), steps=32, guidance=1.0, batch_size=32))


def get_config() -> Experiment:
    """The base on 20,000 clips of one digit."""
    return Experiment(name="dit_digits", stages=(base(),), data=CaptionedDigits(train_clips=20_000, objects=(1, 1)))
