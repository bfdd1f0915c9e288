"""RIFE's network, version HDv3, from its description: the released tensors, random ones, and what they compute in
PyTorch, one frame pair and direction at a time."""

from __future__ import annotations

import numpy as np

SEEN = {"block0": 11, "block1": 11, "block2": 11, "block_tea": 14}  # input channels; the last one is of training alone


def released_shapes(width: int = 90) -> dict[str, tuple[int, ...]]:
    """Shapes by name, of PyTorch's layout."""
    shapes: dict[str, tuple[int, ...]] = {}
    half = width // 2
    for block, seen in SEEN.items():
        layers = {"conv0.0": (half, seen), "conv0.1": (width, half)}
        layers |= {f"convblock{group}.{layer}": (width, width) for group in range(4) for layer in range(2)}
        for name, (channels, before) in layers.items():
            shapes |= {f"{block}.{name}.0.weight": (channels, before, 3, 3), f"{block}.{name}.0.bias": (channels,),
                       f"{block}.{name}.1.weight": (channels,)}
        for head, channels in (("conv1", 4), ("conv2", 1)):
            shapes |= {f"{block}.{head}.0.weight": (width, half, 4, 4), f"{block}.{head}.0.bias": (half,),
                       f"{block}.{head}.1.weight": (half,), f"{block}.{head}.2.weight": (half, channels, 4, 4),
                       f"{block}.{head}.2.bias": (channels,)}
    return shapes


def random_tensors(seed: int = 0, width: int = 90) -> dict[str, np.ndarray]:
    """Released tensors whose flows are some pixels long."""
    rng, found = np.random.default_rng(seed), {}
    for name, shape in released_shapes(width).items():
        inputs = np.prod(shape[1:]) if shape[-1] == 3 else shape[0] * 4
        found[name] = np.float32(rng.normal(size=shape) * (np.sqrt(1 / inputs) if len(shape) == 4 else 0.2))
    return found


def halfway_in_torch(torch, tensors, one, other):
    """The frame halfway between two `[3, H, W]` in [0, 1] of any size; `tensors` of PyTorch by their names."""
    functional = torch.nn.functional
    height, width = one.shape[1:]
    padding = (0, -width % 32, 0, -height % 32)
    one, other = (functional.pad(frame[None], padding) for frame in (one, other))

    def resized(x, factor):
        return functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    def at(frame, flow):
        rows, columns = frame.shape[2:]
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        grid = torch.stack([2 * (x + flow[0, 0]) / (columns - 1) - 1, 2 * (y + flow[0, 1]) / (rows - 1) - 1], -1)
        return functional.grid_sample(frame, grid[None], "bilinear", "border", align_corners=True)

    def block(name, x, scale):
        def layer(place, x, stride=1):
            x = functional.conv2d(x, tensors[f"{name}.{place}.0.weight"], tensors[f"{name}.{place}.0.bias"], stride, 1)
            return functional.prelu(x, tensors[f"{name}.{place}.1.weight"])

        def head(place):
            weights = [tensors[f"{name}.{place}.{part}"] for part in
                       ("0.weight", "0.bias", "1.weight", "2.weight", "2.bias")]
            y = functional.prelu(functional.conv_transpose2d(features, *weights[:2], 2, 1), weights[2])
            return resized(functional.conv_transpose2d(y, *weights[3:], 2, 1), scale)

        x = resized(x, 1 / scale)
        features = torch.cat([x[:, :7], x[:, 7:] / scale], 1)
        features = layer("conv0.1", layer("conv0.0", features, 2), 2)
        for group in range(4):
            features = features + layer(f"convblock{group}.1", layer(f"convblock{group}.0", features))
        return head("conv1") * scale, head("conv2")

    to_one = to_other = torch.zeros_like(one[:, :2])
    mask = torch.zeros_like(one[:, :1])
    for name, scale in (("block0", 4), ("block1", 2), ("block2", 1)):
        near, far = at(one, to_one), at(other, to_other)
        flow, change = block(name, torch.cat([near, far, mask, to_one, to_other], 1), scale)
        flow_back, change_back = block(name, torch.cat([far, near, -mask, to_other, to_one], 1), scale)
        to_one = to_one + (flow[:, :2] + flow_back[:, 2:]) / 2
        to_other = to_other + (flow[:, 2:] + flow_back[:, :2]) / 2
        mask = mask + (change - change_back) / 2
    weight = 1 / (1 + torch.exp(-mask))
    made = at(one, to_one) * weight + at(other, to_other) * (1 - weight)
    return made[0, :, :height, :width], torch.cat([to_one, to_other], 1)[0]
