"""`vdm-jax show` prints a config as the flags that would make it."""

import shlex
from pathlib import Path

import pytest

from vdm_jax.commands.arguments import override
from vdm_jax.commands.configs import load_config
from vdm_jax.commands.main import main
from vdm_jax.commands.show_command import comments, lines_of
from vdm_jax.networks.config import UNet

TINY = str(Path(__file__).parent / "tiny.py")


@pytest.mark.parametrize("config", [TINY, "captioned_digits", "lumiere/cascade"])
def test_the_flags_that_are_shown_are_those_of_train(config):
    experiment = load_config(config)
    flags = [str(line) for line in lines_of(experiment) if line.flag]
    assert len(flags) > 100 and all(flag.startswith("--") for flag in flags)
    assert override(experiment, shlex.split(" ".join(flags)), "vdm-jax train") == experiment


def test_values_meanings_and_the_filter(capsys):
    assert main(["show", TINY, "--filter", "learning_rate"]) == 0
    said = capsys.readouterr().out.splitlines()
    rate = load_config(TINY).stages[0].training.learning_rate
    assert said[0].split() == ["--base.training.learning-rate", str(rate), "#", "peak,", "of", "the", "optimizer"]
    assert all("learning-rate" in line for line in said)
    assert comments(UNet)["groups"] == "of group norm, at most"  # on the line
    assert comments(UNet)["position_axes"].startswith("What of the place is embedded")  # above it
    assert main(["show", TINY, "--filter", "lerning"]) == 2
    assert "permitted: a part of one, such as learning-rate" in capsys.readouterr().err


def test_a_run_is_shown_like_a_config(tmp_path, capsys):
    from vdm_jax.runs.directory import open_run

    open_run(tmp_path / "run", load_config(TINY))
    assert main(["show", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert main(["show", TINY]) == 0
    assert shown == capsys.readouterr().out
    assert main(["show", "nothing"]) == 2
