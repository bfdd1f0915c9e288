"""Features do not depend on batches and devices, and no clip is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.metrics.detectors import weights
from vdm_jax.metrics.extraction import Extractor, detector_devices
from vdm_jax.metrics.fvd import i3d_features


def network(params, clips):
    features = jnp.tanh(jnp.einsum("bthwc,cd->bd", clips / 255.0, params["kernel"]))
    return {"mean": features, "frames": clips.mean((2, 3, 4))}


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).integers(0, 256, (19, 2, 4, 4, 3), np.uint8)


PARAMS = {"kernel": np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32) / 50}


def test_eight_devices_give_what_one_gives(clips):
    assert len(jax.devices()) == 8
    one = Extractor(network, PARAMS, 4, jax.devices()[:1])(clips)
    seen = []
    eight = Extractor(network, PARAMS, 2, jax.devices())
    many = eight(iter(clips), seen.append)
    assert eight.rows == 16 and seen == [16, 19] and len(many["mean"]) == 19
    for name in one:
        np.testing.assert_allclose(many[name], one[name], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(one["mean"], network(PARAMS, clips)["mean"], rtol=1e-5, atol=1e-6)


def test_batches_are_split_over_the_devices():
    seen = Extractor(lambda params, x: x + params, np.float32(1), 2, jax.devices())
    assert seen._split.num_devices == 8 and seen._split.shard_shape((16, 3)) == (2, 3)
    assert len(detector_devices()) == 1 and detector_devices()[0].platform == "cpu"


def test_a_batch_that_is_not_full_brings_no_new_program_unless_it_comes_first(clips):
    extractor, seen = Extractor(network, PARAMS, 4), []
    apply = extractor._apply
    extractor._apply = lambda params, batch: seen.append(len(batch)) or apply(params, batch)
    small = extractor(clips[:2])
    np.testing.assert_allclose(extractor(clips[:11])["mean"][:2], small["mean"], rtol=1e-6, atol=1e-6)
    extractor(clips[:1])
    assert seen == [2, 4, 4, 4, 2]


def test_bad_requests_are_refused(clips):
    extractor = Extractor(network, PARAMS, 4)
    with refused("extraction.Extractor.__call__"):
        extractor([])
    with refused("extraction.Extractor.__call__", "[2, 4, 4, 3]", "[1, 4, 4, 3]"):
        extractor([clips[0], clips[0][:1]])
    with refused("batch_size", "=0"):
        Extractor(network, PARAMS, 0)


@pytest.mark.full
def test_i3d_on_eight_devices(trained):
    trained(weights.I3D)
    clips = np.random.default_rng(0).integers(0, 256, (3, 9, 32, 32, 3), np.uint8)
    one = i3d_features(clips, "bilinear_tf1", batch_size=1, devices=jax.devices()[:1])
    many = i3d_features(clips, "bilinear_tf1", batch_size=1, devices=jax.devices())
    np.testing.assert_allclose(many, one, atol=1e-4)
