"""The frames halfway between others, by RIFE's network with the weights of a file (`networks/frame_interpolation.py`).

The authors' `flownet.pkl` has a prefix `module.` on every name and the weights of a further block that only training
has. It is a pickle, of which `metrics/detectors/torch_files.py` reads the tensors alone and runs nothing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from vdm_jax.errors import UserError
from vdm_jax.metrics.detectors.torch_files import read_torch
from vdm_jax.networks.frame_interpolation import MULTIPLE, WIDTH, IFNet
from vdm_jax.weights.tensor_files import PICKLES, Tensor, lazy, open_file

AT_A_TIME = 4  # pairs of frames that the network sees together
MAX_BYTES = 2**26  # of a file of PyTorch, which is read as a whole; all of its tensors have a fifth of this
PREFIX = "module."  # of every name, where the network was trained on several devices
TRAINING_ONLY = "block_tea."  # a block that sees the true frame and teaches the others
PERMITTED = "a file of RIFE's frame interpolation, version HDv3, as .safetensors or the authors' .pkl"

# At most `AT_A_TIME` pairs of frames in [-1, 1] to the frames halfway between them
Between = Callable[[Float[np.ndarray, "N H W 3"], Float[np.ndarray, "N H W 3"]], Float[np.ndarray, "N H W 3"]]


def by_network(path: str | os.PathLike) -> Between:
    """Frames halfway between others by the weights of a file. Raises `UserError` as `parameters`."""
    weights = jax.device_put(parameters(path))

    def between(
        ones: Float[np.ndarray, "N H W 3"], others: Float[np.ndarray, "N H W 3"]
    ) -> Float[np.ndarray, "N H W 3"]:
        missing = ((0, AT_A_TIME - len(ones)), (0, 0), (0, 0), (0, 0))  # so that it is compiled once per size
        pairs = (np.pad(np.asarray(frames, np.float32), missing) for frames in (ones, others))
        return np.asarray(_jitted(weights, *pairs))[: len(ones)]

    return between


def interpolated(
    params: Mapping[str, Any], ones: Float[Array, "N H W 3"], others: Float[Array, "N H W 3"], width: int = WIDTH
) -> Float[Array, "N H W 3"]:
    """The frames in [-1, 1] halfway between others of any size, which zeros (black) fill up on the right and below to
    multiples of 32, as the authors do."""
    height, columns = ones.shape[1:3]
    missing = ((0, 0), (0, -height % MULTIPLE), (0, -columns % MULTIPLE), (0, 0))
    pairs = (jnp.pad(jnp.clip(frames / 2 + 0.5, 0, 1), missing) for frames in (ones, others))
    return IFNet(width).apply({"params": params}, *pairs).frame[:, :height, :columns] * 2 - 1


_jitted = jax.jit(interpolated)


def parameters(path: str | os.PathLike) -> dict[str, Any]:
    """Parameters of `IFNet` from a file, kept in memory until it changes. Raises `UserError` for one that is missing or
    damaged, or that holds other tensors."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; permitted: {PERMITTED}", "interpolation.parameters")
    try:
        stat = path.stat()
        return _parameters(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path} was not read: {error}; permitted: {PERMITTED}", "interpolation.parameters") from error


@functools.lru_cache(maxsize=1)
def _parameters(path: Path, size: int, changed: int) -> dict[str, Any]:
    if path.suffix not in PICKLES:
        return from_released(open_file(path), str(path))
    if size > MAX_BYTES:
        raise UserError(f"{path} has {size} bytes; permitted: {PERMITTED}, of at most {MAX_BYTES}",
                        "interpolation.parameters")
    return from_released(lazy(read_torch(path.read_bytes(), str(path)).items()), str(path))


def from_released(tensors: Mapping[str, Tensor], where: str, width: int = WIDTH) -> dict[str, Any]:
    """Parameters of `IFNet` from tensors by their released names, or by these with `module.` before them, where others
    are left out as the authors do; those that only training has (`TRAINING_ONLY`) may be there.

    Raises `UserError` listing tensors that are missing, not known, not finite, or of another shape or type.
    """
    prefix = PREFIX if any(name.startswith(PREFIX) for name in tensors) else ""
    left = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    left = {name: tensor for name, tensor in left.items() if not name.startswith(TRAINING_ONLY)}
    wrong, found = [], {}
    for ours, shape in expected(width).items():
        name = their_name(ours)
        tensor = left.pop(name, None)
        theirs = _turned(shape, (3, 2, 0, 1))
        if tensor is None or tensor.shape != theirs or not jnp.issubdtype(tensor.dtype, jnp.floating):
            there = "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            wrong.append(f"{name} ({there} instead of {list(theirs)})")
        elif not wrong:
            array = np.asarray(tensor.read(), np.float32)
            if not np.isfinite(array).all():
                wrong.append(f"{name} (NaN or infinite)")
            found[ours] = array.transpose(_turned(range(array.ndim), (2, 3, 1, 0)))
    wrong += [f"{name} (not known)" for name in left]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise UserError(f"{where}: tensors do not fit: {'; '.join(wrong[:4])}{more}; permitted: {PERMITTED}",
                        "interpolation.from_released")
    return traverse_util.unflatten_dict(found)


@functools.cache
def expected(width: int = WIDTH) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shapes of the parameters of `IFNet` by their paths."""
    frames = jax.ShapeDtypeStruct((1, MULTIPLE, MULTIPLE, 3), jnp.float32)
    tree = jax.eval_shape(lambda x: IFNet(width).init(jax.random.key(0), x, x), frames)["params"]
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree).items()}


def their_name(path: tuple[str, ...]) -> str:
    """The released name of a parameter, without `module.`."""
    return ".".join((*path[:-1], "weight" if path[-1] == "kernel" else path[-1]))


def _turned(values: Any, order: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of a kernel in another order: theirs are output, input, height, width (input first, where transposed), ours
    height, width, and the two axes of channels exchanged. Those of a vector stay."""
    values = tuple(values)
    return tuple(values[axis] for axis in order) if len(values) == len(order) else values
