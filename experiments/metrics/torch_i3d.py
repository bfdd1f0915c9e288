"""I3D in PyTorch with our parameters: what its speed is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def torch_i3d(params: Mapping[str, Any]) -> Callable[[Any], Any]:
    """The network as a function of `[B, 3, T, 224, 224]` tensors to `[B, 400]` logits averaged over time.

    Args:
      params: of `vdm_jax.metrics.detectors.i3d.parameters`, batch norms folded into the convolutions.
    """
    import torch

    functional = torch.nn.functional

    def tensors(unit: Mapping[str, Any]) -> tuple[Any, Any]:
        kernel = torch.tensor(np.asarray(unit["kernel"])).permute(4, 3, 0, 1, 2).contiguous()
        return kernel, torch.tensor(np.asarray(unit["bias"]))

    arrays = {name: tensors(unit) for name, unit in _units(params)}

    def padded(x: Any, window: tuple[int, ...], strides: tuple[int, ...], value: float) -> Any:
        sides = []
        for size, side, stride in zip(x.shape[:1:-1], window[::-1], strides[::-1], strict=True):
            around = max((-(-size // stride) - 1) * stride + side - size, 0)
            sides += [around // 2, around - around // 2]
        return functional.pad(x, sides, value=value) if any(sides) else x

    def pool(x: Any, window: tuple[int, ...], strides: tuple[int, ...]) -> Any:
        return functional.max_pool3d(padded(x, window, strides, -torch.inf), window, strides)

    def unit(x: Any, name: str, stride: int = 1) -> Any:
        kernel, bias = arrays[name]
        x = padded(x, tuple(kernel.shape[2:]), (stride,) * 3, 0.0)
        return functional.relu(functional.conv3d(x, kernel, bias, stride=stride))

    def block(x: Any, name: str) -> Any:
        return torch.cat([
            unit(x, f"{name}/Branch_0/Conv3d_0a_1x1"),
            unit(unit(x, f"{name}/Branch_1/Conv3d_0a_1x1"), f"{name}/Branch_1/Conv3d_0b_3x3"),
            unit(unit(x, f"{name}/Branch_2/Conv3d_0a_1x1"), f"{name}/Branch_2/Conv3d_0b_3x3"),
            unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{name}/Branch_3/Conv3d_0b_1x1")], 1)

    def network(x: Any) -> Any:
        x = pool(unit(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
        x = pool(unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
        for name in ("3b", "3c", "pool 3", "4b", "4c", "4d", "4e", "4f", "pool 2", "5b", "5c"):
            side = int(name[-1]) if "pool" in name else 0
            x = pool(x, (side,) * 3, (2, 2, 2)) if side else block(x, f"Mixed_{name}")
        kernel, bias = arrays["Logits/Conv3d_0c_1x1"]
        return functional.conv3d(functional.avg_pool3d(x, (2, 7, 7), 1), kernel, bias).mean((2, 3, 4))

    return network


def _units(tree: Mapping[str, Any], where: str = "") -> list[tuple[str, Mapping[str, Any]]]:
    """Convolutions by their names without the last part."""
    if "kernel" in tree:
        return [(where, tree)]
    return [found for name, part in tree.items()
            for found in _units(part, where if name == "conv" else f"{where}/{name}".lstrip("/"))]
