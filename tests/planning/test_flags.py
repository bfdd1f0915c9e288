"""XLA flag files."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from tests.refusals import refused
from vdm_jax.planning import topology
from vdm_jax.planning.flags import apply_flags, flag_sets, read_flags

SLICES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}


def test_every_shipped_set_names_its_source_and_reads():
    assert set(flag_sets()) == set(SLICES)
    for name, path in flag_sets().items():
        assert "# Source: " in path.read_text() and name in path.read_text()
        flags = dict(read_flags(name))
        assert len(flags) >= 5 and all(flag.startswith("xla_") for flag in flags)


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# why\n--xla_a=true  # this\n\n--xla_b=3\n")
    assert read_flags(str(path)) == (("xla_a", "true"), ("xla_b", "3"))
    path.write_text("--xla_a=true\nxla_b=3\n")
    with refused("flags.read_flags", "mine.txt", "2", "'xla_b=3'", "--flag"):
        read_flags(str(path))
    with refused("--xla-flags"):
        read_flags("v9")


def test_flags_go_behind_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--mine=1")
    apply_flags((("xla_a", "true"), ("xla_b", "3")))
    assert os.environ["LIBTPU_INIT_ARGS"] == "--mine=1 --xla_a=true --xla_b=3"


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra [tpu])")
@pytest.mark.parametrize("name", SLICES)
def test_the_compiler_knows_every_flag_of_a_set(name):
    device = topology.devices(SLICES[name])[0]
    x = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=SingleDeviceSharding(device))
    lowered = jax.jit(jnp.tanh).lower(x)
    for flag, value in read_flags(name):
        lowered.compile({flag: value})


def test_training_refuses_them_where_there_is_no_tpu(monkeypatch, tmp_path, capfd):
    from tests.commands.conftest import TINY
    from vdm_jax.commands.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set by tests/conftest.py")
    assert main(["train", TINY, "--xla-flags", "v5p"]) == 2
    assert "--xla-flags=v5p is for TPUs and this machine computes on cpu" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
