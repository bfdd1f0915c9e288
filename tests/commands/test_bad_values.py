"""Values that no run could have are refused at once, whatever the field, and leave no run directory."""

import dataclasses
import functools
import math
import operator
import random
import time
import typing
from pathlib import Path

import pytest

from tests.refusals import refused
from vdm_jax.commands.benchmark_command import Benchmark
from vdm_jax.commands.compile_command import Compile
from vdm_jax.commands.configs import load_config
from vdm_jax.commands.edit_command import Edit
from vdm_jax.commands.embed_command import Embed
from vdm_jax.commands.evaluate_command import Evaluate
from vdm_jax.commands.generate_command import Generate
from vdm_jax.commands.measure_command import Measure
from vdm_jax.commands.outputs import check_file, check_folder
from vdm_jax.commands.prepare_command import Prepare
from vdm_jax.commands.sample_command import Sample
from vdm_jax.commands.train_command import Train, check_memory
from vdm_jax.configuration import Range, from_data, from_json, to_data, to_json
from vdm_jax.data.pipeline import Pipeline
from vdm_jax.errors import UserError
from vdm_jax.stages.autoencoding import AutoencoderExperiment, AutoencoderTraining
from vdm_jax.stages.stage import Experiment

TINY = str(Path(__file__).parent / "tiny.py")
BAD = (math.nan, math.inf, -math.inf, 1e30, 10**23, "a\x00b")
LARGE = (1000, 2**16, 10**6, 10**9)
OPTIONS = (Benchmark, Compile, Edit, Embed, Evaluate, Generate, Measure, Prepare, Sample, Train)
VALUES = (*BAD, *LARGE, -1, 0, 10**9, 2**32, "", "(", "é")


def places(data, path=()):
    """The paths of all plain fields of a config as data."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))
        elif key not in ("kind", "name"):
            yield (*path, key)


def test_every_number_of_a_config_has_a_range():
    """A new field of no stated range is found here."""
    bare, seen, left = set(), set(), [Experiment, AutoencoderExperiment, Pipeline, *OPTIONS]
    while left:
        hint = left.pop()
        if typing.get_origin(hint) is not None:
            left += [part for part in typing.get_args(hint) if not isinstance(part, Range | str)]
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint not in seen:
            seen.add(hint)
            hints = typing.get_type_hints(hint, include_extras=True)
            for field in dataclasses.fields(hint):
                left.append(hints[field.name])
                if without_range(hints[field.name]):
                    bare.add(f"{hint.__name__}.{field.name}")
    assert len(seen) > 90
    assert not bare


def without_range(hint):
    """Whether a hint has a number outside `Annotated[..., Range(...)]`."""
    if any(isinstance(extra, Range) for extra in getattr(hint, "__metadata__", ())):
        return False
    return hint in (int, float) or any(map(without_range, typing.get_args(hint)))


def test_random_values_are_refused_or_made_into_a_config_that_comes_back():
    experiment, draw = load_config(TINY), random.Random(0)
    fields = list(places(to_data(experiment)))
    refused = unfit = 0
    for _ in range(150):
        began = time.process_time()
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
        try:
            if value in LARGE:  # of the stage that has it
                number = path[1] if path[:1] == ["stages"] else 0
                check_memory(changed, [changed.stages[number].name], Path("run"), None)
        except UserError as error:
            assert "permitted" in str(error)
            unfit += 1
        assert time.process_time() - began < 20, (path, last, value)  # computes nothing as large as the value
    assert refused > 125
    assert unfit > 0
    assert not Path("run").exists()


@pytest.mark.parametrize(("flag", "value"), [
    ("--base.training.learning-rate", "nan"), ("--base.training.weight-decay", "nan"),
    ("--base.training.clip-norm", "inf"), ("--base.sampling.guidance", "nan"), ("--base.network.classes", "1000000000"),
    ("--data.frames", "1" + "0" * 23), ("--data.size", "65536"), ("--data.train-clips", "1000000000"),
    ("--base.network.embedding-channels", "1048576"), ("--base.training.images-per-clip", "60000"),
    ("--base.training.accumulation", "3"), ("--mesh.fsdp", "3"),
    ("--base.training.trainable", "nothing"), ("--base.training.trainable", "("),
    ("--seed", "-1"), ("--seed", "4294967296"), ("--data.seed", "4294967296")])
def test_train_refuses_before_a_run_is_made(fails, flag, value):
    message = fails("train", TINY, "--run", "run", flag, value)
    assert "permitted" in message
    assert not Path("run").exists()


@pytest.mark.parametrize(("flags", "part"), [
    (("--base.training.batch-size", "64"),
     "Stage 'base': training.batch_size=64 is larger than the data set; permitted: 1 to 16"),
    (("--base.network.classes", "10"), "takes a class, but the batch has no label"),
    (("--data.frames", "6"), "clips of 6 frames for a stage of 4"),
    (("--base.training.evaluation.every", "1", "--base.training.evaluation.clips", "1000000000"),
     "1000000000 clips to evaluate: "),
    (("--data.frames", "16384", "--base.video.frames", "16384", "--spatial.video.frames", "16384",
      "--spatial.source.frames", "16384", "--base.training.batch-size", "1"),
     "the table of which frame sees which of 16384 frames")])
def test_train_refuses_what_data_and_machine_cannot_serve(fails, monkeypatch, flags, part):
    monkeypatch.setattr("vdm_jax.planning.budget.machine_memory", lambda: 2**36)
    assert part in fails("train", TINY, "--run", "run", *flags)
    assert not Path("run").exists()


def test_patterns_of_autoencoders_are_regular_expressions():
    with refused("options.check_patterns", "AutoencoderTraining.trainable", "'('"):
        AutoencoderTraining(trainable=("(",))


@pytest.mark.parametrize("arguments", [
    ("sample", "none", "a red 3", "--seed", "4294967296"), ("sample", "none", "a red 3", "--guidance", "nan"),
    ("generate", "none", "--height", "0"), ("generate", "none", "--num-frames", "0"),
    ("generate", "none", "--guidance-scale", "nan"), ("evaluate", "none", "--seed", "-1"),
    ("sample", "none", "--steps", "0"), ("sample", "none", "--overlap", "-1"), ("sample", "none", "--labels", "-2"),
    ("generate", "none", "--num-inference-steps", "0"), ("generate", "none", "--motion-bucket-id", "256"),
    ("evaluate", "none", "--count", "1"), ("evaluate", "none", "--steps", "0"),
    ("evaluate", "none", "--augmentation-levels", "nan"), ("measure", "none", "--resamples", "-1"),
    ("measure", "none", "--stride", "0"), ("prepare", "none", "--frames", "0"), ("prepare", "none", "--fps", "inf"),
    ("prepare", "none", "--workers", "0"), ("prepare", "none", "--frame-stride", "0"),
    ("embed", "none", "--encoder", "none", "--batch-size", "0"),
    ("embed", "none", "--encoder", "none", "--length", "0"),
    ("compile", TINY, "--price", "inf"), ("compile", TINY, "--batch", "0"), ("benchmark", "attention", "--batch", "0"),
    ("benchmark", "attention", "--frames", "0"), ("benchmark", "attention", "--seconds", "nan")])
def test_options_of_commands_are_checked_before_anything_is_loaded(fails, arguments):
    assert f"{arguments[-2]}=" in fails(*arguments)


def test_outputs_are_checked_before_the_work():
    Path("folder.png").mkdir()
    Path("file").write_text("")
    for path, part in (("folder.png", "folder"), ("x" * 241 + ".png", "245 bytes"), ("none/x.png", "the folder none"),
                       ("/proc/x.png", "cannot be written"), ("x.txt", "'.txt'")):
        with refused("--out", part):
            check_file(Path(path), (".png",))
    for path in ("file", "file/inner", "/proc/inner/x", "x" * 300):
        with refused("--out" if len(path) < 255 else "outputs.check_folder", "permitted"):
            check_folder(Path(path))
    assert check_folder(Path("new/folder")) is None and not Path("new").exists()
