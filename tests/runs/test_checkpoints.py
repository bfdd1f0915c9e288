"""Checkpoints: bit-exact round trips over meshes, and which stay."""

from __future__ import annotations

import collections
import hashlib
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.refusals import refused
from tests.runs.checkpoint_states import (
    abstract,
    assert_same,
    flip,
    largest,
    make_state,
    mesh_of,
    restore_after,
    save_steps,
    shardings_of,
)
from vdm_jax.errors import UserError
from vdm_jax.runs.checkpoints import Checkpoints
from vdm_jax.runs.manifest import examine


@pytest.mark.parametrize("target", [(8,), (2, 4), (1,), None], ids=str)
def test_restores_bit_exact_on_another_mesh(tmp_path, target):
    state = make_state(3, mesh_of(4, 2))
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(7, state, {"digest": "abc"})
    mesh = None if target is None else mesh_of(*target)
    restored, meta = Checkpoints(tmp_path / "run").restore(abstract(state, mesh))
    assert_same(restored, state)
    if mesh is not None:
        expected = shardings_of(state, mesh)
        assert jax.tree.map(lambda leaf: leaf.sharding, restored) == expected
    jax.random.normal(restored.key)  # a usable typed key
    assert meta["digest"] == "abc" and meta["step"] == 7
    assert meta["mesh"] == {"data": 4, "model": 2} and meta["processes"] == 1
    assert meta["versions"]["jax"] == jax.__version__
    assert set(meta["versions"]) == {"vdm_jax", "jax", "flax", "orbax"}


def test_restores_from_arrays_as_template(tmp_path):
    state = make_state(1, mesh_of(8))
    save_steps(tmp_path, 1)
    restored, _ = Checkpoints(tmp_path).restore(jax.tree.map(jnp.zeros_like, state))
    assert_same(restored, state)
    assert restored.params["down"]["kernel"].sharding == state.params["down"]["kernel"].sharding


def test_asynchronous_save_survives_donation(tmp_path):
    """The loop donates the state at once; what is saved must be the values at the time of `save`."""
    state = {"w": jnp.arange(1 << 18, dtype=jnp.float32)}
    expected = np.asarray(state["w"]).copy()
    update = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * -3, tree), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(3):
            state = update(state)
        checkpoints.wait()
        assert checkpoints.steps() == [1]
        restored, _ = checkpoints.restore(abstract(state))
    np.testing.assert_array_equal(restored["w"], expected)


def test_restores_one_part_without_the_rest(tmp_path):
    state = make_state(2, mesh_of(8))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state, {"digest": "d"})
        checkpoints.wait()
        ema, meta = checkpoints.restore_subtree("ema")
        assert_same(ema, state.ema)
        assert meta["digest"] == "d"
        mesh = mesh_of(2, 4)
        params, _ = checkpoints.restore_subtree("params", abstract(state.params, mesh))
        assert_same(params, state.params)
        assert params["down"]["kernel"].sharding == NamedSharding(mesh, P("data", "model"))
        with refused("checkpoints.Checkpoints.restore_subtree", "'average'", "opt_state"):
            checkpoints.restore_subtree("average")
        other = {**abstract(state.ema), "up": jax.ShapeDtypeStruct((1,), jnp.float32)}
        with refused("checkpoints.Checkpoints._check_match", "1"):
            checkpoints.restore_subtree("ema", other)


def test_damage_anywhere_is_noticed_by_whoever_reads_one_part(tmp_path):
    """Arrays share files, so that a checkpoint is intact or not; also beyond the first piece that is hashed."""
    rng = np.random.default_rng(0)
    state = {"ema": {"w": jnp.asarray(rng.standard_normal(8))},
             "opt_state": {"m": jnp.asarray(rng.standard_normal(5 << 20), jnp.float32)}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    path = largest(tmp_path, 1)
    assert path.stat().st_size > 17 << 20
    flip(path)
    for name in state:
        with refused("checkpoints.Checkpoints._verified"):
            checkpoints.restore_subtree(name)
    flip(path)
    assert_same(checkpoints.restore_subtree("ema")[0], state["ema"])


def test_each_of_several_readers_hashes_its_share(tmp_path):
    """Together they notice what one that reads alone does."""
    save_steps(tmp_path, 1)
    flip(largest(tmp_path, 1))
    root = epath.Path(tmp_path / "1")
    damages = [examine(root, share=(index, 3))[1] for index in range(3)]
    assert [d for d in damages if d] == [examine(root)[1]] and "has changed" in examine(root)[1]


@pytest.mark.full
def test_a_flip_of_any_byte_is_refused_or_does_not_matter(tmp_path):
    state = {"ema": jnp.asarray(np.random.default_rng(0).standard_normal(1 << 19), jnp.float32)}
    with Checkpoints(tmp_path, owner={"run": "a", "stage": "base"}) as checkpoints:
        checkpoints.save(1, state, {"digest": "abc"})
    rng, refused = np.random.default_rng(1), collections.Counter()
    for path in (p for p in (tmp_path / "1").rglob("*") if p.is_file()):
        data = path.read_bytes()
        for place in rng.integers(len(data), size=60):
            changed = bytearray(data)
            changed[place] ^= int(rng.integers(1, 256))
            path.write_bytes(bytes(changed))
            try:
                found, meta = checkpoints.restore(abstract(state), 1)
                assert_same(found, state)
                assert meta["digest"] == "abc"
            except UserError:
                refused[path.name] += 1
        path.write_bytes(data)
    assert all(count >= 59 for name, count in refused.items() if name != "manifest.json")  # spaces there do not matter
    assert len(refused) >= 4 and refused["manifest.json"] > 30


def test_exchanged_and_renamed_checkpoints_are_refused(tmp_path):
    for run in "ab":
        with Checkpoints(tmp_path / run, owner={"run": run, "stage": "base"}) as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, make_state(step), {})
    a, b = tmp_path / "a", tmp_path / "b"
    (a / "2").rename(tmp_path / "2")
    (b / "2").rename(a / "2")
    with refused("checkpoints.Checkpoints._verified", "2", "'b'", "'a'", "1"):
        Checkpoints(a, owner={"run": "a", "stage": "base"}).restore(abstract(make_state()))
    with refused("checkpoints.Checkpoints._verified", "'base'", "'spatial'"):
        Checkpoints(a, owner={"run": "b", "stage": "spatial"}).restore(abstract(make_state()))
    (b / "1").rename(b / "2")
    with refused("checkpoints.Checkpoints._verified", "2", "1"):
        Checkpoints(b, owner={"run": "b"}).restore(abstract(make_state()))


def test_a_checkpoint_of_an_older_version_is_read_with_a_warning(tmp_path, caplog):
    save_steps(tmp_path, 1)
    path = tmp_path / "1" / "manifest.json"
    new = json.loads(path.read_text())
    hashes = {name: hashlib.sha256((tmp_path / "1" / name).read_bytes()).hexdigest() for name in new["sizes"]}
    path.write_text(json.dumps({"format": "vdm_jax.checkpoint/1", "step": 1, "sizes": new["sizes"], "sha256": hashes,
                                "arrays": new["arrays"]}))
    assert_same(Checkpoints(tmp_path, owner={"run": "a"}).restore(abstract(make_state()))[0], make_state(1))
    assert "written by an older version" in caplog.text
    flip(tmp_path / "1/meta/metadata")
    with refused("checkpoints.Checkpoints._verified"):
        Checkpoints(tmp_path).restore(abstract(make_state()))


@pytest.mark.parametrize("name", ["[x]", "a\\b", "new\nline", "co:lon", "-dash", "per%20cent", "sp ace", "caf\udce9",
                                  "q?*"])
def test_any_name_of_a_directory_is_read_again(tmp_path, name):
    directory = tmp_path / name / "checkpoints"
    for step in (1, 2):
        with Checkpoints(directory, keep=1) as checkpoints:
            checkpoints.save(step, {"ema": {"w": jnp.full(4, step)}}, {})
    assert os.listdir(os.fsencode(directory)) == [b"2"]
    assert Checkpoints(directory).restore_subtree("ema")[0]["w"].tolist() == [2] * 4


@pytest.mark.parametrize("keep, left", [(2, [40, 50, 60]), (1, [50, 60]), (None, [10, 20, 40, 50, 60])])
def test_the_newest_stay(tmp_path, keep, left):
    with Checkpoints(tmp_path, keep=keep) as checkpoints:
        for step in (10, 20, 40, 50):
            checkpoints.save(step, make_state(step), {})
        checkpoints.wait()
        assert checkpoints.steps() == left[:-1] and checkpoints.latest() == 50
    with Checkpoints(tmp_path, keep=len(left)) as resumed:
        resumed.save(60, make_state(60), {})
        resumed.wait()
        assert resumed.steps() == left


def test_an_existing_or_newer_step_is_refused(tmp_path):
    with Checkpoints(tmp_path, keep=None) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, make_state(step), {})
        with refused("checkpoints.Checkpoints._make_room", "30"):
            checkpoints.save(30, make_state(), {})
        with refused("checkpoints.Checkpoints._make_room", "15", "30"):
            checkpoints.save(15, make_state(), {}, force=True)
        checkpoints.save(30, make_state(99), {}, force=True)
        state, _ = restore_after(checkpoints)
        assert state.step == 99
        assert checkpoints.steps() == [10, 20, 30]


def test_reserved_meta_and_unserialisable_meta_are_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match="meta\\['step'\\]"):
        checkpoints.save(1, make_state(), {"step": 4})
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoints.save(1, make_state(), {"config": object()})
    checkpoints.save(1, make_state(), {"config": {"a": [1, 2.5, None]}})
    checkpoints.wait()
    assert checkpoints.meta()["config"] == {"a": [1, 2.5, None]}
    checkpoints.close()


def test_keeping_none_is_refused(tmp_path):
    with refused("keep", "=0"):
        Checkpoints(tmp_path, keep=0)
