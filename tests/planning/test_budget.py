"""Sizes that no tracing should meet are refused by their numbers alone."""

import dataclasses
import time
from pathlib import Path

import pytest

from tests.refusals import refused
from vdm_jax.attention.patterns import Full, Spatial, Temporal
from vdm_jax.commands.configs import config_names, load_config
from vdm_jax.planning.before import check_before
from vdm_jax.planning.budget import FRAMES, TOKENS, check_budget
from vdm_jax.stages.stage import Stage

TINY = load_config(str(Path(__file__).parents[1] / "commands" / "tiny.py"))


def with_clips(pattern, frames, side):
    """The tiny cascade's first stage with another pattern and clips of this size, one in a batch."""
    replace, stage = dataclasses.replace, TINY.stages[0]
    level = stage.network.levels[0]
    attention = replace(level.mixers[0], pattern=pattern, head_dim=8)
    network = replace(stage.network, levels=(replace(level, mixers=(attention, level.mixers[1])),))
    stage = replace(stage, video=replace(stage.video, frames=frames, height=side, width=side), network=network,
                    training=replace(stage.training, batch_size=1))
    return replace(TINY, stages=(stage,), data=replace(TINY.data, frames=frames))


@pytest.mark.parametrize(("pattern", "frames", "side", "message"), [
    (Temporal(), FRAMES + 1, 8, ("budget._check_frames", "4097")),
    (Spatial(), 2, 8192, ("budget._check_tokens", "4194304")), (Full(), 1024, 256,
     ("budget._check_tokens", "4194304"))])
def test_tables_that_grow_with_a_square_are_refused_before_they_are_made(monkeypatch, pattern, frames, side, message):
    monkeypatch.setattr("vdm_jax.planning.budget.machine_memory", lambda: 2**50)
    began = time.process_time()
    with refused(*message) as error:
        check_budget(with_clips(pattern, frames, side), ["base"])
    assert "permitted: at most" in str(error.value)
    assert time.process_time() - began < 1


def test_long_clips_are_planned_in_seconds():
    experiment = with_clips(Temporal(), FRAMES // 2, 8)
    began = time.process_time()
    check_budget(experiment, ["base"])
    check_before(experiment, experiment.stages[0])
    assert time.process_time() - began < 5  # half a second by itself


def test_latent_networks_are_counted_by_their_latents():
    experiment = load_config("modelscope/text_to_video")
    stage = experiment.stages[0]
    assert max(stage.network.attended(*stage.shape[:3])) == 32 * 32
    large = dataclasses.replace(stage, video=dataclasses.replace(stage.video, height=2**14, width=2**14))
    with refused("budget._check_tokens", "4194304"):
        check_budget(dataclasses.replace(experiment, stages=(large,)), [large.name])


def test_shipped_configs_are_far_below_the_bounds():
    stages = [stage for name in config_names() for stage in load_config(name).stages if isinstance(stage, Stage)]
    assert len(stages) > 50
    assert max(stage.video.frames for stage in stages) < FRAMES / 4
    assert max(tokens for stage in stages for tokens in stage.network.attended(*stage.shape[:3])) < TOKENS / 16
