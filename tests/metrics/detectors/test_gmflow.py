"""GMFlow: its tensors' names, known motion, each part against the loop written out, and all of it against PyTorch."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.metrics.detectors import gmflow

PARAMETERS = 4_680_288  # the published 4.7 million


def random_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors of the published names: scaled by their inputs, those of norms around 0.4, so that features see many."""
    rng, found = np.random.default_rng(seed), {}
    for name, shape in gmflow.expected().items():
        values = rng.normal(size=shape)
        scale = 1 / math.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
        found[name] = np.float32(scale * values + 0.4 * ("norm" in name and name.endswith("weight")))
    return found


@pytest.fixture(scope="module")
def tensors():
    return random_tensors()


def test_names_and_shapes_are_the_published_ones():
    """Written out by hand: what the authors' modules are called."""
    names = {"backbone.conv1.weight": (64, 3, 7, 7), "backbone.conv2.weight": (128, 128, 1, 1),
             "backbone.conv2.bias": (128,)}
    for level, (before, width) in enumerate(((64, 64), (64, 96), (96, 128)), 1):
        for block, inputs in enumerate((before, width)):
            names |= {f"backbone.layer{level}.{block}.conv1.weight": (width, inputs, 3, 3),
                      f"backbone.layer{level}.{block}.conv2.weight": (width, width, 3, 3)}
        if level > 1:
            names |= {f"backbone.layer{level}.0.downsample.0.weight": (width, before, 1, 1),
                      f"backbone.layer{level}.0.downsample.0.bias": (width,)}
    for layer in range(6):
        for kind in ("self_attn", "cross_attn_ffn"):
            start = f"transformer.layers.{layer}.{kind}."
            names |= {f"{start}{part}.weight": (128, 128) for part in ("q_proj", "k_proj", "v_proj", "merge")}
            norms = ("norm1",) if kind == "self_attn" else ("norm1", "norm2")
            names |= {f"{start}{norm}.{part}": (128,) for norm in norms for part in ("weight", "bias")}
        names |= {f"{start}mlp.0.weight": (1024, 256), f"{start}mlp.2.weight": (128, 1024)}
    for part in ("q_proj", "k_proj"):
        names |= {f"feature_flow_attn.{part}.weight": (128, 128), f"feature_flow_attn.{part}.bias": (128,)}
    names |= {"upsampler.0.weight": (256, 130, 3, 3), "upsampler.0.bias": (256,),
              "upsampler.2.weight": (576, 256, 1, 1), "upsampler.2.bias": (576,)}
    assert gmflow.expected() == names
    assert sum(math.prod(shape) for shape in names.values()) == PARAMETERS


def test_tensors_become_parameters(tensors):
    params = gmflow.from_published(tensors)
    convolution = params["backbone"]["layer2_0"]["downsample_0"]["kernel"]
    np.testing.assert_array_equal(convolution[0, 0], tensors["backbone.layer2.0.downsample.0.weight"][..., 0, 0].T)
    np.testing.assert_array_equal(params["upsampler_0"]["kernel"][2, 1],
                                  tensors["upsampler.0.weight"][:, :, 2, 1].T)
    layer = params["transformer"]["layers_3"]["cross_attn_ffn"]
    start = "transformer.layers.3.cross_attn_ffn."
    np.testing.assert_array_equal(layer["mlp_0"]["kernel"], tensors[f"{start}mlp.0.weight"].T)
    np.testing.assert_array_equal(layer["norm2"]["scale"], tensors[f"{start}norm2.weight"])
    np.testing.assert_array_equal(params["feature_flow_attn"]["k_proj"]["bias"],
                                  tensors["feature_flow_attn.k_proj.bias"])


def test_other_tensors_are_refused(tensors):
    def without(name):
        return {key: array for key, array in tensors.items() if key != name}

    name = "transformer.layers.5.self_attn.merge.weight"
    with refused("gmflow.from_published", name, "is missing", "(128, 128)"):
        gmflow.from_published(without(name))
    with refused("gmflow.from_published", name, "has shape (64, 128)"):
        gmflow.from_published(tensors | {name: np.zeros((64, 128), np.float32)})
    with refused("gmflow.from_published", "'backbone.trident_conv.weight' is not part", "one scale", "123 known"):
        gmflow.from_published(tensors | {"backbone.trident_conv.weight": np.zeros((128, 128, 3, 3), np.float32)})
    for wrong in (np.zeros((128, 128), np.int64), np.full((128, 128), np.nan, np.float32)):
        with refused("gmflow.from_published", name, "no finite number"):
            gmflow.from_published(tensors | {name: wrong})


def test_global_matching_finds_a_translation():
    """Every place has a feature of its own, 2 features further right and 1 further down in the other frame."""
    height, width, dx, dy = 6, 8, 2, 1
    one = 100 * np.eye(height * width, dtype=np.float32).reshape(1, height, width, -1)
    other = np.roll(one, (dy, dx), (1, 2))
    forward, backward = (np.asarray(flow)[0] for flow in gmflow.matched(one, other))
    np.testing.assert_allclose(forward[:height - dy, :width - dx], np.broadcast_to([dx, dy], (5, 6, 2)), atol=1e-4)
    np.testing.assert_allclose(backward[dy:, dx:], np.broadcast_to([-dx, -dy], (5, 6, 2)), atol=1e-4)


def test_matching_is_a_mean_of_places():
    rng = np.random.default_rng(0)
    one, other = (rng.normal(size=(2, 4, 6, 5)).astype(np.float32) for _ in range(2))
    for (first, second), found in zip(((one, other), (other, one)), gmflow.matched(one, other), strict=True):
        for batch, y, x in np.ndindex(2, 4, 6):
            weights = np.exp((second[batch] * first[batch, y, x]).sum(-1) / math.sqrt(5))
            weights /= weights.sum()
            place = [(weights * np.arange(6)).sum(), (weights * np.arange(4)[:, None]).sum()]
            np.testing.assert_allclose(found[batch, y, x], np.array(place) - [x, y], atol=1e-5)


@pytest.mark.parametrize("shifted", [False, True])
def test_windows_see_themselves_alone(shifted):
    """Each feature sees those of its window that are next to it: not beyond a border of the picture."""
    rng = np.random.default_rng(1)
    height, width, channels = 6, 8, 4  # windows of 3 x 4, shifted by 1 and 2
    q, k, v = rng.normal(size=(3, 1, height, width, channels)).astype(np.float32)
    rows, columns = ([0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1])
    if shifted:  # from one window to the next, and over the border
        rows, columns = ([0, 1, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1, 2, 2])
    found = np.asarray(gmflow.in_windows(q, k, v, shifted))
    for y, x in np.ndindex(height, width):
        sees = [(i, j) for i, j in np.ndindex(height, width) if (rows[i], columns[j]) == (rows[y], columns[x])]
        weights = np.exp([q[0, y, x] @ k[0, i, j] / math.sqrt(channels) for i, j in sees])
        expected = np.sum([w * v[0, i, j] for w, (i, j) in zip(weights, sees, strict=True)], axis=0) / weights.sum()
        np.testing.assert_allclose(found[0, y, x], expected, atol=1e-5)


def test_positions_are_those_of_the_window():
    """Sines in even channels and cosines in odd ones, of the row and then of the column, from 1 to the last one."""
    found = gmflow.positions(6, 8)
    for y, x, channel in ((0, 0, 0), (2, 3, 5), (4, 7, 70), (5, 1, 127)):
        place, size = ((y % 3 + 1, 3) if channel < 64 else (x % 4 + 1, 4))
        angle = 2 * math.pi * place / size / 10_000 ** ((channel % 64) // 2 * 2 / 64)
        assert found[y, x, channel] == pytest.approx((math.cos if channel % 2 else math.sin)(angle), abs=1e-5)


def test_propagation_averages_by_likeness(tensors):
    """With keys made of the queries."""
    rng = np.random.default_rng(2)
    x, flow = (rng.normal(size=(1, 3, 4, size)).astype(np.float32) for size in (128, 2))
    params = gmflow.from_published(tensors)["feature_flow_attn"]
    found = np.asarray(gmflow.Propagation().apply({"params": params}, x, flow))

    def projected(name, values):
        start = f"feature_flow_attn.{name}_proj."
        return values @ tensors[f"{start}weight"].T + tensors[f"{start}bias"]

    queries = projected("q", x.reshape(12, 128))
    scores = np.exp(queries @ projected("k", queries).T / math.sqrt(128))
    np.testing.assert_allclose(found.reshape(12, 2), scores / scores.sum(1, keepdims=True) @ flow.reshape(12, 2),
                               atol=1e-4)


def test_upsampling_is_a_convex_combination_of_neighbours():
    rng = np.random.default_rng(3)
    flow, logits = (rng.normal(size=(1, 2, 3, size)).astype(np.float32) for size in (2, 576))
    found = np.asarray(gmflow.upsampled(flow, logits))[0]
    for row, column in np.ndindex(16, 24):
        (y, i), (x, j) = divmod(row, 8), divmod(column, 8)
        weights, total = [], np.zeros(2)
        for neighbour in range(9):
            weights.append(math.exp(logits[0, y, x, 64 * neighbour + 8 * i + j]))
            there = (y + neighbour // 3 - 1, x + neighbour % 3 - 1)
            if 0 <= there[0] < 2 and 0 <= there[1] < 3:
                total += weights[-1] * 8 * flow[0, there[0], there[1]]
        np.testing.assert_allclose(found[row, column], total / sum(weights), atol=1e-5)


def test_both_ways_are_one_way_of_frames_exchanged(tensors):
    """And frames are padded by their borders, half on each side."""
    params, rng = gmflow.from_published(tensors), np.random.default_rng(4)
    one, other = rng.uniform(0, 255, (2, 1, 41, 36, 3)).astype(np.float32)
    forward, backward = gmflow.flows(params, one, other)
    again = gmflow.flows(params, other, one)
    np.testing.assert_allclose(forward, again[1], atol=1e-3)
    np.testing.assert_allclose(backward, again[0], atol=1e-3)
    assert np.abs(forward - backward).max() > 0.1
    padded = [np.pad(frame, ((0, 0), (3, 4), (6, 6), (0, 0)), "edge") for frame in (one, other)]
    np.testing.assert_allclose(gmflow.flows(params, *padded)[0][:, 3:-4, 6:-6], forward, atol=1e-3)


@pytest.mark.full
@pytest.mark.parametrize("size", [(40, 56), (48, 64)])
def test_torch_agrees(tensors, size):
    """The network written out with PyTorch's functions, its windows as masks of all pairs of features."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch (requirements/peers.txt)")
    frames = np.random.default_rng(5).uniform(0, 255, (2, 1, *size, 3)).astype(np.float32)
    frames[1, :, 3:, 5:] = frames[0, :, :-3, :-5]
    expected = TorchFlow(torch, tensors).both(*frames)
    found = gmflow.flows(gmflow.from_published(tensors), *map(jnp.asarray, frames))
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(theirs).max() > 1
        np.testing.assert_allclose(np.asarray(ours)[0], theirs, rtol=0, atol=1e-3)


class TorchFlow:
    """The network, by the published names of its tensors, in float64."""

    def __init__(self, torch, tensors):
        self.torch, self.functional = torch, torch.nn.functional
        self.tensors = {name: torch.tensor(array).double() for name, array in tensors.items()}

    def both(self, one, other):
        """Flow [H, W, 2] both ways of frames [1, H, W, 3] in [0, 255]."""
        torch, size = self.torch, one.shape[1:3]
        before = [(-side % 16) // 2 for side in size]
        after = [-side % 16 - start for side, start in zip(size, before, strict=True)]
        x = torch.tensor(np.concatenate([one, other])).double().permute(0, 3, 1, 2)
        x = self.functional.pad(x, (before[1], after[1], before[0], after[0]), mode="replicate")
        mean, deviation = (torch.tensor(values).double()[:, None, None] for values in (
            (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        x = self.encoded((x / 255 - mean) / deviation)
        flow, x = self.flow(x)
        flow = self.larger(flow, x)[:, :, before[0]:before[0] + size[0], before[1]:before[1] + size[1]]
        return flow.permute(0, 2, 3, 1).numpy()

    def convolution(self, x, name, stride=1):
        weight = self.tensors[f"{name}.weight"]
        return self.functional.conv2d(x, weight, self.tensors.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    def linear(self, x, name):
        return self.functional.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def norm(self, x, name):
        return self.functional.layer_norm(x, (128,), self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def encoded(self, x):
        norm, relu = self.functional.instance_norm, self.functional.relu
        x = relu(norm(self.convolution(x, "backbone.conv1", 2)))
        for level in (1, 2, 3):
            for block in (0, 1):
                name, stride = f"backbone.layer{level}.{block}", 2 if level > 1 and block == 0 else 1
                y = relu(norm(self.convolution(x, f"{name}.conv1", stride)))
                y = relu(norm(self.convolution(y, f"{name}.conv2")))
                if f"{name}.downsample.0.weight" in self.tensors:
                    x = norm(self.convolution(x, f"{name}.downsample.0", stride))
                x = relu(x + y)
        return self.convolution(x, "backbone.conv2")

    def flow(self, x):
        """Flow of features, propagated, and the features after the transformer."""
        torch, (height, width) = self.torch, x.shape[2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        x = x + self.positions(rows % (height // 2), columns % (width // 2), height // 2, width // 2)
        x = x.flatten(2).transpose(1, 2)
        masks = [self.mask(rows.flatten(), columns.flatten(), height, width, shifted) for shifted in (False, True)]
        for layer in range(6):
            name, others = f"transformer.layers.{layer}.", x.flip(0)
            x = self.attended(x, x, f"{name}self_attn", masks[layer % 2])
            x = self.attended(x, others, f"{name}cross_attn_ffn", masks[layer % 2])
        places = torch.stack([columns, rows], -1).reshape(-1, 2).double()
        scores = x[0] @ x[1].T / math.sqrt(128)
        flow = torch.stack([torch.softmax(each, -1) @ places - places for each in (scores, scores.T)])
        queries = self.linear(x, "feature_flow_attn.q_proj")
        keys = self.linear(queries, "feature_flow_attn.k_proj")
        flow = torch.softmax(queries @ keys.transpose(1, 2) / math.sqrt(128), -1) @ flow
        return [y.transpose(1, 2).unflatten(2, (height, width)) for y in (flow, x)]

    def positions(self, rows, columns, height, width):
        torch, parts = self.torch, []
        for place, size in ((rows, height), (columns, width)):
            angle = 2 * math.pi * (place + 1).double() / (size + 1e-6)
            for channel in range(64):
                value = angle / 10_000 ** (2 * (channel // 2) / 64)
                parts.append(torch.cos(value) if channel % 2 else torch.sin(value))
        return torch.stack(parts)

    def mask(self, rows, columns, height, width, shifted):
        """-inf between windows, -100 between what only the shift brings into one."""
        keys = []
        for place, size in ((rows, height), (columns, width)):
            window = size // 2
            shift = window // 2 if shifted else 0
            rolled = (place - shift) % size
            keys.append((rolled // window, (rolled >= size - shift).long()))
        same = [[(part[:, None] == part[None]) for part in parts] for parts in zip(*keys, strict=True)]
        apart = self.torch.where(same[1][0] & same[1][1], 0.0, -100.0)
        return self.torch.where(same[0][0] & same[0][1], apart, -math.inf).double()

    def attended(self, source, target, name, mask):
        torch = self.torch
        query, key, value = (self.linear(x, f"{name}.{part}_proj") for x, part in (
            (source, "q"), (target, "k"), (target, "v")))
        found = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(128) + mask, -1) @ value
        message = self.norm(self.linear(found, f"{name}.merge"), f"{name}.norm1")
        if f"{name}.mlp.0.weight" in self.tensors:
            message = self.linear(torch.cat([source, message], -1), f"{name}.mlp.0")
            message = self.norm(self.linear(self.functional.gelu(message), f"{name}.mlp.2"), f"{name}.norm2")
        return source + message

    def larger(self, flow, x):
        logits = self.functional.relu(self.convolution(self.torch.cat([flow, x], 1), "upsampler.0"))
        logits = self.convolution(logits, "upsampler.2").unflatten(1, (9, 64))
        weights = self.functional.pixel_shuffle(self.torch.softmax(logits, 1).flatten(1, 2), 8)
        around = self.functional.unfold(8 * flow, 3, padding=1).unflatten(1, (2, 9)).unflatten(3, flow.shape[2:])
        around = around.repeat_interleave(8, 3).repeat_interleave(8, 4)
        return (weights[:, None] * around).sum(2)
