"""A device mesh from a spec. Axes are always Auto: the compiler propagates shardings, we constrain where it matters."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from vdm_jax.configuration import Count, Devices, config
from vdm_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "context")


@config
class MeshSpec:
    """Devices per mesh axis; one axis may be -1 and takes what is left.

    Machines whose devices hang together in slices (TPU pods joined by a data-centre network, hosts with GPUs) have a
    second set of sizes: how many slices each axis spans. An axis of the mesh then has `size * dcn_size` devices, those
    of a slice next to each other.
    """

    data: Devices = -1  # copies of the model, each with its share of the batch
    fsdp: Devices = 1  # parameters, optimizer and batch are split over this axis
    tensor: Devices = 1  # wide layers are split over this axis
    context: Devices = 1  # tokens of one video are split over this axis
    dcn_data: Count = 1  # slices along `data`: the axis that exchanges least, once per step
    dcn_fsdp: Count = 1  # slices along `fsdp`
    dcn_tensor: Count = 1  # slices along `tensor`
    dcn_context: Count = 1  # slices along `context`

    def __post_init__(self):
        if self.sizes.count(-1) > 1:
            raise UserError(f"MeshSpec has {self.sizes.count(-1)} axes of size -1; permitted: at most one",
                            "MeshSpec")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Devices of one slice in the order of `AXES`."""
        return tuple(getattr(self, axis) for axis in AXES)

    @property
    def dcn_sizes(self) -> tuple[int, ...]:
        """Slices in the order of `AXES`."""
        return tuple(getattr(self, f"dcn_{axis}") for axis in AXES)


def make_mesh(spec: MeshSpec, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices.

    Devices of a TPU or GPU are placed by their wiring. CPU devices have none: they are taken in order, and with several
    slices the first `n / slices` of them are the first slice, and so on.

    Raises `UserError` when the sizes do not multiply to the number of devices, or the `dcn` sizes to that of slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = _slices(spec, devices)
    shape = _shape(spec, len(devices) // len(slices))
    if devices[0].platform == "cpu":
        grids = [np.array(group).reshape(shape) for group in slices]
    else:
        grids = [mesh_utils.create_device_mesh(shape, group, allow_split_physical_axes=True) for group in slices]
    grid = np.empty((len(slices), *shape), dtype=object)
    for i, group in enumerate(grids):
        grid[i] = group
    grid = grid.reshape(*spec.dcn_sizes, *shape)
    order = [i + offset for i in range(len(AXES)) for offset in (0, len(AXES))]  # dcn_data, data, dcn_fsdp, fsdp, ...
    grid = grid.transpose(order).reshape([a * b for a, b in zip(spec.dcn_sizes, shape, strict=True)])
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(spec: MeshSpec, devices: list[jax.Device]) -> list[list[jax.Device]]:
    """Devices by slice: those that share a fast network.

    TPU devices know their slice, GPUs are grouped by host when the spec asks for slices, CPU devices in equal runs.
    """
    wanted = math.prod(spec.dcn_sizes)
    if devices[0].platform == "cpu":
        if len(devices) % wanted:
            raise UserError(f"MeshSpec {_shown(spec, 'dcn_')} does not fit {len(devices)} devices; permitted: a "
                            f"number of slices that divides {len(devices)}")
        each = len(devices) // wanted
        return [devices[i * each : (i + 1) * each] for i in range(wanted)]
    by_host = devices[0].platform == "gpu"
    if by_host and wanted == 1:
        return [devices]
    groups: dict[int, list[jax.Device]] = {}
    for device in devices:
        index = device.process_index if by_host else getattr(device, "slice_index", 0)
        groups.setdefault(index, []).append(device)
    found = [groups[index] for index in sorted(groups)]
    kind = "hosts" if by_host else "slices"
    if len(found) != wanted:
        raise UserError(f"MeshSpec {_shown(spec, 'dcn_')} does not fit {len(found)} {kind}; permitted: dcn sizes that "
                        f"multiply to {len(found)}")
    if len({len(group) for group in found}) > 1:
        raise UserError(f"MeshSpec {_shown(spec, 'dcn_')} needs {kind} of equal size; found "
                        f"{', '.join(str(len(group)) for group in found)} devices")
    return found


def _shape(spec: MeshSpec, count: int) -> tuple[int, ...]:
    """Sizes of one slice of `count` devices."""
    known = math.prod(size for size in spec.sizes if size != -1)
    if count % known or (-1 not in spec.sizes and known != count):
        where = " of each slice" if math.prod(spec.dcn_sizes) > 1 else ""
        raise UserError(f"MeshSpec {_shown(spec, '')} does not fit {count} devices{where}; permitted: sizes that "
                        f"multiply to {count} (one may be -1)")
    return tuple(count // known if size == -1 else size for size in spec.sizes)


def _shown(spec: MeshSpec, prefix: str) -> str:
    return " x ".join(f"{prefix}{axis}={getattr(spec, prefix + axis)}" for axis in AXES)
