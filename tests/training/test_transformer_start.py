"""How a video transformer begins: as released weights, or as another one of the same layers that sees other frames."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests.networks.conftest import fill
from tests.refusals import refused
from vdm_jax.attention import BlockCausal
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import FlowSchedule
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.networks.latent_unet import LATENT_UNET_SD1
from vdm_jax.networks.transformer.config import wan
from vdm_jax.networks.transformer.network import VideoTransformerModule
from vdm_jax.stages.options import InitFromFile, Training
from vdm_jax.stages.parameters import initial_params
from vdm_jax.stages.stage import Stage, VideoSpec
from vdm_jax.training.init_from import planned, starting_weights
from vdm_jax.weights.pretrained import Pretrained, save_imported
from vdm_jax.weights.transformer_fields import example

WAN = wan(out_channels=3, width=8, heads=2, hidden=12, layers=2, text=EmbeddedText(width=6), level_channels=8)


@pytest.fixture(scope="module")
def params():
    return fill(VideoTransformerModule(WAN), *example(WAN))


def stage_of(network, path):
    return Stage(name="base", video=VideoSpec(frames=4, height=4, width=4), network=network,
                 process=Process(schedule=FlowSchedule(), prediction="flow"),
                 training=Training(init_from=InitFromFile(path=str(path))))


def test_a_causal_network_begins_as_one_of_a_file(params, tmp_path):
    save_imported(tmp_path / "wan.safetensors", Pretrained(WAN, params))
    causal = dataclasses.replace(WAN, patterns=(BlockCausal(block=2),))
    stage = stage_of(causal, tmp_path / "wan.safetensors")
    inflation, source = starting_weights(stage, tmp_path)
    shapes = jax.eval_shape(lambda key: initial_params(stage, key), jax.random.key(0))
    begun = inflation.apply(jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes), source)
    jax.tree.map(np.testing.assert_array_equal, begun, params)
    with refused("VideoTransformer.epsilon", "epsilon=1e-06", "epsilon=1e-05"):
        starting_weights(stage_of(dataclasses.replace(causal, epsilon=1e-5), tmp_path / "wan.safetensors"), tmp_path)


def test_other_layers_and_other_networks_are_refused(params, tmp_path):
    deeper = dataclasses.replace(WAN, layers=3)
    with refused("Training.init_from", "other layers", "blocks/block_0"):
        planned(deeper, jax.eval_shape(lambda: fill(VideoTransformerModule(deeper), *example(deeper))), WAN, params)
    with pytest.raises(Exception, match="two of a kind"):
        planned(WAN, params, LATENT_UNET_SD1, params)
