"""LoRA on trees of parameters: what is changed, by how much, and taken out again."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.errors import UserError
from vdm_jax.networks.layers import convolve
from vdm_jax.networks.lora import Adapter, LoRA, adapted, initial_factors, trained_adapter, with_adapters

RNG = np.random.default_rng(0)
PARAMS = {"stem": {"kernel": RNG.normal(size=(1, 3, 3, 4, 6)).astype(np.float32), "bias": np.zeros(6, np.float32)},
          "block": {"query": {"kernel": RNG.normal(size=(6, 8)).astype(np.float32)},
                    "out": {"kernel": RNG.normal(size=(8, 6)).astype(np.float32)}},
          "words": np.zeros((5, 6), np.float32)}
SPECS = (LoRA(rank=2, alpha=1.0, patterns=("/query/", "nothing|block")), LoRA(rank=3, patterns=("stem",)))


def filled(specs=SPECS, seed=1):
    """An adapter none of whose factors is zero."""
    rng = np.random.default_rng(seed)
    factors = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype),
                           initial_factors(specs, PARAMS, jax.random.key(0)))
    return trained_adapter(specs, PARAMS, factors)


def test_new_factors_are_of_matching_kernels_and_change_nothing():
    factors = initial_factors(SPECS, PARAMS, jax.random.key(0))
    pairs = Adapter(factors, {}).pairs
    assert {name: (down.shape, up.shape) for name, (down, up) in pairs.items()} == {
        "block/query": ((6, 2), (2, 8)), "block/out": ((8, 2), (2, 6)),
        "stem": ((1, 3, 3, 4, 3), (1, 1, 1, 3, 6))}
    assert all(np.std(down) > 0.05 and np.abs(down).max() <= 6**-0.5 and not up.any() for down, up in pairs.values())
    same = with_adapters(PARAMS, [(trained_adapter(SPECS, PARAMS, factors), 1.0)])
    jax.tree.map(np.testing.assert_array_equal, same, PARAMS)


def test_layers_of_a_scan_have_factors_each():
    params = {"query": {"kernel": RNG.normal(size=(3, 6, 8)).astype(np.float32)}}
    specs = (LoRA(rank=2, patterns=("query",)),)
    factors = initial_factors(specs, params, jax.random.key(0))
    down, up = Adapter(factors, {}).pairs["query"]
    assert down.shape == (3, 6, 2) and up.shape == (3, 2, 8) and 0.9 * 6**-0.5 < np.abs(down).max() <= 6**-0.5
    up = RNG.normal(size=up.shape).astype(np.float32)
    adapter = Adapter({"query": {"down": {"kernel": down}, "up": {"kernel": up}}}, {"query": 0.5})
    found = with_adapters(params, [(adapter, 2.0)])["query"]["kernel"]
    for i in range(3):
        np.testing.assert_allclose(found[i], params["query"]["kernel"][i] + down[i] @ up[i], rtol=1e-5, atol=1e-5)


def test_the_products_are_added_with_alpha_over_rank():
    adapter = filled()
    found, pairs = with_adapters(PARAMS, [(adapter, 0.8)]), adapter.pairs
    down, up = pairs["block/query"]
    np.testing.assert_allclose(found["block"]["query"]["kernel"],
                               PARAMS["block"]["query"]["kernel"] + 0.8 * 0.5 * down @ up, rtol=1e-5, atol=1e-5)
    down, up = pairs["stem"]  # two convolutions after each other
    x = RNG.normal(size=(1, 1, 5, 5, 4)).astype(np.float32)
    wanted = convolve(x, PARAMS["stem"]["kernel"]) + 0.8 * convolve(convolve(x, down), up)
    np.testing.assert_allclose(convolve(x, found["stem"]["kernel"]), wanted, rtol=1e-4, atol=1e-4)
    assert found["stem"]["bias"] is PARAMS["stem"]["bias"] and found["words"] is PARAMS["words"]


def test_several_add_up_and_are_taken_out_bit_for_bit():
    before = jax.tree.map(np.copy, PARAMS)
    one, other = filled(seed=1), filled(SPECS[1:], seed=2)
    both = with_adapters(PARAMS, [(one, 0.5), (other, -1.5)])
    change = both["stem"]["kernel"] - PARAMS["stem"]["kernel"]
    parts = [weight * (with_adapters(PARAMS, [(adapter, 1.0)])["stem"]["kernel"] - PARAMS["stem"]["kernel"])
             for adapter, weight in ((one, 0.5), (other, -1.5))]
    np.testing.assert_allclose(change, sum(parts), rtol=1e-4, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, PARAMS, before)
    for taken_out in (with_adapters(PARAMS, []), with_adapters(PARAMS, [(one, 0.0), (other, 0.0)])):
        jax.tree.map(np.testing.assert_array_equal, taken_out, before)


def test_sums_are_made_in_float32_and_kept_as_the_kernel_is():
    half = jax.tree.map(lambda a: a.astype(np.float16), PARAMS)
    found = with_adapters(half, [(filled(), 1.0)])["block"]["out"]["kernel"]
    whole = jax.tree.map(lambda a: a.astype(np.float32), half)
    wanted = with_adapters(whole, [(filled(), 1.0)])["block"]["out"]["kernel"]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, wanted.astype(np.float16))


def test_products_are_float32_on_devices_that_would_round_them():
    adapter = filled()
    program = jax.make_jaxpr(lambda params: with_adapters(params, [(adapter, 1.0)]))(PARAMS)
    products = [equation for equation in program.jaxpr.eqns if equation.primitive.name == "dot_general"]
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert len(products) == len(adapter.pairs)
    assert all(product.params["precision"] == highest for product in products)


def test_what_cannot_be():
    with refused("LoRA.rank", "LoRA.rank=0", "permitted: >= 1"):
        LoRA(rank=0)
    with refused("LoRA.alpha", "LoRA.alpha=0", "permitted: > 0"):
        LoRA(alpha=0.0)
    with refused("LoRA.patterns", "LoRA.patterns=()"):
        LoRA(patterns=())
    with refused("lora.adapted", "'cross'", "no kernel matches", "permitted: ", "/stem/kernel"):
        adapted((LoRA(patterns=("block", "cross")),), PARAMS)
    adapter = filled()
    with refused("lora.with_adapters", "stem is not there"):
        with_adapters({"block": PARAMS["block"]}, [(adapter, 1.0)])
    wider = {**PARAMS, "stem": {"kernel": np.zeros((1, 3, 3, 4, 7), np.float32)}}
    with pytest.raises(UserError, match=r"stem has factors \[1, 3, 3, 4, 3\] and \[1, 1, 1, 3, 6\] for a kernel"):
        with_adapters(wider, [(adapter, 1.0)])
    for shape in ((), (6, 0)):  # no rank at all
        empty = Adapter({"out": {"down": {"kernel": np.ones(shape)}, "up": {"kernel": np.ones((0, 5))}}}, {"out": 1.0})
        with refused("lora.with_adapters", "out has factors"):
            with_adapters({"out": {"kernel": np.ones((6, 5), np.float32)}}, [(empty, 1.0)])
