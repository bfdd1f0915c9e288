"""Choices by type end with a refusal: a new member of a union that one of them forgets is named, not taken for
another."""

import dataclasses
import pickle
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.data.captions import read_text
from vdm_jax.data.opening import open_source
from vdm_jax.errors import UserError, field_of
from vdm_jax.generation.one_stage import stage_denoiser
from vdm_jax.networks.config import Level, UNet
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.mixers import Mixers
from vdm_jax.networks.text import TextConditioner
from vdm_jax.stages.options import Sampling
from vdm_jax.weights import model_kinds

NETWORK = UNet(levels=(Level(channels=8, blocks=1),))


@dataclasses.dataclass(frozen=True)
class Strange:
    """A kind that nothing knows."""

    def parts(self, split):
        return ()


def mixed():
    return Mixers(NETWORK, (Strange(),)).init(jax.random.key(0), jnp.zeros((1, 1, 2, 2, 4)), None, 0)


def thresholded():
    sampling = Sampling(guidance=1.0)
    object.__setattr__(sampling, "threshold", Strange())  # a config of its own would refuse it
    stage = SimpleNamespace(network=NETWORK, process=None, takes_weight=False)
    return stage_denoiser(stage, {}, Conditioning(), sampling, np.zeros(1))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: open_source(Strange(), "train"), "a data set of kind Strange is unknown; permitted: CaptionedDigits, "),
    (lambda: network_module(Strange()), "a network of kind Strange is unknown; permitted: UNet, LatentNetwork"),
    (lambda: model_kinds.module(Strange()), "a model of kind Strange is unknown; permitted: Autoencoder, Causal"),
    (lambda: model_kinds.names(Strange()), "a model of kind Strange is unknown"),
    (lambda: model_kinds.shapes(Strange()), "a model of kind Strange is unknown"),
    (lambda: TextConditioner(Strange(), 8).init(jax.random.key(0), Conditioning(text_mask=jnp.ones((1, 1, 2), bool))),
     "texts of kind Strange is unknown; permitted: WordEncoder, EmbeddedText"),
    (mixed, "a mixer of kind Strange is unknown; permitted: SelfAttention, CrossAttention, LinearAttention, "),
    (thresholded, "Sampling.threshold of kind Strange is unknown; permitted: StaticThreshold, DynamicThreshold"),
])
def test_a_kind_that_is_forgotten_is_named(call, message):
    with pytest.raises(UserError) as error:
        call()
    assert str(error.value).startswith(message)
    assert error.value.code == "kind"


@pytest.mark.parametrize(("message", "field"), [
    ("UNet.levels=() is not valid", "UNet.levels"), ("Level.stride[1]=0 is not valid", "Level.stride"),
    ("Windows(frames=4, overlap=4) is not valid", "Windows"),
    ("LatentUNet: temporal=True, temporal_conv=None", "LatentUNet"),
    ("Stage 'base': network.text=None with it", "Stage.network.text"), ("--fps=0 is not valid", "--fps"),
    ("rows=(3, 1); permitted: ascending", "rows"), ("a clip of 3 frames", None), ("movie.mp4 is damaged", None),
    ("Movie.mp4: no frames", None), ("UNet has no levels", None)])
def test_a_message_begins_with_the_path_of_its_field(message, field):
    assert field_of(message) == field
    assert field is None or UserError(message).code == field


def test_errors_of_no_field_say_who_refuses_and_keep_their_code_between_processes():
    with pytest.raises(UserError) as error:
        read_text(Path("none.csv"), "a table")
    assert error.value.code == "captions.read_text"
    assert pickle.loads(pickle.dumps(error.value)).code == "captions.read_text"
    assert UserError("a clip of 3 frames", "clip.frames").code == "clip.frames"
