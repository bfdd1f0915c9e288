"""Values that no run could have are refused at once, whatever the field, and leave no run directory."""

import functools
import math
import operator
import random
from pathlib import Path

import pytest

from vdm_jax.cascade.stage import Experiment
from vdm_jax.commands.configs import load_config
from vdm_jax.commands.outputs import check_file, check_folder
from vdm_jax.configuration import from_data, from_json, to_data, to_json
from vdm_jax.errors import UserError

TINY = str(Path(__file__).parent / "tiny.py")
BAD = (math.nan, math.inf, -math.inf, 1e30, 10**23, "a\x00b")
VALUES = (*BAD, -1, 0, 10**9, 2**32, "", "(", "é")


def places(data, path=()):
    """The paths of all plain fields of a config as data."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))
        elif key not in ("kind", "name"):
            yield (*path, key)


def test_random_values_are_refused_or_made_into_a_config_that_comes_back():
    experiment, draw = load_config(TINY), random.Random(0)
    fields = list(places(to_data(experiment)))
    refused = 0
    for _ in range(150):
        data, value = to_data(experiment), draw.choice(VALUES)
        *path, last = draw.choice(fields)
        functools.reduce(operator.getitem, path, data)[last] = value
        try:
            changed = from_data(Experiment, data)
        except UserError:
            refused += 1
            continue
        assert from_json(Experiment, to_json(changed)) == changed, (path, last, value)
        assert value not in BAD, (path, last, value)
    assert refused > 90


@pytest.mark.parametrize(("flag", "value"), [
    ("--base.training.learning-rate", "nan"), ("--base.training.weight-decay", "nan"),
    ("--base.training.clip-norm", "inf"), ("--base.sampling.guidance", "nan"), ("--base.network.classes", "1000000000"),
    ("--data.frames", "1" + "0" * 23), ("--seed", "-1"), ("--seed", "4294967296"), ("--data.seed", "4294967296")])
def test_train_refuses_before_a_run_is_made(fails, flag, value):
    message = fails("train", TINY, "--run", "run", flag, value)
    assert "permitted" in message
    assert not Path("run").exists()


@pytest.mark.parametrize("arguments", [
    ("sample", "none", "a red 3", "--seed", "4294967296"), ("sample", "none", "a red 3", "--guidance", "nan"),
    ("generate", "none", "--height", "0"), ("generate", "none", "--num-frames", "0"),
    ("generate", "none", "--guidance-scale", "nan"), ("evaluate", "none", "--seed", "-1")])
def test_options_of_commands_are_checked_before_anything_is_loaded(fails, arguments):
    assert f"{arguments[-2]}=" in fails(*arguments)


def test_outputs_are_checked_before_the_work():
    Path("folder.png").mkdir()
    Path("file").write_text("")
    for path, part in (("folder.png", "is a folder"), ("x" * 241 + ".png", "bytes"), ("none/x.png", "does not exist"),
                       ("/proc/x.png", "cannot be written"), ("x.txt", "suffix")):
        with pytest.raises(UserError, match=part):
            check_file(Path(path), (".png",))
    for path in ("file", "file/inner", "/proc/inner/x", "x" * 300):
        with pytest.raises(UserError, match="permitted"):
            check_folder(Path(path))
    assert check_folder(Path("new/folder")) is None and not Path("new").exists()
