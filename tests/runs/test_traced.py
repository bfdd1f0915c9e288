"""Traces on disk: the next process gets the same shapes and the same videos without tracing a network."""

from __future__ import annotations

import contextlib
import dataclasses
import os

import jax
import numpy as np
import pytest

from vdm_jax.commands.configs import load_config
from vdm_jax.commands.train_command import resolve
from vdm_jax.generation.generator import Generator
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.runs import traced as module
from vdm_jax.runs.traced import Traced, kept_traces
from vdm_jax.stages.parameters import initial_params, network_shapes

CAPTION = "a red 3 moving left"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    found = resolve(load_config("tests/commands/tiny.py"), tmp_path_factory.mktemp("run"), None)
    return dataclasses.replace(found, stages=found.stages[:1])


@pytest.fixture(scope="module")
def params(experiment):
    return {stage.name: initial_params(stage, jax.random.key(0)) for stage in experiment.stages}


@pytest.fixture
def untraceable(monkeypatch):
    """A call of which no network can be traced any more."""
    def refuse(*arguments, **options):
        raise AssertionError("a network is traced")

    return lambda: monkeypatch.setattr("vdm_jax.networks.unet.SpaceTimeUNet.__call__", refuse)


def videos(experiment, params, keep=None, steps=None):
    return Generator(experiment, params, jax.devices()[:1], keep=keep)(CAPTION, seed=3, steps=steps).videos


def test_sampling_is_traced_once_and_is_the_same(experiment, params, tmp_path, untraceable):
    plain = videos(experiment, params)
    np.testing.assert_array_equal(videos(experiment, params, Traced(tmp_path).function), plain)
    untraceable()
    np.testing.assert_array_equal(videos(experiment, params, Traced(tmp_path).function), plain)
    with pytest.raises(AssertionError, match="a network is traced"):  # other options are another function
        videos(experiment, params, Traced(tmp_path).function, steps=3)


def test_several_devices_trace_as_ever(tmp_path):
    function = jax.jit(lambda x: x)
    for devices in (1, 2):
        mesh = make_mesh(MeshSpec(), jax.devices()[:devices])
        assert (Traced(tmp_path).function(function, (), mesh) is function) == (devices == 2)


def test_shapes_are_kept_and_are_those_of_the_network(experiment, tmp_path, untraceable):
    stage, other = experiment.stages[0], dataclasses.replace(experiment.stages[0].network, embedding_channels=24)
    shapes = network_shapes(stage)
    assert Traced(tmp_path).shapes(stage) == shapes
    untraceable()
    assert Traced(tmp_path).shapes(stage) == shapes
    with pytest.raises(AssertionError, match="a network is traced"):
        Traced(tmp_path).shapes(dataclasses.replace(stage, network=other))


def test_damaged_files_are_traced_anew(experiment, tmp_path):
    stage = experiment.stages[0]
    shapes = Traced(tmp_path).shapes(stage)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    for damaged in (b"", content[:-1], content[:40] + b"x" + content[41:]):
        file.write_bytes(damaged)
        assert Traced(tmp_path).shapes(stage) == shapes and file.read_bytes() == content


@pytest.mark.parametrize("change", ["code", "setting", "processors"])
def test_what_a_trace_depends_on_is_in_its_name(change, experiment, tmp_path, monkeypatch):
    Traced(tmp_path).shapes(experiment.stages[0])
    if change == "code":
        monkeypatch.setattr(module, "_surroundings", lambda: "another commit")
    if change == "processors":
        monkeypatch.setattr(module, "processors", lambda: 1000)
    with contextlib.nullcontext() if change != "setting" else jax.default_matmul_precision("float32"):
        Traced(tmp_path).shapes(experiment.stages[0])
    assert len(list(tmp_path.iterdir())) == 2


def test_the_newest_are_kept_in_the_folder_of_the_compilation_cache(experiment, tmp_path, monkeypatch):
    assert str(kept_traces().folder).startswith(jax.config.jax_compilation_cache_dir)
    monkeypatch.setattr(module, "MOST", 2)
    (tmp_path / "old").write_text("")
    (tmp_path / "new").write_text("")

    os.utime(tmp_path / "old", (0, 0))
    Traced(tmp_path).shapes(experiment.stages[0])
    assert len(list(tmp_path.iterdir())) == 2 and not (tmp_path / "old").exists()
    (tmp_path / "file").write_text("")
    Traced(tmp_path / "file" / "folder").shapes(experiment.stages[0])  # a cache that cannot be written
