"""Inception-v3: the names of its tensors, and agreement with torchvision, with and without the changes for FID."""

import jax
import numpy as np
import pytest

from tests.parity import peer
from tests.refusals import refused
from vdm_jax.metrics.detectors import inception, weights


def drawn(variant):
    """Tensors by the names of the published file, drawn at random."""
    rng = np.random.default_rng(0)
    made = {"AuxLogits.fc.weight": np.ones(3), "Conv2d_1a_3x3.bn.num_batches_tracked": np.ones(())}
    for name, tree in inception.expected(variant).items():
        if name == "fc":
            made |= {"fc.weight": rng.standard_normal(tree["kernel"].shape[::-1]),
                     "fc.bias": rng.standard_normal(tree["bias"].shape)}
            continue
        h, w, c, o = tree["conv"]["kernel"].shape
        made[f"{name}.conv.weight"] = rng.standard_normal((o, c, h, w), np.float32)
        made |= {f"{name}.bn.{kind}": rng.uniform(0.5, 1, o) for kind in
                 ("weight", "bias", "running_mean", "running_var")}
    return made


def test_every_tensor_has_its_place():
    variant, sizes = "fid", inception.expected("fid")
    # torchvision's network without the second classifier, with 8 classes more; a scale a channel is folded away.
    counted = sum(leaf.size for leaf in jax.tree.leaves(sizes))
    units = sum(tree["conv"]["bias"].size for name, tree in sizes.items() if name != "fc")
    assert counted + units == 23_834_568 + 8 * 2049
    made = drawn(variant)
    params = inception.from_published(made, variant)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, sizes)
    one = "Mixed_6c.branch7x7_2"
    scale = made[f"{one}.bn.weight"] / np.sqrt(made[f"{one}.bn.running_var"] + 1e-3)
    np.testing.assert_allclose(params[one]["conv"]["kernel"],
                               made[f"{one}.conv.weight"].transpose(2, 3, 1, 0) * scale, rtol=1e-5)
    with refused("inception.from_published.take", f"'{one}.bn.bias'"):
        inception.from_published({name: x for name, x in made.items() if name != f"{one}.bn.bias"}, variant)
    with refused("inception.from_published", "'extra'"):
        inception.from_published(made | {"extra": np.ones(1)}, variant)


def test_weights_that_are_not_here_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path))
    with refused("weights.find", "pt_inception-2015-12-05-6726825d.pth", "github.com", "inception_2015.safetensors"):
        inception.parameters()
    with refused("weights.find", "inception_v3_google-0cc3c7bd.pth"):
        inception.parameters("torchvision")
    with refused("variant", "='v4'"):
        inception.parameters("v4")
    (tmp_path / weights.INCEPTION.file).write_bytes(b"other")
    with refused("weights.verified"):
        inception.parameters()
    with refused("weights.verified"):
        weights.found(weights.INCEPTION)


@pytest.mark.full
@pytest.mark.parametrize("variant", ["torchvision", "fid"])
def test_torchvision_agrees(variant):
    models, torch = peer("torchvision.models"), peer("torch")
    from tests.metrics.detectors.torchvision_models import inception_like

    torch.manual_seed(0)
    model = inception_like(models, variant)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "running_mean" in name:
                tensor.normal_(0, 0.1)
            elif "running_var" in name:
                tensor.uniform_(0.5, 2)
            elif "bn.bias" in name:
                tensor.normal_(0, 0.5)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    images = np.random.default_rng(0).uniform(-1, 1, (2, 299, 299, 3)).astype(np.float32)
    seen = {}
    model.avgpool.register_forward_hook(lambda module, given, out: seen.update(pooled=out.flatten(1)))
    with torch.no_grad():
        logits = model(torch.tensor(images).permute(0, 3, 1, 2))
    apply = jax.jit(inception.Inception(variant).apply)
    pooled, ours = apply({"params": inception.from_published(arrays, variant)}, images)
    np.testing.assert_allclose(pooled, seen["pooled"].numpy(), atol=1e-4 * float(seen["pooled"].abs().max()))
    np.testing.assert_allclose(ours, logits.numpy(), atol=1e-4 * float(logits.abs().max()))
