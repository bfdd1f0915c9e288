"""What the models of CogVideoX share."""

import dataclasses

from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.levels import UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.scheduler_steps import SchedulerSteps
from vdm_jax.networks.autoencoders.piecewise import PiecewiseAutoencoder
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec


def experiment(name: str, network: VideoTransformer, scale: float) -> Experiment:
    """49 frames of 480x720 at 8 per second; `scale` is that of the latents. Training is the authors' finetuning, with
    the steps and the batch ours.

    Released weights see 226 tokens of each text, those after its end as T5 makes them of padding. `vdm-jax embed` with
    the folder of a released CogVideoX as encoder writes all of them; of another folder with T5, a text is cut where it
    ends and followed by zeros, which those weights were not trained with.
    """
    stage = Stage(
        name="base", video=VideoSpec(frames=49, height=480, width=720, fps=8),
        network=dataclasses.replace(network, dtype="bfloat16", remat="full"),
        latent=Latent(autoencoder=PiecewiseAutoencoder(scale=scale), weights="weights/cogvideox_vae.safetensors"),
        process=Process(schedule=network.timesteps, prediction="v", level_sampling=UniformTimestep()),
        training=Training(steps=10_000, batch_size=64, learning_rate=1e-5, b2=0.95, clip_norm=0.1, text_dropout=0.1,
                          ema_decay=0.9999, sample_every=0),
        sampling=Sampling(sampler=DDIM(), scheduler=SchedulerSteps(timestep_spacing="trailing"), steps=50, guidance=5.0,
                          threshold=None, batch_size=1))
    return Experiment(name=name, stages=(stage,), data=WithEmbeddings(
        data=PreparedClips(path="data/clips"), path="data/t5_v11_xxl", length=226, empty="encoded"))
