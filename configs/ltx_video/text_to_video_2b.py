"""LTX-Video 2B: 161 frames of 512x704 in causal latents, each of which is a token: 7,392 tokens.

Citation: HaCohen et al. 2024, arXiv 2501.00103; sizes, noise levels, steps and guidance of the released code, version
          0.9. Ours, as it is not published: all of training, which is one of finetuning.
Hardware: tokens over `context` by columns, heads over `tensor`, weights over `fsdp`: check a mesh with vdm-jax compile.
Expected: not measured. Training goes on from released weights with
          Training(init_from=InitFromFile(path="transformer.safetensors")), a file of vdm-jax convert FOLDER/transformer
          transformer.safetensors. Not trained by us.
Run:      vdm-jax train ltx_video/text_to_video_2b     (weights/ltx_vae.safetensors by vdm-jax convert FOLDER/vae;
          clips made by vdm-jax prepare; T5-v1.1-XXL states of each caption by vdm-jax embed)
"""

import dataclasses

from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.flow_sigmas import DynamicShift, FlowSigmas
from vdm_jax.diffusion.levels import LogitNormalTime
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.scheduler_steps import SchedulerSteps
from vdm_jax.diffusion.schedules import FlowSchedule
from vdm_jax.networks.autoencoders.ltx_config import AUTOENCODER_LTX_090
from vdm_jax.networks.transformer.members import LTX_2B
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec

SHIFT = DynamicShift()  # by tokens, of noise levels in sampling and, at this size, in training


def get_config() -> Experiment:
    """All parameters are trained."""
    network = dataclasses.replace(LTX_2B, dtype="bfloat16", remat="full", sharded_axis="width",
                                  attention_context="ulysses")
    steps = SchedulerSteps(scheduler="FlowMatchEulerDiscreteScheduler", flow=FlowSigmas(dynamic=SHIFT, terminal=0.1))
    stage = Stage(
        name="base", video=VideoSpec(frames=161, height=512, width=704, fps=25), network=network,
        latent=Latent(autoencoder=AUTOENCODER_LTX_090, weights="weights/ltx_vae.safetensors"),
        process=Process(schedule=FlowSchedule(shift=SHIFT.shift(21 * 16 * 22)), prediction="flow",
                        level_sampling=LogitNormalTime()),
        training=Training(steps=10_000, batch_size=64, learning_rate=1e-5, text_dropout=0.1, ema_decay=0.9999,
                          sample_every=0),
        sampling=Sampling(sampler=DDIM(), scheduler=steps, steps=50, guidance=2.0, threshold=None, batch_size=1))
    return Experiment(name="ltx_video_text_to_video_2b", stages=(stage,), data=WithEmbeddings(
        data=PreparedClips(path="data/clips"), path="data/t5_v11_xxl", length=128, empty="encoded"))
