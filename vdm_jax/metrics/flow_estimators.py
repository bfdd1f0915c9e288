"""What finds optical flow: OpenCV's DIS, or GMFlow with its weights from a file; and where each counts a pixel as seen.

The authors of Rerender-A-Video (Yang et al. 2023, arXiv 2306.07954) use GMFlow, and their own bound of what it finds
again.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from vdm_jax.errors import UserError
from vdm_jax.metrics.detectors import gmflow
from vdm_jax.metrics.detectors.torch_files import read_torch
from vdm_jax.metrics.flow import LEAST_SIDE, flow, visible
from vdm_jax.weights.tensor_files import open_file

ALPHA, BETA = 0.01, 0.5  # of the authors' bound, the second in pixels
MAX_BYTES = 2**27  # of a file of PyTorch, which is read as a whole; all of its tensors have a seventh of this
PERMITTED = "GMFlow's weights of one scale, .pth or .safetensors"
_INSIDE = "model."  # what the names of a checkpoint begin with


class DIS:
    """OpenCV's DIS, which needs no weights."""

    def flow(
        self, one: UInt8[np.ndarray, "H W 3"], other: UInt8[np.ndarray, "H W 3"]
    ) -> Float[np.ndarray, "H W 2"]:
        """Where each pixel of a frame is in another one: displacement (x, y) in pixels."""
        return flow(one, other)

    def both(
        self, one: UInt8[np.ndarray, "H W 3"], other: UInt8[np.ndarray, "H W 3"]
    ) -> tuple[Float[np.ndarray, "H W 2"], Float[np.ndarray, "H W 2"]]:
        """The same, and where each pixel of the other one is in the first."""
        return self.flow(one, other), self.flow(other, one)

    def seen(
        self, forward: Float[np.ndarray, "H W 2"], backward: Float[np.ndarray, "H W 2"]
    ) -> Bool[np.ndarray, "H W"]:
        """Where a pixel is found again, as `flow.visible`."""
        return visible(forward, backward)


class GMFlow:
    """GMFlow (Xu et al. 2022, arXiv 2111.13680) of one scale, with the weights of a file. Raises `UserError` as
    `read_weights`."""

    def __init__(self, path: str | Path):
        path = Path(path)
        try:
            stat = path.stat() if path.is_file() else None
            self.params = _parameters(path, stat and (stat.st_size, stat.st_mtime_ns))  # read anew if it changes
        except OSError as error:
            raise UserError(f"{path} was not read: {error}; permitted: {PERMITTED}",
                            "flow_estimators.read_weights") from error

    def flow(
        self, one: UInt8[np.ndarray, "H W 3"], other: UInt8[np.ndarray, "H W 3"]
    ) -> Float[np.ndarray, "H W 2"]:
        """Where each pixel of a frame is in another one: displacement (x, y) in pixels. Raises as `both`."""
        return self.both(one, other)[0]

    def both(
        self, one: UInt8[np.ndarray, "H W 3"], other: UInt8[np.ndarray, "H W 3"]
    ) -> tuple[Float[np.ndarray, "H W 2"], Float[np.ndarray, "H W 2"]]:
        """The same, and where each pixel of the other one is in the first: one call of the network. Raises `UserError`
        for frames of two sizes, and smaller ones than 32 pixels."""
        if one.shape != other.shape or min(one.shape[:2]) < LEAST_SIDE:
            raise UserError(f"optical flow by GMFlow of frames {list(one.shape)} and {list(other.shape)}; permitted: "
                            f"equal shapes [H, W, 3], H and W from {LEAST_SIDE} pixels")
        found = gmflow.flows(self.params, *(frame[None].astype(np.float32) for frame in (one, other)))
        forward, backward = (np.asarray(flow)[0] for flow in found)
        return forward, backward

    def seen(
        self, forward: Float[np.ndarray, "H W 2"], backward: Float[np.ndarray, "H W 2"]
    ) -> Bool[np.ndarray, "H W"]:
        """Where a pixel is found again by the authors' bound: `|f + b'| <= 0.01 (|f| + |b|) + 0.5` of the flow forth f
        and back b, the latter moved, b', 0 beyond the borders. That of `visible` has the squares of the first two, b'
        in place of b, and refuses what leaves the frame."""
        off = np.linalg.norm(forward + moved(backward, forward), axis=-1)
        lengths = np.linalg.norm(forward, axis=-1) + np.linalg.norm(backward, axis=-1)
        return off <= ALPHA * lengths + BETA


FlowEstimator = DIS | GMFlow
BY_DIS = DIS()


def moved(values: Float[np.ndarray, "H W C"], along: Float[np.ndarray, "H W 2"]) -> Float[np.ndarray, "H W C"]:
    """Values at pixel + flow, bilinear between pixels, and 0 beyond the borders."""
    height, width = along.shape[:2]
    padded = np.pad(values, ((1, 2), (1, 2), (0, 0)))
    # places in the padded values; further out all is 0, as there
    x = np.clip(np.arange(width) + along[..., 0] + 1, 0, width + 1)
    y = np.clip(np.arange(height)[:, None] + along[..., 1] + 1, 0, height + 1)
    column, row = x.astype(int), y.astype(int)
    right, down = (x - column)[..., None], (y - row)[..., None]
    upper = (1 - right) * padded[row, column] + right * padded[row, column + 1]
    lower = (1 - right) * padded[row + 1, column] + right * padded[row + 1, column + 1]
    return ((1 - down) * upper + down * lower).astype(values.dtype)


def read_weights(path: Path) -> dict[str, Any]:
    """GMFlow's parameters from a .safetensors file, or a .pth file as published, of which only tensors are read. Where
    names begin with 'model.', as a checkpoint's, others are left out. Raises `UserError` naming the file for another
    or a damaged one, and for one that lacks a tensor, has another one, or has one of another shape."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; permitted: {PERMITTED}")
    if path.suffix == ".safetensors":
        arrays = {name: tensor.read() for name, tensor in open_file(path).items()}
    elif path.suffix in (".pth", ".pt"):
        if (size := path.stat().st_size) > MAX_BYTES:
            raise UserError(f"{path} has {size} bytes; permitted: {PERMITTED}, of at most {MAX_BYTES}")
        arrays = read_torch(path.read_bytes(), str(path))
    else:
        raise UserError(f"{path} is a {path.suffix or 'nameless'} file; permitted: {PERMITTED}")
    if any(name.startswith(_INSIDE) for name in arrays):
        arrays = {name.removeprefix(_INSIDE): array for name, array in arrays.items() if name.startswith(_INSIDE)}
    try:
        return gmflow.from_published(arrays)
    except UserError as error:
        raise UserError(f"{path}: {error}", error.code) from error


@functools.lru_cache(maxsize=2)
def _parameters(path: Path, changed: tuple[int, int] | None) -> Mapping[str, Any]:
    return jax.tree.map(jnp.asarray, read_weights(path))
