"""DPT on random weights against transformers: squares and other pictures of other sizes than it was trained with."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from tests.weights.test_peers import brought, check_way_back, close, peer
from vdm_jax.networks.dpt import DPT, DPT_LARGE, DPTNetwork, doubled
from vdm_jax.weights import model_kinds

TINY = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 32,
        "patch_size": 8, "backbone_out_indices": [0, 1, 3, 4], "neck_hidden_sizes": [8, 12, 16, 20],
        "fusion_hidden_size": 16}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def test_doubling_keeps_the_corners():
    x = jnp.arange(3.0).reshape(1, 1, 3, 1, 1) * jnp.ones((1, 1, 3, 2, 1))
    np.testing.assert_allclose(doubled(x)[0, 0, :, 1, 0], np.linspace(0, 2, 6), rtol=1e-6)
    assert doubled(x).shape == (1, 1, 6, 4, 1)


def test_depth_of_other_sizes_depends_on_where_patches_are(filled):
    """Positions are interpolated: with them a picture of one colour has no depth of one value."""
    spec = DPT(size=16, patch=8, width=8, layers=2, heads=2, hidden=16, taps=(0, 1), factors=(2.0, 0.5), widths=(4, 6),
               fusion=4)
    params = filled(DPTNetwork(spec), jnp.zeros((1, 16, 16, 3)))
    params["head_out"]["bias"] += 100.0  # before the last ReLU
    found = DPTNetwork(spec).apply({"params": params}, jnp.ones((1, 24, 40, 3)))
    assert found.shape == (1, 16, 24) and (found > 0).all() and found.std() > 1e-3  # 2 x 3 of half the patches, x 8


def test_bad_sizes_are_refused():
    for field, value, named in (("size", 100, "patch=16"), ("taps", (5, 11, 17, 24), "layers=24"),
                                ("taps", (5, 5, 17, 23), "different"), ("taps", (5, 11, 17), "factors"),
                                ("factors", (4.0, 2.0, 1.5, 0.5), "1 over these"), ("heads", 5, "divisors")):
        with refused(f"DPT.{field}", f"DPT.{field}", named):
            dataclasses.replace(DPT_LARGE, **{field: value})
    with refused("dpt.DPTNetwork.__call__", "multiples of 16"):
        jax.eval_shape(lambda x: DPTNetwork(DPT_LARGE).init(jax.random.key(0), x), jnp.zeros((1, 384, 390, 3)))


def of_theirs(torch, model, images):
    """Their depth of pictures that need not be squares: the class itself takes a square grid of patches for granted."""
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    states = model.dpt(pixels, output_hidden_states=True).hidden_states[1:]
    rows, columns = (side // model.config.patch_size for side in images.shape[1:3])
    states = [states[i] for i in model.config.backbone_out_indices]
    return model.head(model.neck(states, rows, columns))


@pytest.mark.full
@pytest.mark.parametrize("readout", ["project", "add", "ignore"])
def test_the_network_is_that_of_transformers(readout, torch, tmp_path):
    model = peer(torch, "transformers", "DPTForDepthEstimation", {**TINY, "readout_type": readout}, "DPTConfig")
    with torch.no_grad():
        for parameter in [*model.neck.parameters(), *model.head.parameters()]:
            parameter.mul_(2.0)  # so that depth is not the bias of the last layer
    loaded, run = brought(model, tmp_path / "in")
    for size in ((32, 32), (56, 56), (40, 24)) if readout == "project" else ((40, 24),):
        images = np.random.default_rng(size[0]).normal(size=(2, *size, 3)).astype(np.float32)
        theirs, ours = of_theirs(torch, model, images), run(images)
        assert (theirs > 0).float().mean() > 0.2 and theirs.std() > 0.1 * theirs.max()
        close(ours, theirs)
        if size[0] == size[1]:
            close(ours, model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).predicted_depth)
    check_way_back(torch, model, loaded, tmp_path / "out")


@pytest.mark.full
def test_tensors_of_dpt_large_are_those_of_transformers(torch):
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.DPTForDepthEstimation(transformers.DPTConfig(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
            backbone_out_indices=[5, 11, 17, 23], neck_hidden_sizes=[256, 512, 1024, 1024]))
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert model_kinds.inventory(DPT_LARGE) == theirs and sum(map(math.prod, theirs.values())) > 3.4e8
