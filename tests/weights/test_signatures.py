"""Signatures: nested dicts survive them, and differences are named."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vdm_jax.weights.signatures import abstract_dict, mismatch, signatures

PARAMS = {"down": {"kernel": jnp.zeros((3, 4), jnp.bfloat16), "0": {"bias": jnp.zeros(4)}}, "count": jnp.int32(2)}


def test_names_dtypes_and_shapes():
    assert signatures({"net": PARAMS, "keys": (jax.random.key(0), jax.random.split(jax.random.key(1)))}) == {
        "net/down/kernel": "bfloat16[3,4]", "net/down/0/bias": "float32[4]", "net/count": "int32[]",
        "keys/0": "key<fry>[]", "keys/1": "key<fry>[2]"}


def test_a_nested_dict_comes_back():
    abstract = jax.eval_shape(lambda: PARAMS)
    assert abstract_dict(signatures(PARAMS)) == abstract
    assert signatures(abstract) == signatures(PARAMS)


def test_differences_are_named_by_kind_and_abridged():
    found = {"a": "float32[2]", "b": "int32[]", "c": "int32[]"}
    assert mismatch(found, found) == ""
    wanted = {"a": "float32[3]", "b": "int32[]", "w": "int8[]", "x": "int8[]", "y": "int8[]", "z": "int8[]"}
    assert mismatch(found, wanted) == (
        "4 missing: w, x, y, ...; 1 unexpected: c; 1 different: a (float32[2] instead of float32[3])")
