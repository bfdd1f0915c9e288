"""A SparseCtrl on the tiny AnimateDiff of the folder `motion`: it learns to show given frames of the captioned clips of
the folder `videos`, or the maps in `maps`. The weights of its autoencoder are `autoencoder.safetensors`."""

import dataclasses

from vdm_jax.conditions.inputs import Input
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.generation.released.models import read_released
from vdm_jax.networks.sparse_control import sparse_control_of
from vdm_jax.stages.options import InitFrom, Sampling, Training
from vdm_jax.stages.stage import Experiment, VideoSpec


def experiment(condition: str, controls: str | None = None, **options: object) -> Experiment:
    """Of the branch that sees this condition; `options` are those of `sparse_control_of`."""
    base, = read_released("motion").stages
    net = sparse_control_of(base.network.unet, **options)
    stage = dataclasses.replace(
        base, name="base", video=VideoSpec(frames=4, height=16, width=16, fps=8),
        latent=dataclasses.replace(base.latent, weights="autoencoder.safetensors"),
        network=dataclasses.replace(base.network, conditions=(Input(name=condition, width=net.hint_channels),),
                                    control_nets=(net,)),
        training=Training(steps=30, batch_size=8, learning_rate=1e-2, warmup_steps=1, ema_decay=0.0, log_every=1,
                          checkpoint_every=30, sample_every=0, validate_every=0, trainable=("^/control_net_",),
                          init_from=InitFrom(stage="video", run="motion")),
        sampling=Sampling(steps=2, batch_size=1, threshold=None, guidance=1.0))
    data = VideoFolder(path="videos", captions="captions.csv", controls=controls, frames=4, height=16, width=16,
                       fractions=(0.8, 0.2, 0.0), cache="cache")
    return Experiment(name="tiny_sparse", stages=(stage,), data=WithEmbeddings(data=data, path="words", length=6))


def get_config() -> Experiment:
    return experiment("sparse_frames")
