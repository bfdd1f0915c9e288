"""C3D: both names of its arrays, its preprocessing, and agreement with a network in PyTorch."""

import jax
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.metrics.detectors import c3d, weights

WIDTH, HIDDEN = 4, 16
CHANNELS = {"conv1a": (3, 4), "conv2a": (4, 8), "conv3a": (8, 16), "conv3b": (16, 16), "conv4a": (16, 32),
            "conv4b": (32, 32), "conv5a": (32, 32), "conv5b": (32, 32)}


@pytest.fixture(scope="module")
def arrays():
    """Arrays of a small C3D by the names of TGAN v2."""
    rng = np.random.default_rng(0)
    made = {}
    for name, (inputs, outputs) in CHANNELS.items():
        made[f"{name}/W"] = rng.standard_normal((outputs, inputs, 3, 3, 3)).astype(np.float32) / (inputs * 27) ** 0.5
    for name, shape in {"fc6": (HIDDEN, 32 * 16), "fc7": (HIDDEN, HIDDEN), "fc8": (101, HIDDEN)}.items():
        made[f"{name}/W"] = rng.standard_normal(shape).astype(np.float32) / shape[1] ** 0.5
    return made | {name[:-1] + "b": rng.standard_normal(len(made[name])).astype(np.float32) for name in made}


MEAN = np.random.default_rng(1).uniform(90, 110, (3, 16, 128, 171)).astype(np.float32)


def test_both_names_of_arrays_are_known_and_others_refused(arrays):
    params = c3d.from_published(arrays, MEAN, WIDTH, HIDDEN)
    kinds = {"W": "weight", "b": "bias"}
    torch_names = {name.replace("1a", "1").replace("2a", "2")[:-1].replace("/", ".") + kinds[name[-1]]: array
                   for name, array in arrays.items()}
    again = c3d.from_published(torch_names, MEAN[None], WIDTH, HIDDEN)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, again))
    with refused("c3d.from_published", "'fc7.bias'"):
        c3d.from_published({name: x for name, x in arrays.items() if name != "fc7/b"}, MEAN, WIDTH, HIDDEN)
    with refused("c3d.from_published", "'conv9.weight'", "22"):
        c3d.from_published(arrays | {"conv9/W": np.ones(2)}, MEAN, WIDTH, HIDDEN)
    with refused("c3d.from_published", "[3, 16, 128, 171]"):
        c3d.from_published(arrays, None, WIDTH, HIDDEN)


def test_clips_are_prepared_as_tgan_v2_does():
    clips = np.zeros((1, 16, 2, 3, 3), np.uint8)
    clips[0, :, :, 2, 0] = 255  # red in the last column
    seen = np.asarray(c3d.prepared(clips, np.zeros((16, 112, 112, 3), np.float32)))
    assert seen.shape == (1, 16, 112, 112, 3) and not seen[..., :2].any()  # blue and green come first
    np.testing.assert_allclose(seen[0, 0, :, -1, 2], 256, rtol=1e-6)
    np.testing.assert_allclose(seen[0, 0, 0, 56:, 2], 256 * (np.arange(56, 112) * 2 / 111 - 1), atol=1e-3)
    with_mean = c3d.prepared(clips, np.ones((16, 112, 112, 3), np.float32))
    np.testing.assert_allclose(with_mean, seen - 1, atol=1e-4)


def test_the_mean_is_cut_where_tgan_v2_cuts_it(arrays):
    mean = c3d.from_published(arrays, MEAN, WIDTH, HIDDEN)["mean"]
    np.testing.assert_array_equal(mean[3, 5, 7], MEAN[:, 3, 13, 15])


def test_weights_are_read_from_the_users_folder(arrays, monkeypatch, tmp_path):
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path))
    with refused("weights.find", "conv3d_deepnetA_ucf.npz", "github.com", "c3d_ucf101.safetensors"):
        weights.find(weights.C3D)
    np.savez(tmp_path / "conv3d_deepnetA_ucf.npz", **arrays)
    weights.load.cache_clear()
    assert set(weights.load(weights.C3D)) == set(arrays)
    there = weights.found(weights.C3D)
    assert there.name == "c3d_ucf101 (weights not vouched for)" and len(there.sha256) == 64
    weights.load.cache_clear()
    np.savez(tmp_path / "conv3d_deepnetA_ucf.npz", a=np.array([{}], object))
    with refused("weights._npz"):
        weights.load(weights.C3D)


def test_clips_become_features(arrays):
    params = c3d.from_published(arrays, MEAN, WIDTH, HIDDEN)
    clips = np.random.default_rng(0).integers(0, 256, (1, 16, 20, 24, 3), np.uint8)
    seen = c3d.prepared(clips, params["mean"])
    features = jax.jit(c3d.C3D(WIDTH, HIDDEN).apply)({"params": params["network"]}, seen)
    assert features.shape == (1, HIDDEN) and np.isfinite(features).all() and features.min() >= 0


@pytest.mark.full
@pytest.mark.parametrize("sizes", [(4, 16), (64, 4096)])
def test_torch_agrees(arrays, sizes):
    torch = pytest.importorskip("torch", reason="compares with PyTorch (requirements/peers.txt)")
    functional, rng = torch.nn.functional, np.random.default_rng(0)
    if sizes[0] == 64:
        arrays = {name: rng.standard_normal([
            {4: 64, 8: 128, 16: HIDDEN if name[:2] == "fc" else 256, 32: 512}.get(n, n) for n in array.shape])
            for name, array in arrays.items()}
        wide = {"fc6/W": (4096, 8192), "fc7/W": (4096, 4096), "fc8/W": (101, 4096), "fc6/b": 4096, "fc7/b": 4096}
        arrays |= {name: rng.standard_normal(shape) for name, shape in wide.items()}
        arrays = {name: (x / np.prod(x.shape[1:]) ** 0.5).astype(np.float32) for name, x in arrays.items()}
    params = c3d.from_published(arrays, MEAN, *sizes)
    clips = rng.standard_normal((2, 16, 112, 112, 3)).astype(np.float32)
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    x = torch.tensor(clips).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        for name in CHANNELS:
            x = functional.relu(functional.conv3d(x, tensors[f"{name}/W"], tensors[f"{name}/b"], padding=1))
            if name not in ("conv3a", "conv4a", "conv5a"):
                window = (1, 2, 2) if name == "conv1a" else (2, 2, 2)
                x = functional.max_pool3d(x, window, window, ceil_mode=True)
        x = x.flatten(1)
        for name in ("fc6", "fc7"):
            x = functional.relu(functional.linear(x, tensors[f"{name}/W"], tensors[f"{name}/b"]))
    ours = jax.jit(c3d.C3D(*sizes).apply)({"params": params["network"]}, clips)
    np.testing.assert_allclose(ours, x.numpy(), atol=2e-4 * float(x.abs().max()))
