"""A device mesh from a spec. Axes are always Auto: the compiler propagates shardings, we constrain where it matters."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from vdm_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "context")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSpec:
    """Devices per mesh axis; one axis may be -1 and takes what is left."""

    data: int = -1  # copies of the model, each with its share of the batch
    fsdp: int = 1  # parameters, optimizer and batch are split over this axis
    tensor: int = 1  # wide layers are split over this axis
    context: int = 1  # tokens of one video are split over this axis

    def __post_init__(self):
        sizes = self.sizes
        for axis, size in zip(AXES, sizes, strict=True):
            if size == 0 or size < -1:
                raise UserError(f"MeshSpec.{axis}={size} is not valid; permitted: -1 or >= 1")
        if sizes.count(-1) > 1:
            raise UserError(f"MeshSpec has {sizes.count(-1)} axes of size -1; permitted: at most one")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes in the order of `AXES`."""
        return tuple(getattr(self, axis) for axis in AXES)


def make_mesh(spec: MeshSpec, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices. Raises `UserError` when the sizes do not multiply to their number."""
    devices = jax.devices() if devices is None else devices
    known = math.prod(size for size in spec.sizes if size != -1)
    if len(devices) % known or (-1 not in spec.sizes and known != len(devices)):
        shown = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, spec.sizes, strict=True))
        raise UserError(f"MeshSpec {shown} does not fit {len(devices)} devices; permitted: sizes that multiply to "
                        f"{len(devices)} (one may be -1)")
    shape = tuple(len(devices) // known if size == -1 else size for size in spec.sizes)
    if devices[0].platform == "cpu":  # virtual devices have no topology to respect
        grid = np.array(devices).reshape(shape)
    else:
        grid = mesh_utils.create_device_mesh(shape, list(devices), allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
