"""safetensors: bit-exact round trips, readable by others, and every wrong file named."""

from __future__ import annotations

import os
import pickle
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.refusals import refused
from vdm_jax.weights.safetensors import flatten, load_params, save_params


def make_params():
    rng = np.random.default_rng(0)
    return {
        "down": {"0": {"kernel": jnp.asarray(rng.standard_normal((3, 4, 5)), jnp.float32)},
                 "bias": jnp.asarray(rng.standard_normal(8), jnp.bfloat16)},
        "table": np.asfortranarray(rng.integers(0, 9, (4, 3), np.int32)),  # not in C order
        "scale": np.float64(np.pi) * np.ones(()),
        "odd": np.array([np.nan, np.inf, -0.0, 1e-42], np.float32),
        "empty": np.zeros((0, 3), np.float16),
        "strided": np.arange(10, dtype=np.int8)[::2],
    }


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for name, array in flatten(expected).items():
        other = flatten(found)[name]
        assert (other.dtype, other.shape) == (array.dtype, array.shape), name
        assert np.asarray(other).tobytes() == np.asarray(array).tobytes(), name


def shapes(params):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)


def test_round_trip_is_bit_exact(tmp_path):
    params = make_params()
    path = tmp_path / "new" / "model.safetensors"
    save_params(path, params, {"config": "abc", "note": "naïve"})
    restored, metadata = load_params(path)
    assert_same(restored, params)
    assert metadata == {"config": "abc", "note": "naïve"}
    assert_same(load_params(path, like=shapes(params))[0], params)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_other_readers_find_flat_names(tmp_path):
    params = {"a": {"b": np.arange(6.0, dtype=np.float32).reshape(2, 3).T}}
    save_params(tmp_path / "m.safetensors", params)
    read = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(read["a/b"], params["a"]["b"])
    safetensors.numpy.save_file({"x/y": np.ones(2), "z": np.zeros(1)}, tmp_path / "theirs.safetensors")
    restored, metadata = load_params(tmp_path / "theirs.safetensors")
    assert metadata == {} and set(restored) == {"x", "z"} and set(restored["x"]) == {"y"}


def test_placed_by_the_sharding_of_like(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    params = {"w": np.arange(32, dtype=np.float32).reshape(8, 4), "b": np.ones(3, np.float32)}
    save_params(tmp_path / "m.safetensors", jax.device_put(params, {"w": split, "b": whole}))
    like = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=split),
            "b": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=whole)}
    restored, _ = load_params(tmp_path / "m.safetensors", like=like)
    assert restored["w"].sharding == split and restored["b"].sharding == whole
    assert_same(restored, params)


def test_stored_in_half_precision(tmp_path):
    params = {"w": np.array([1.0, 1 / 3, 1e-3], np.float32), "n": np.array([70000], np.int32)}
    path = tmp_path / "m.safetensors"
    save_params(path, params, dtype="float16")
    stored, _ = load_params(path)
    assert stored["w"].dtype == np.float16 and stored["n"].dtype == np.int32
    restored, _ = load_params(path, like=shapes(params))
    assert_same(restored, {"w": params["w"].astype(np.float16).astype(np.float32), "n": params["n"]})
    save_params(path, params, dtype="bfloat16")
    assert load_params(path)[0]["w"].dtype == jnp.bfloat16


def test_values_too_large_for_half_precision_are_named(tmp_path):
    params = {"up": {"w": np.array([1.0, -70000.0], np.float32)}}
    with refused("safetensors._stored", "'up/w'", "04"):
        save_params(tmp_path / "m.safetensors", params, dtype="float16")
    assert os.listdir(tmp_path) == []
    infinite = {"w": np.array([np.inf], np.float32)}  # did not become so
    save_params(tmp_path / "m.safetensors", infinite, dtype="float16")


@pytest.mark.parametrize("change, listed", [
    ({"extra": jax.ShapeDtypeStruct((1,), jnp.float32)}, "1 missing: extra"),
    ({"odd": jax.ShapeDtypeStruct((5,), jnp.float32)},
     "1 different: odd (float32[4] instead of float32[5])"),
    ({"table": jax.ShapeDtypeStruct((4, 3), jnp.float32)},
     "1 different: table (int32[4,3] instead of float32[4,3])"),
    ({"down": {"bias": jax.ShapeDtypeStruct((8,), jnp.bfloat16)}}, "1 unexpected: down/0/kernel"),
    ({"down": {str(i): jax.ShapeDtypeStruct((), jnp.int8) for i in range(5)}},
     "5 missing: down/0, down/1, down/2, ...; 2 unexpected: down/0/kernel, down/bias"),
], ids=["missing", "shape", "dtype", "unexpected", "many"])
def test_mismatch_names_parameters(tmp_path, change, listed):
    save_params(tmp_path / "m.safetensors", make_params())
    with refused("safetensors.load_params", str(tmp_path / "m.safetensors")) as error:
        load_params(tmp_path / "m.safetensors", like={**shapes(make_params()), **change})
    assert str(error.value).endswith(f": {listed}")  # nothing else


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".pth", ".pkl"])
def test_pickles_are_refused_unread(tmp_path, suffix):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(Trap()))
    for call in (load_params, lambda path: save_params(path, {})):
        with refused("safetensors._checked_path"):
            call(path)
    renamed = path.rename(tmp_path / "model.safetensors")
    with refused("safetensors._read"):
        load_params(renamed)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("size", [0, 4, 40, -1])
def test_truncated_file(tmp_path, size):
    path = tmp_path / "m.safetensors"
    save_params(path, make_params())
    os.truncate(path, size % path.stat().st_size)
    with refused("safetensors._read", "m.safetensors"):
        load_params(path)


def test_missing_file_and_wrong_suffix(tmp_path):
    with refused("safetensors._read", "m.safetensors"):
        load_params(tmp_path / "m.safetensors")
    with refused("safetensors._checked_path", "'.npz'", "'.safetensors'"):
        load_params(tmp_path / "m.npz")


def test_names_that_do_not_nest(tmp_path):
    path = tmp_path / "m.safetensors"
    for names in (["a", "a/b"], ["a/b", "a"]):
        safetensors.numpy.save_file({name: np.zeros(1) for name in names}, path)
        with refused("safetensors._unflatten"):
            load_params(path)


@pytest.mark.parametrize("params, message", [
    ({"a/b": np.zeros(1)}, ("safetensors.flatten.visit", "'a/b'", "'/'")),
    ({"a": {"": np.zeros(1)}}, ("safetensors.flatten.visit", "''", "'a/'")),
    ({"a": {1: np.zeros(1)}}, ("safetensors.flatten.visit", "1", "'a/'")),
    ({"a": [np.zeros(1)]}, ("safetensors.flatten.visit", "'a'")),
    ({"a": {"b": 1.0}}, ("safetensors.flatten.visit", "'a/b'")),
    ({"key": jax.random.key(0)}, ("safetensors._stored", "'key'")),
], ids=["slash", "empty", "number", "list", "float", "key"])
def test_trees_that_cannot_be_stored(tmp_path, params, message):
    with refused(*message):
        save_params(tmp_path / "m.safetensors", params)
    assert os.listdir(tmp_path) == []


def test_wrong_dtype_and_metadata(tmp_path):
    with refused("dtype", "='int8'"):
        save_params(tmp_path / "m.safetensors", {}, dtype="int8")
    with refused("safetensors.save_params", "['step']", "3"):
        save_params(tmp_path / "m.safetensors", {}, {"step": 3})


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save_params(path, {"w": np.ones(2)})

    def full(arrays, name, metadata):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.numpy, "save_file", full)
        with refused("safetensors._write"):
            save_params(path, {"w": np.zeros(2)})
    assert os.listdir(tmp_path) == ["m.safetensors"]
    np.testing.assert_array_equal(load_params(path)[0]["w"], np.ones(2))
