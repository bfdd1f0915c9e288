"""A folder of your own videos, without captions: 16 frames of 32x32 from noise, then 16 frames of 64x64.

Citation: factorised space-time attention of VDM (Ho et al. 2022, arXiv 2204.03458), section 3; spatial super-resolution
          with noise-conditioning augmentation of Imagen Video (Ho et al. 2022, arXiv 2210.02303), section 2.
Hardware: one GPU.
Expected: 2.18 and 3.44 TFLOP per step, 6.0 and 9.5 GiB (vdm-jax compile); quality not measured. Not trained by us.
Run:      vdm-jax prepare ~/videos --out data/my_videos --fps 8
          vdm-jax train my_videos
"""

from vdm_jax.attention.patterns import Spatial, Temporal
from vdm_jax.data.array_record import PreparedClips
from vdm_jax.diffusion.augmentation import NoiseAugmentation
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.networks.config import Level, SelfAttention, TemporalConvolution, UNet
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec

FPS = 8.0  # of the prepared clips; only the speed at which results are shown depends on it


def training(steps: int) -> Training:
    """What both stages share."""
    return Training(steps=steps, batch_size=16, learning_rate=2e-4, warmup_steps=1000, ema_decay=0.9999,
                    checkpoint_every=1000, sample_every=2500, validate_every=2500)


def base() -> Stage:
    """The whole clip at a quarter of its pixels."""
    space_and_time = (SelfAttention(pattern=Spatial()), SelfAttention(pattern=Temporal()))
    network = UNet(
        levels=(Level(channels=96, blocks=2, mixers=(SelfAttention(pattern=Temporal()),)),
                Level(channels=192, blocks=2, mixers=space_and_time),
                Level(channels=384, blocks=2, mixers=space_and_time)),
        middle=space_and_time, patch=2)
    return Stage(
        name="base", video=VideoSpec(frames=16, height=32, width=32, fps=FPS), network=network,
        process=Process(prediction="v"), training=training(100_000),
        sampling=Sampling(sampler=DDIM(eta=1.0), steps=100))


def spatial() -> Stage:
    """64x64 pixels from 32x32."""
    mixers = (TemporalConvolution(),)
    network = UNet(levels=(Level(channels=64, blocks=2, mixers=mixers), Level(channels=128, blocks=2, mixers=mixers),
                           Level(channels=256, blocks=2, mixers=mixers)),
                   patch=2, low_resolution=True)
    return Stage(
        name="spatial", video=VideoSpec(frames=16, height=64, width=64, fps=FPS), network=network,
        source=LowResolution(frames=16, height=32, width=32, augmentation=NoiseAugmentation()),
        process=Process(prediction="v"), training=training(50_000), sampling=Sampling(sampler=DDIM(), steps=30))


def get_config() -> Experiment:
    """Both stages on clips that `vdm-jax prepare` wrote."""
    return Experiment(name="my_videos", stages=(base(), spatial()), data=PreparedClips(path="data/my_videos"))
