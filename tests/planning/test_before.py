"""Asking whether a stage fits before its first step."""

import dataclasses
import types

import jax
import pytest

from tests.refusals import refused
from vdm_jax.commands import train_command
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.planning import before
from vdm_jax.planning.inputs import device_bytes
from vdm_jax.training.state import abstract_state

MIB = 2**20


def limited(monkeypatch, size):
    monkeypatch.setattr(before, "capacity_of", lambda device: size)


def program(needed):
    """A compiled program that needs so many bytes."""
    stats = types.SimpleNamespace(argument_size_in_bytes=0, output_size_in_bytes=0, alias_size_in_bytes=0,
                                  temp_size_in_bytes=needed, generated_code_size_in_bytes=0, peak_memory_in_bytes=0)
    return types.SimpleNamespace(memory_analysis=lambda: stats)


def test_a_state_that_does_not_fit_is_refused_from_shapes(tiny, monkeypatch):
    stage, mesh = tiny.stages[0], make_mesh(MeshSpec(), jax.devices())
    state = abstract_state(stage, mesh)
    size = device_bytes((state.params, state.opt_state, state.ema, state.params))
    limited(monkeypatch, size - 1)
    with refused("before.check_before", "'base'", "8", "0.00", "GiB", "--mesh", "2", "4", "--no-plan"):
        before.check_before(tiny, stage)
    # The estimate grows by what the backward pass keeps, where that may matter.
    limited(monkeypatch, size + 1000)
    with refused("before.check_before", "--base", "network.remat"):
        before.check_before(tiny, stage)
    monkeypatch.setattr(before, "saved_bytes", None)  # nothing is traced
    for enough in (10**9, None):
        limited(monkeypatch, enough)
        before.check_before(tiny, stage)


def test_teacher_and_target_of_a_distillation_count(tiny, distilled, monkeypatch):
    state = abstract_state(distilled, make_mesh(MeshSpec(), jax.devices()))
    monkeypatch.setattr(before, "_activations", lambda *arguments: 0)
    size = device_bytes((state.params, state.opt_state, state.ema, state.networks, state.params))
    limited(monkeypatch, size)
    before.check_before(tiny, distilled)
    limited(monkeypatch, size - 1)
    with refused("before.check_before", "GiB per device"):
        before.check_before(tiny, distilled)


def test_the_compiled_step_is_judged_by_the_compilers_account(tiny, monkeypatch):
    mesh = make_mesh(MeshSpec(), jax.devices())
    stage = dataclasses.replace(tiny.stages[0], training=dataclasses.replace(tiny.stages[0].training, batch_size=32))
    limited(monkeypatch, 100 * MIB)
    compile_step = before.checked_compile(tiny, stage)
    fits = program(100 * MIB)
    assert compile_step(mesh, lambda: fits) is fits
    with refused("before.checked_compile.compiled", "0.20", "GiB", "0.10", "--base", "training.accumulation",
                 "training.batch", "16"):
        compile_step(mesh, lambda: program(200 * MIB))


def test_a_compiler_that_refuses_is_a_clear_message(tiny, monkeypatch):
    mesh, limit = make_mesh(MeshSpec(), jax.devices()), None
    limited(monkeypatch, limit)

    def raises(message):
        def compile_step():
            raise jax.errors.JaxRuntimeError(message)
        return lambda: before.checked_compile(tiny, tiny.stages[0])(mesh, compile_step)

    with refused("before.checked_compile.compiled", "33.06", "GiB", "15.75"):
        raises("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 33.06G of 15.75G hbm.")()
    with refused("before.checked_compile.compiled"):
        raises("RESOURCE_EXHAUSTED: Ran out of memory")()
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        raises("INTERNAL: a bug")()


def test_only_runs_that_are_not_there_yet_are_estimated(tiny, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(before, "check_before", lambda experiment, stage: asked.append(stage.name))
    train_command.check_memory(tiny, ["base"], tmp_path)
    (tmp_path / "config.json").write_text("{}")
    train_command.check_memory(tiny, ["base"], tmp_path)
    assert asked == ["base"]
