"""A base on which attention patterns are compared: nothing but attention connects places and frames.

Citation: the mixers are those of the survey's figure on attention (spatial, temporal, full, causal, sparse-causal); the
          network around them is ours: convolutions of one position, as the layers of a transformer.
Hardware: one CPU core and 2 GB.
Expected: no published result; what each pattern reaches is in experiments/attention_benchmark/README.md.
          Trained by us.
Run:      vdm-jax train pattern_digits
          python -m experiments.attention_benchmark.which_pattern --preset cpu
"""

from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.config import Level, UNet
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax_configs import captioned_digits as demo


def base() -> Stage:
    """8 frames of 16x16 from a caption, as 4x4 patches of 4x4 pixels: 128 tokens with full attention among them."""
    full, text = demo.FULL, demo.TEXT
    level = Level(channels=128, blocks=1, kernel=1, mixers=(full, text))
    network = UNet(levels=(level,), middle=(full, text, full, text), patch=4, position_period=25.0,
                   embedding_channels=192, text=demo.words())
    return Stage(
        name="base", video=VideoSpec(frames=8, height=16, width=16, fps=4), network=network,
        process=demo.SHAPES_PROCESS,
        training=Training(steps=1600, batch_size=32, learning_rate=1.5e-3, warmup_steps=100, ema_decay=0.998,
                          log_every=100, checkpoint_every=200, sample_every=0, validate_every=0),
        sampling=Sampling(sampler=DDIM(eta=1.0), steps=32, guidance=1.0, batch_size=64))


def get_config() -> Experiment:
    """The base on 20,000 clips of one digit."""
    data = CaptionedDigits(train_clips=20_000, objects=(1, 1))
    return Experiment(name="pattern_digits", stages=(base(),), data=data)
