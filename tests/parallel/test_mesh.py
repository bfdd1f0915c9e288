"""Meshes from specs: which device sits where, and the sizes that do not fit."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from vdm_jax.errors import UserError
from vdm_jax.parallel.compiling import compiler_options
from vdm_jax.parallel.mesh import AXES, MeshSpec, make_mesh


@pytest.mark.parametrize(("spec", "shape"), [
    (MeshSpec(), (8, 1, 1, 1)),
    (MeshSpec(fsdp=4), (2, 4, 1, 1)),
    (MeshSpec(data=1, fsdp=-1), (1, 8, 1, 1)),
    (MeshSpec(data=2, fsdp=2, tensor=2), (2, 2, 2, 1)),
    (MeshSpec(data=1, tensor=2, context=-1), (1, 1, 2, 4)),
])
def test_sizes_and_order(spec, shape):
    mesh = make_mesh(spec)
    assert mesh.axis_names == AXES and mesh.devices.shape == shape
    assert [d.id for d in mesh.devices.flat] == [d.id for d in jax.devices()]
    assert mesh.axis_types == (AxisType.Auto,) * 4


def test_a_mesh_of_some_devices():
    devices = jax.devices()[3:5]
    assert list(make_mesh(MeshSpec(), devices).devices.flat) == devices
    assert make_mesh(MeshSpec(data=1), devices[:1]).devices.size == 1


def test_the_compiler_options_follow_the_mesh():
    assert list(compiler_options(make_mesh(MeshSpec()))) == ["xla_disable_hlo_passes"]

    class Device:
        platform = "tpu"

    class Mesh:
        devices = np.array([Device()])

    assert compiler_options(Mesh()) == {}


@pytest.mark.parametrize(("sizes", "message"), [
    ({"data": 0}, "MeshSpec.data=0 is not valid; permitted: -1 or >= 1"),
    ({"context": -2}, "MeshSpec.context=-2 is not valid; permitted: -1 or >= 1"),
    ({"fsdp": -1}, "MeshSpec has 2 axes of size -1; permitted: at most one"),
])
def test_specs_that_cannot_be(sizes, message):
    with pytest.raises(UserError) as error:
        MeshSpec(**sizes)
    assert str(error.value) == message


@pytest.mark.parametrize(("spec", "shown"), [
    (MeshSpec(data=4), "data=4 x fsdp=1 x tensor=1 x context=1"),
    (MeshSpec(fsdp=3), "data=-1 x fsdp=3 x tensor=1 x context=1"),
    (MeshSpec(fsdp=16), "data=-1 x fsdp=16 x tensor=1 x context=1"),
    (MeshSpec(data=4, tensor=4), "data=4 x fsdp=1 x tensor=4 x context=1"),
])
def test_sizes_that_do_not_fit_the_devices(spec, shown):
    with pytest.raises(UserError) as error:
        make_mesh(spec)
    assert str(error.value) == (f"MeshSpec {shown} does not fit 8 devices; permitted: sizes that multiply to 8 "
                                "(one may be -1)")
