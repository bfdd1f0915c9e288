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
from vdm_jax.networks.bit import BiT
from vdm_jax.networks.dpt import DPT, DPT_HYBRID, DPT_LARGE, DPTNetwork, doubled
from vdm_jax.weights import model_kinds

TINY = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 32,
        "patch_size": 8, "backbone_out_indices": [0, 1, 3, 4], "neck_hidden_sizes": [8, 12, 16, 20],
        "fusion_hidden_size": 16}
BACKBONE = {"model_type": "bit", "layer_type": "bottleneck", "depths": [2, 1, 2], "hidden_sizes": [32, 64, 96],
            "embedding_size": 8, "num_groups": 4, "global_padding": "same", "embedding_dynamic_padding": True,
            "out_features": ["stage1", "stage2", "stage3"]}
HYBRID = {**TINY, "image_size": 64, "patch_size": 16, "neck_hidden_sizes": [32, 64, 16, 20], "is_hybrid": True,
          "reassemble_factors": [1, 1, 1, 0.5], "backbone_featmap_shape": [1, 96, 4, 4], "backbone_config": BACKBONE}


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


@pytest.mark.parametrize("config", [DPT_LARGE, DPT_HYBRID])
def test_depth_of_the_released_sizes_has_a_number_for_each_pixel(config):
    params = jax.eval_shape(lambda: DPTNetwork(config).init(jax.random.key(0), jnp.zeros((1, 384, 384, 3))))
    found = jax.eval_shape(DPTNetwork(config).apply, params, jnp.zeros((2, 384, 672, 3)))
    assert found.shape == (2, 384, 672)


def test_bad_sizes_are_refused():
    for field, value, named in (("size", 100, "patch=16"), ("taps", (5, 11, 17, 24), "layers=24"),
                                ("taps", (5, 5, 17, 23), "different"), ("taps", (5, 11, 17), "factors"),
                                ("factors", (4.0, 2.0, 1.5, 0.5), "1 over these"), ("heads", 5, "divisors")):
        with refused(f"DPT.{field}", f"DPT.{field}", named):
            dataclasses.replace(DPT_LARGE, **{field: value})
    for field, value, named in (("widths", (256, 512), "three"), ("widths", (256, 512, 1000), "multiples of 32"),
                                ("groups", 12, "divisors")):
        with refused(f"BiT.{field}", f"BiT.{field}", named):
            dataclasses.replace(BiT(), **{field: value})
    with refused("DPT.patch", "permitted: 16"):
        dataclasses.replace(DPT_HYBRID, patch=8)
    with refused("dpt.DPTNetwork.__call__", "multiples of 16"):
        jax.eval_shape(lambda x: DPTNetwork(DPT_LARGE).init(jax.random.key(0), x), jnp.zeros((1, 384, 390, 3)))


def of_theirs(torch, model, images):
    """Their depth of pictures that need not be squares: the class itself takes a square grid of patches for granted."""
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    model.dpt.embeddings.image_size = images.shape[1:3]  # which the hybrid one checks, though it interpolates positions
    out = model.dpt(pixels, output_hidden_states=True)
    rows, columns = (side // model.config.patch_size for side in images.shape[1:3])
    maps = out.intermediate_activations or []
    states = [out.hidden_states[1:][i] for i in model.config.backbone_out_indices[len(maps):]]
    return model.head(model.neck([*maps, *states], rows, columns))


def check_network(torch, options, sizes, tmp_path):
    """Depth of pictures of these sizes, and the folder that is written."""
    model = peer(torch, "transformers", "DPTForDepthEstimation", options, "DPTConfig")
    with torch.no_grad():
        for parameter in [*model.neck.parameters(), *model.head.parameters()]:
            parameter.mul_(2.0)  # so that depth is not the bias of the last layer
        model.head.head[4].bias.add_(400.0 if model.config.is_hybrid else 100.0)  # and the last ReLU leaves most of it
    loaded, run = brought(model, tmp_path / "in")
    for size in sizes:
        images = np.random.default_rng(size[0]).normal(size=(2, *size, 3)).astype(np.float32)
        theirs, ours = of_theirs(torch, model, images), run(images)
        assert (theirs > 0).float().mean() > 0.25 and theirs.std() > 0.05 * theirs.max()
        close(ours, theirs)
        if size[0] == size[1] and (not model.config.is_hybrid or size[0] == model.config.image_size):
            close(ours, model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).predicted_depth)
    check_way_back(torch, model, loaded, tmp_path / "out")
    return loaded.config


@pytest.mark.full
@pytest.mark.parametrize("readout", ["project", "add", "ignore"])
def test_the_network_is_that_of_transformers(readout, torch, tmp_path):
    sizes = ((32, 32), (56, 56), (40, 24)) if readout == "project" else ((40, 24),)
    check_network(torch, {**TINY, "readout_type": readout}, sizes, tmp_path)


@pytest.mark.full
def test_the_hybrid_network_is_that_of_transformers(torch, tmp_path):
    found = check_network(torch, HYBRID, ((64, 64), (96, 64)), tmp_path)
    assert found.backbone == BiT(stem=8, widths=(32, 64, 96), blocks=(2, 1, 2), groups=4) and found.taps == (3, 4)


@pytest.mark.full
@pytest.mark.parametrize("config, least, options", [
    (DPT_LARGE, 342e6, {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
                        "intermediate_size": 4096, "backbone_out_indices": [5, 11, 17, 23],
                        "neck_hidden_sizes": [256, 512, 1024, 1024]}),
    (DPT_HYBRID, 122e6, {"is_hybrid": True, "neck_hidden_sizes": [256, 512, 768, 768],
                         "reassemble_factors": [1, 1, 1, 0.5]})])
def test_tensors_of_the_released_sizes_are_those_of_transformers(config, least, options, torch):
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.DPTForDepthEstimation(transformers.DPTConfig(**options))
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert model_kinds.inventory(config) == theirs and least < sum(map(math.prod, theirs.values())) < least + 2e6
