"""The platform to compile for, and the compiler options that go with it."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.parallel.compiling import compiler_options, target_platform


def test_the_mesh_in_context_says_the_platform():
    assert target_platform() == jax.default_backend() == "cpu"
    assert target_platform("tpu") == "tpu" and target_platform("cuda") == "gpu"
    device = dataclasses.make_dataclass("Device", ["platform"])("tpu")
    mesh = dataclasses.make_dataclass("Mesh", ["abstract_device"])(device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.sharding, "get_abstract_mesh", lambda: mesh)
        assert target_platform() == "tpu" and target_platform("cpu") == "cpu"
    real = jax.sharding.Mesh(np.array(jax.devices()), "x", axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(real):
        assert target_platform() == "cpu"


def test_an_unknown_platform_names_the_permitted_ones():
    with refused("platform", "='npu'"):
        target_platform("npu")


def test_only_the_cpu_has_compiler_options():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "x")
    assert compiler_options(mesh) == {"xla_disable_hlo_passes": "cse_barrier_expander"}
