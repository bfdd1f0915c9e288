"""RIFE's network against PyTorch, and what needs no weights to be known."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.networks.rife import halfway_in_torch, random_tensors
from vdm_jax.generation.editing.interpolation import by_network, from_released
from vdm_jax.networks.frame_interpolation import IFNet, warped
from vdm_jax.weights.tensor_files import lazy


def frames(count, height, width, seed=0):
    return np.random.default_rng(seed).uniform(size=(count, height, width, 3)).astype(np.float32)


@pytest.mark.full
@pytest.mark.parametrize(("size", "zipped"), [((37, 50), True), ((64, 32), False)])
def test_a_released_file_makes_the_frames_of_torch(size, zipped, tmp_path):
    """From the authors' layout, pickled as PyTorch does it today and did before, to frames in [-1, 1]."""
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(array) for name, array in random_tensors().items()}
    torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "flownet.pkl",
               _use_new_zipfile_serialization=zipped)
    ones, others = frames(3, *size), frames(3, *size, seed=1)
    wanted, flows = zip(*[halfway_in_torch(torch, tensors, *(torch.tensor(x).permute(2, 0, 1) for x in pair))
                          for pair in zip(ones, others, strict=True)], strict=True)
    flows = torch.stack(flows).abs()
    assert flows.mean() > 0.5 and flows.max() > 3  # pixels, so that frames are moved, also beyond their borders
    wanted = torch.stack(wanted).permute(0, 2, 3, 1).numpy()
    found = by_network(tmp_path / "flownet.pkl")(2 * ones - 1, 2 * others - 1)
    np.testing.assert_allclose(found / 2 + 0.5, wanted, atol=1e-4)


@pytest.mark.full
def test_flow_and_frame_of_the_network_itself_are_those_of_torch():
    torch = pytest.importorskip("torch")
    arrays = random_tensors(3, 16)
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    one, other = frames(2, 64, 96)
    wanted, flow = halfway_in_torch(torch, tensors, *(torch.tensor(x).permute(2, 0, 1) for x in (one, other)))
    params = from_released(lazy(arrays.items()), "random", 16)
    found = IFNet(16).apply({"params": params}, one[None], other[None])
    np.testing.assert_allclose(found.flow[0], flow.permute(1, 2, 0).numpy(), atol=1e-3, rtol=1e-4)
    np.testing.assert_allclose(found.frame[0], wanted.permute(1, 2, 0).numpy(), atol=1e-4)


@pytest.mark.full
def test_warping_is_grid_sample_of_torch():
    torch = pytest.importorskip("torch")
    picture, flow = frames(2, 9, 14), np.random.default_rng(1).normal(size=(2, 9, 14, 2)).astype(np.float32) * 6
    x = (np.arange(14) + flow[..., 0]) / (13 / 2) - 1
    y = (np.arange(9)[:, None] + flow[..., 1]) / (8 / 2) - 1
    wanted = torch.nn.functional.grid_sample(
        torch.tensor(picture).permute(0, 3, 1, 2), torch.tensor(np.float32(np.stack([x, y], -1))), mode="bilinear",
        padding_mode="border", align_corners=True)
    np.testing.assert_allclose(warped(picture, flow), wanted.permute(0, 2, 3, 1).numpy(), atol=1e-5)


def test_warping_looks_up_along_the_flow_and_repeats_the_border():
    picture = np.arange(20, dtype=np.float32).reshape(1, 4, 5, 1)
    np.testing.assert_array_equal(warped(picture, np.zeros((1, 4, 5, 2), np.float32)), picture)
    right = warped(picture, np.full((1, 4, 5, 2), (1.5, 0), np.float32))[0, ..., 0]
    np.testing.assert_allclose(right[1], [6.5, 7.5, 8.5, 9, 9])
    up = warped(picture, np.full((1, 4, 5, 2), (0, -2.25), np.float32))[0, ..., 0]
    np.testing.assert_allclose(up[:, 2], [2, 2, 2, 2 + 0.75 * 5])


def test_a_network_that_finds_nothing_makes_the_mean(tmp_path):
    """With the last layers zero, flow is zero and both frames count the same; the names say which layers these are."""
    arrays = random_tensors(0, 8)
    arrays |= {name: np.zeros_like(array) for name, array in arrays.items()
               if ".conv1.2." in name or ".conv2.2." in name}
    one, other = frames(2, 32, 64)
    made = IFNet(8).apply({"params": from_released(lazy(arrays.items()), "zeros", 8)}, one[None], other[None])
    assert not made.flow.any() and not made.mask.any()
    np.testing.assert_allclose(made.frame[0], (one + other) / 2, atol=1e-6)


def test_a_known_flow_and_mask():
    """Biases of the last block say the same of the pair both ways round: of the flows the mean of what each says of a
    frame stays, half a pixel down, and of the masks, which contradict each other, nothing."""
    arrays = {name: np.zeros_like(array) for name, array in random_tensors(0, 8).items()}
    arrays["block2.conv1.2.bias"] = np.array([2, 0, -2, 1], np.float32)
    arrays["block2.conv2.2.bias"] = np.array([2], np.float32)
    one, other = frames(2, 32, 32)
    made = IFNet(8).apply({"params": from_released(lazy(arrays.items()), "known", 8)}, one[None], other[None])
    np.testing.assert_allclose(made.flow[0, 5, 7], [0, 0.5, 0, 0.5])
    np.testing.assert_allclose(made.mask, 0)
    between = (one + other) / 2
    np.testing.assert_allclose(made.frame[0, :-1], (between[:-1] + between[1:]) / 2, atol=1e-6)


def test_the_pair_the_other_way_round_makes_the_same_frame():
    params = from_released(lazy(random_tensors(0, 8).items()), "random", 8)
    one, other = frames(2, 32, 32)
    network = jax.jit(lambda a, b: IFNet(8).apply({"params": params}, a[None], b[None]))
    np.testing.assert_allclose(network(one, other).frame, network(other, one).frame, atol=1e-4)
    assert np.abs(network(one, other).frame[0] - (one + other) / 2).max() > 0.1
