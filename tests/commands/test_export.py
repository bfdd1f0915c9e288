"""The model card that `vdm-jax export` writes next to the weights."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import vdm_jax
from tests.commands.conftest import TINY
from vdm_jax.commands.configs import load_config
from vdm_jax.commands.main import main
from vdm_jax.configuration import digest
from vdm_jax.evaluation.run_metrics import RunMetrics
from vdm_jax.generation.generator import Generator
from vdm_jax.metrics.scores import Score
from vdm_jax.runs.directory import export, read_config
from vdm_jax.stages.parameters import initial_params

EVALUATION = {"scores": {"generated": {"whole": 0.25, "colour": 0.75}}, "protocol": {"clips": 48, "split": "test"}}


@pytest.fixture
def weights():
    """A folder of weights at `run`, of a stage that was never trained; its parameters' number."""
    experiment = load_config(TINY)
    shapes = jax.eval_shape(lambda key: initial_params(experiment.stages[0], key), jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    export(Generator(experiment, {"base": params}, jax.devices()[:1]), Path("run"))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_the_card_says_what_the_weights_are(weights, capfd):
    metrics = RunMetrics(scores=(Score(metric="motion", value=1.5, better="as real", conditions={"seed": 3}),), real=(),
                         settings={})
    Path("run/evaluation.json").write_text(json.dumps(EVALUATION))
    Path("run/metrics.json").write_text(json.dumps(metrics.to_dict()))
    assert main(["export", "run", "my out", "--licence", "CC-BY-4.0"]) == 0
    card = Path("my out/README.md").read_text()
    assert "my out/README.md" in capfd.readouterr().out
    assert card.startswith("# tiny\n") and "## Licence\n\nCC-BY-4.0\n" in card
    assert f"| base | 4x8x8 | UNet | {weights:,} | not recorded | 8 |" in card and "| spatial |" not in card
    assert "CaptionedDigits(" in card and "train_clips=16" in card
    assert "| generated | nan | 0.75 | nan | nan | 0.25 |" in card and "clips 48, split test" in card
    assert "| motion | 1.5 |" in card and "- motion: seed 3" in card
    assert "vdm-jax sample 'my out' \"a caption\" --out video.mp4" in card
    assert f"vdm_jax {vdm_jax.__version__}" in card and f"jax {jax.__version__}" in card
    assert f"`{digest(read_config(Path('my out')))}`" in card


def test_the_card_invents_neither_licence_nor_scores(weights):
    assert main(["export", "run", "out"]) == 0
    card = Path("out/README.md").read_text()
    assert "## Licence\n\nNot stated.\n" in card and "## Scores\n\nNone on record.\n" in card


@pytest.mark.parametrize("record", ["{", "[]", '{"scores": 3}', '{"scores": {"generated": {"whole": "high"}}}'])
def test_a_damaged_record_is_named_before_anything_is_written(record, weights, fails):
    Path("run/evaluation.json").write_text(record)
    assert "run/evaluation.json" in fails("export", "run", "out")
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["", " ", "two\nlines"])
def test_a_licence_is_a_name_on_one_line(name, fails):
    assert "permitted: a name on one line" in fails("export", "none", "out", "--licence", name)
