"""Configs of networks: what cannot be is refused when it is written down, and the reduction follows from the levels."""

from __future__ import annotations

import dataclasses

import pytest

from tests.refusals import refused
from vdm_jax.networks.config import CrossAttention, FeedForward, Level, SelfAttention, TemporalConvolution, UNet

PLAIN = UNet(levels=(Level(channels=8, blocks=1),), embedding_channels=16, groups=4)


def test_the_reduction_is_the_patch_and_all_strides_but_the_last():
    levels = tuple(Level(channels=8, stride=stride) for stride in ((1, 2), (2, 2), (5, 5)))
    assert UNet(levels=levels, patch=3).reduction == (6, 12)
    assert PLAIN.reduction == (1, 1)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: SelfAttention(head_dim=0), ("SelfAttention.head_dim", "=0", ">= 1")),
    (lambda: CrossAttention(head_dim=-4), ("CrossAttention.head_dim", "=-4", ">= 1")),
    (lambda: TemporalConvolution(kernel=4), ("TemporalConvolution.kernel", "=4")),
    (lambda: dataclasses.replace(PLAIN, temporal_kernel=2),
     ("UNet.temporal_kernel", "=2")),
    (lambda: FeedForward(expansion=0), ("FeedForward.expansion", "=0", ">= 1")),
    (lambda: Level(channels=8, dropout=1.0), ("Level.dropout", "=1.0", ">= 0", "< 1")),
    (lambda: Level(channels=0), ("Level.channels", "=0", ">= 1")),
    (lambda: Level(channels=48, mixers=(CrossAttention(head_dim=32),)),
     ("CrossAttention.head_dim", "=32", "Level.channels=48")),
    (lambda: dataclasses.replace(PLAIN, position_period=-1.0),
     ("UNet.position_period", "=-1.0", ">= 0")),
    (lambda: dataclasses.replace(PLAIN, position_axes=("column", "row")),
     ("UNet.position_axes", "=('column', 'row')", "'frame'")),
    (lambda: dataclasses.replace(PLAIN, residual=True),
     ("UNet.residual", "low_resolution=False", "low_resolution=True")),
    (lambda: UNet(levels=()), ("UNet.levels", "=()")),
    (lambda: dataclasses.replace(PLAIN, patch=0), ("UNet.patch", "=0", ">= 1")),
    (lambda: dataclasses.replace(PLAIN, middle=(CrossAttention(head_dim=4),)),
     ("UNet.text", "=None", "CrossAttention", "WordEncoder", "EmbeddedText")),
    (lambda: dataclasses.replace(PLAIN, middle=(SelfAttention(head_dim=3),)),
     ("UNet.middle", "head_dim=3", "channels=8")),
])
def test_configs_that_cannot_be(make, message):
    with refused(*message):
        make()
