"""What the models of Wan share."""

import dataclasses

from vdm_jax.conditions.frame_masks import FrameMask
from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.flow_sigmas import FlowSigmas
from vdm_jax.diffusion.levels import LogitNormalTime
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import UniPC
from vdm_jax.diffusion.schedules import FlowSchedule
from vdm_jax.networks.autoencoders.causal_config import AUTOENCODER_WAN21
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec

SHIFT = 5.0  # of noise levels, in training and in sampling


def experiment(
    name: str, network: VideoTransformer, height: int, width: int, shift: float = SHIFT, steps: int = 50,
    image_tokens: str = "",
) -> Experiment:
    """81 frames at 16 per second. Ours, as it is not published: all of training, which is one of finetuning.

    Tokens are split by columns, which divide where frames of latents, of which there are 21, do not, and meet by heads.
    """
    network = dataclasses.replace(network, dtype="bfloat16", remat="full", sharded_axis="width",
                                  attention_context="ulysses")
    stage = Stage(
        name="base", video=VideoSpec(frames=81, height=height, width=width, fps=16), network=network,
        latent=Latent(autoencoder=AUTOENCODER_WAN21, weights="weights/wan_vae.safetensors", encode_frames=16,
                      decode_frames=4),
        process=Process(schedule=FlowSchedule(shift=shift), prediction="flow", level_sampling=LogitNormalTime()),
        training=Training(steps=10_000, batch_size=64, learning_rate=1e-5, weight_decay=1e-3, text_dropout=0.1,
                          ema_decay=0.9999, sample_every=0,
                          masking=(FrameMask(first=1),) if network.conditioning_frames else ()),
        sampling=Sampling(sampler=UniPC(grid=FlowSigmas(grid="original_unipc", shift=shift)), steps=steps, guidance=4.0,
                          threshold=None, batch_size=1))
    clips = PreparedClips(path="data/clips", image_tokens=image_tokens)
    return Experiment(name=name, stages=(stage,), data=WithEmbeddings(
        data=clips, path="data/umt5_xxl", length=512, empty="encoded"))
