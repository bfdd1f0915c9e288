"""Meshes from specs: which device sits where, and the sizes that do not fit."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from tests.refusals import refused
from vdm_jax.errors import UserError
from vdm_jax.parallel import mesh as mesh_module
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


# ---------------------------------------------------------------------------------------------- slices


@pytest.mark.parametrize(("spec", "shape", "first_axis"), [
    (MeshSpec(dcn_data=2), (8, 1, 1, 1), range(8)),
    (MeshSpec(fsdp=4, data=1, dcn_data=2), (2, 4, 1, 1), (0, 4)),
    (MeshSpec(data=1, fsdp=-1, dcn_fsdp=2), (1, 8, 1, 1), (0,)),
    (MeshSpec(data=2, context=2, dcn_data=2), (4, 1, 1, 2), (0, 2, 4, 6)),
    (MeshSpec(data=2, context=-1, dcn_context=2), (2, 1, 1, 4), (0, 2)),
])
def test_virtual_slices_are_runs_of_devices(spec, shape, first_axis):
    mesh = make_mesh(spec)
    assert mesh.devices.shape == shape
    assert [d.id for d in mesh.devices.reshape(shape[0], -1)[:, 0]] == list(first_axis)


def test_an_axis_goes_through_a_slice_before_the_next():
    mesh = make_mesh(MeshSpec(data=2, context=2, dcn_context=2))
    ids = np.vectorize(lambda d: d.id)(mesh.devices)
    np.testing.assert_array_equal(ids[:, 0, 0, :], [[0, 1, 4, 5], [2, 3, 6, 7]])


class Chip:
    """A device of several slices or hosts, for the layout only."""

    device_kind, core_on_chip = "made up", 0

    def __init__(self, number: int, slices: int, platform: str = "tpu"):
        self.id, self.platform = number, platform
        self.slice_index = self.process_index = number * slices // 8
        self.coords = (number % 2, number // 2 % 2, 0)


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_slices_of_real_devices_are_those_that_the_devices_name(platform, monkeypatch):
    monkeypatch.setattr(mesh_module, "Mesh", lambda grid, axes, axis_types: grid)
    chips = [Chip(i, 2, platform) for i in range(8)]
    grid = make_mesh(MeshSpec(fsdp=2, dcn_data=2), [*chips[::2], *chips[1::2]])
    assert grid.shape == (4, 2, 1, 1)
    np.testing.assert_array_equal(grid, mesh_utils.create_hybrid_device_mesh((2, 2, 1, 1), (2, 1, 1, 1), chips))
    assert [{chip.id for chip in half.flat} for half in (grid[:2], grid[2:])] == [set(range(4)), set(range(4, 8))]


@pytest.mark.parametrize(("spec", "chips", "message"), [
    (MeshSpec(dcn_data=3), None, "dcn_data=3 x dcn_fsdp=1 x dcn_tensor=1 x dcn_context=1 does not fit 8 devices; "
                                 "permitted: a number of slices that divides 8"),
    (MeshSpec(data=4, dcn_data=4), None, "data=4 x fsdp=1 x tensor=1 x context=1 does not fit 2 devices of each slice; "
                                         "permitted: sizes that multiply to 2 (one may be -1)"),
    (MeshSpec(), 2, "dcn_data=1 x dcn_fsdp=1 x dcn_tensor=1 x dcn_context=1 does not fit 2 slices; permitted: "
                    "dcn sizes that multiply to 2"),
    (MeshSpec(dcn_data=2), 4, "dcn_data=2 x dcn_fsdp=1 x dcn_tensor=1 x dcn_context=1 does not fit 4 slices; "
                              "permitted: dcn sizes that multiply to 4"),
    (MeshSpec(dcn_data=3), 3, "dcn_data=3 x dcn_fsdp=1 x dcn_tensor=1 x dcn_context=1 needs slices of equal size; "
                              "found 3, 3, 2 devices"),
])
def test_slices_that_do_not_fit(spec, chips, message):
    with pytest.raises(UserError) as error:
        make_mesh(spec, chips and [Chip(i, chips) for i in range(8)])
    assert str(error.value) == f"MeshSpec {message}"


def test_the_compiler_options_follow_the_mesh():
    assert list(compiler_options(make_mesh(MeshSpec()))) == ["xla_disable_hlo_passes"]

    class Device:
        platform = "tpu"

    class Mesh:
        devices = np.array([Device()])

    assert compiler_options(Mesh()) == {}


@pytest.mark.parametrize(("sizes", "message"), [
    ({"data": 0}, ("MeshSpec.data", "=0", "permitted: -1 or >= 1")),
    ({"context": -2}, ("MeshSpec.context", "=-2", "permitted: -1 or >= 1")),
    ({"dcn_fsdp": 0}, ("MeshSpec.dcn_fsdp", "=0", "permitted: >= 1")), ({"fsdp": -1}, ("MeshSpec", "2 axes")),
])
def test_specs_that_cannot_be(sizes, message):
    with refused(*message):
        MeshSpec(**sizes)


@pytest.mark.parametrize(("spec", "shown"), [
    (MeshSpec(data=4), "data=4 x fsdp=1 x tensor=1 x context=1"),
    (MeshSpec(fsdp=3), "data=-1 x fsdp=3 x tensor=1 x context=1"),
    (MeshSpec(fsdp=16), "data=-1 x fsdp=16 x tensor=1 x context=1"),
    (MeshSpec(data=4, tensor=4), "data=4 x fsdp=1 x tensor=4 x context=1"),
])
def test_sizes_that_do_not_fit_the_devices(spec, shown):
    with refused("mesh._shape") as error:
        make_mesh(spec)
    assert str(error.value) == (f"MeshSpec {shown} does not fit 8 devices; permitted: sizes that multiply to 8 "
                                "(one may be -1)")
