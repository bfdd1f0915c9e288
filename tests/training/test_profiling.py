"""Which steps a trace holds, and what is refused before anything is computed."""

from __future__ import annotations

import pytest

from tests.commands.conftest import TINY
from tests.refusals import refused
from vdm_jax.commands.main import main
from vdm_jax.errors import UserError
from vdm_jax.training.profiling import steps_to_trace


@pytest.mark.parametrize(("text", "start", "steps", "expected"), [
    ("5", 0, 6, range(2, 7)),  # the first step compiles
    ("1", 100, 1000, range(102, 103)),
    ("10:15", 0, 15, range(10, 16)),  # both ends
    ("1:1", 0, 1, range(1, 2)),
    ("11:110", 10, 200, range(11, 111)),
])
def test_steps_by_number_and_by_range(text, start, steps, expected):
    assert steps_to_trace(text, start, steps) == expected


@pytest.mark.parametrize(("text", "start", "permitted"), [
    ("0", 0, "permitted: 1 to 19"), ("20", 0, "permitted: 1 to 19"), ("5", 18, "permitted: 1 to 1"),
    ("1", 19, "permitted: more steps of training, or no --profile"),
    *((text, 0, "permitted: 1 <= FIRST <= LAST <= 20, at most 100 steps") for text in ("0:3", "5:4", "15:21", "21:22")),
    ("10:12", 10, "permitted: 11 <= FIRST <= LAST <= 20"),
    *((text, 0, "permitted: a number of steps, such as 5, or FIRST:LAST") for text in (
        "", "-1", "1.5", "nan", "1:", ":2", "1:2:3", "1e3", "9" * 30, "\u0665", "5\n")),
])
def test_steps_that_a_stage_does_not_run_are_refused_by_name(text, start, permitted):
    with pytest.raises(UserError) as error:
        steps_to_trace(text, start, 20)
    assert str(error.value).startswith("--profile=") and permitted in str(error.value)


def test_a_trace_is_never_longer_than_viewers_can_show():
    for text in ("101", "1:101"):
        with refused("--profile", "100"):
            steps_to_trace(text, 0, 10**6)


def test_bad_steps_are_refused_before_a_run_is_made(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("VDM_JAX_DATA", str(tmp_path / "data"))
    assert main(["train", TINY, "--run", str(tmp_path / "run"), "--profile", "4:9"]) == 2
    assert "stage 'base': --profile=4:9 is not in a training" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
