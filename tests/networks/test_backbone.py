"""The protocol of networks: what the rest of the package reads of one, and no more."""

from __future__ import annotations

import dataclasses
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from vdm_jax.conditions.conditioned import Conditioned, FrameNoise
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.configuration import Size, config
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sampling import sampling_levels
from vdm_jax.generation.one_stage import sample_stage
from vdm_jax.networks import kinds
from vdm_jax.networks.backbone import Backbone
from vdm_jax.networks.config import EmbeddedText, Level, UNet
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LATENT_UNET_LVDM_PREDICTION, LATENT_UNET_SD1, LATENT_UNET_SVD
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.parameters import initial_params
from vdm_jax.stages.stage import Stage, VideoSpec
from vdm_jax.training.step import stage_loss

PIXELS = UNet(levels=(Level(channels=8, blocks=1), Level(channels=8, blocks=1)))
MEMBERS = {name for protocol in (Backbone, Conditioned)
           for name in (*inspect.get_annotations(protocol), *vars(protocol)) if not name.startswith("_")}


@config
class Pointwise(Backbone):
    """A network that has nothing but what the protocol asks for."""

    out_channels: Size = 3
    dtype: str = "float32"
    scalars: tuple[str, ...] = ("fps",)

    @property
    def reduction(self) -> tuple[int, int]:
        return 1, 1


class PointwiseModule(nn.Module):
    config: Pointwise

    @nn.compact
    def __call__(self, z: Array, logsnr: Array, conditioning: Conditioning, *, train: bool = False, images: int = 0):
        level = logsnr + conditioning.scalars["fps"]
        return nn.Dense(self.config.out_channels)(z + 0.1 * level[:, None, None, None, None])


@pytest.mark.parametrize("network", [PIXELS, LatentNetwork(unet=LATENT_UNET_SD1), Pointwise()],
                         ids=lambda network: type(network).__name__)
def test_every_network_has_every_member(network):
    assert isinstance(network, Backbone)
    for name in MEMBERS:
        getattr(network, name)  # or an `AttributeError`


def test_the_protocol_of_a_pixel_and_of_a_latent_network():
    assert PIXELS.reduction == (2, 2) and not PIXELS.first_frame and PIXELS.frame_noise is None and not PIXELS.in_place
    assert [tokens for tokens in PIXELS.attended(4, 8, 8)] == []
    svd = LatentNetwork(unet=LATENT_UNET_SVD, text=EmbeddedText(width=1024), scalars=("fps", "motion", "noise"),
                        first_frame=True, timesteps=None)
    assert svd.prompted and svd.reduction == (1, 1) and svd.scalar_defaults == {"motion": 127.0}
    assert list(svd.attended(14, 8, 8)) == [64, 16, 4]
    assert svd.rematerialised("full").unet.remat == svd.rematerialised("full").remat == "full"
    lvdm = LatentNetwork(unet=LATENT_UNET_LVDM_PREDICTION, frame_conditioning="in_place", frame_noise_steps=250)
    assert lvdm.frame_noise == FrameNoise(250, 100, lvdm.timesteps) and lvdm.in_place and lvdm.conditioning_frames


def test_a_further_network_is_trained_and_sampled_by_its_protocol_alone(monkeypatch):
    """Whatever else the package asked of it would be an `AttributeError`."""
    monkeypatch.setitem(kinds.MODULES, Pointwise, PointwiseModule)
    stage = Stage(name="base", video=VideoSpec(frames=2, height=4, width=4, fps=4.0), network=PIXELS,
                  process=Process(), training=Training(batch_size=2), sampling=Sampling(steps=2))
    object.__setattr__(stage, "network", Pointwise())
    stage.network.check_stage(stage)
    params = initial_params(stage, jax.random.key(0))
    batch = {"video": jnp.full((2, 2, 4, 4, 3), 200, jnp.uint8)}
    loss, gradient = jax.value_and_grad(lambda p: stage_loss(stage, p, batch, jax.random.key(1))[0])(params)
    assert np.isfinite(loss) and all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    levels = np.asarray(sampling_levels(stage.sampling.sampler, stage.process.schedule, 2))
    keys = jax.random.split(jax.random.key(2), 2)
    videos = sample_stage(stage, stage.sampling, params, keys, Conditioning(), levels=levels)
    assert videos.shape == (2, 2, 4, 4, 3)


def test_an_unknown_network_is_named():
    with pytest.raises(Exception, match="a network of kind Unknown is unknown; permitted: UNet, LatentNetwork"):
        kinds.network_module(dataclasses.make_dataclass("Unknown", [])())
