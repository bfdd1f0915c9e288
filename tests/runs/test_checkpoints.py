"""Checkpoints: bit-exact round trips over meshes, retention, and every way a directory can be wrong."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.refusals import refused
from vdm_jax.errors import UserError
from vdm_jax.runs.checkpoints import Checkpoints
from vdm_jax.runs.manifest import examine

ROOT = pathlib.Path(__file__).parents[2]


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple
    ema: dict
    key: jax.Array


def mesh_of(*shape):
    names = ("data", "model")[:len(shape)]
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))


def make_state(seed=0, mesh=None, width=8):
    """A small state with everything a real one has: adamw with masked leaves, bfloat16, NaN, a typed key."""
    rng = np.random.default_rng(seed)
    params = {"down": {"kernel": jnp.asarray(rng.standard_normal((16, width)), jnp.float32),
                       "bias": jnp.asarray(rng.standard_normal(width), jnp.bfloat16)},
              "scale": jnp.asarray([np.nan, np.inf, -0.0, 1e-42], jnp.float32)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(
        optax.linear_schedule(0.0, 1e-3, 10), mask=jax.tree.map(lambda leaf: leaf.ndim > 1, params)))
    moments = jax.tree.map(lambda leaf: leaf + 1, optimizer.init(params))
    state = State(step=jnp.int32(seed), params=params, opt_state=moments,
                  ema=jax.tree.map(lambda leaf: leaf * 2, params), key=jax.random.key(seed))
    if mesh is None:
        return state
    return jax.device_put(state, shardings_of(state, mesh))


def shardings_of(state, mesh):
    """Matrices are split over every axis of the mesh, everything else is replicated."""
    split, whole = NamedSharding(mesh, P(*mesh.axis_names)), NamedSharding(mesh, P())
    return jax.tree.map(lambda leaf: split if leaf.ndim == 2 else whole, state)


def abstract(state, mesh=None):
    if mesh is None:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
                        state, shardings_of(state, mesh))


def raw_bytes(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert raw_bytes(a) == raw_bytes(b), path


def save_steps(directory, *steps, **options):
    with Checkpoints(directory, keep=None, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {})


def files_of(directory, step):
    """Name -> size of every file of a checkpoint that its manifest lists."""
    return json.loads((directory / str(step) / "manifest.json").read_text())["sizes"]


def largest(directory, step):
    sizes = files_of(directory, step)
    return directory / str(step) / max(sizes, key=sizes.get)


# Round trips


@pytest.mark.parametrize("target", [(8,), (2, 4), (1,), None], ids=str)
def test_restores_bit_exact_on_another_mesh(tmp_path, target):
    state = make_state(3, mesh_of(4, 2))
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(7, state, {"digest": "abc"}, {"loss": 0.5})
    mesh = None if target is None else mesh_of(*target)
    restored, meta = Checkpoints(tmp_path / "run").restore(abstract(state, mesh))
    assert_same(restored, state)
    if mesh is not None:
        expected = shardings_of(state, mesh)
        assert jax.tree.map(lambda leaf: leaf.sharding, restored) == expected
    jax.random.normal(restored.key)  # a usable typed key
    assert meta["digest"] == "abc" and meta["step"] == 7 and meta["metrics"] == {"loss": 0.5}
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


# Retention


def test_keeps_newest_and_best(tmp_path):
    losses = {10: 3.0, 20: 1.0, 30: float("nan"), 40: 2.0, 50: 2.5}
    with Checkpoints(tmp_path, keep=2, best="loss") as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, make_state(step), {}, {"loss": loss})
        checkpoints.wait()
        assert checkpoints.steps() == [20, 40, 50]
        assert checkpoints.best() == 20 and checkpoints.latest() == 50
    with Checkpoints(tmp_path, keep=1, best="loss") as resumed:  # the scores come back from disk
        resumed.save(60, make_state(60), {})
        resumed.wait()
        assert resumed.steps() == [20, 60]
        assert resumed.best() == 20
    assert Checkpoints(tmp_path, best="loss", mode="max").best() == 20
    assert Checkpoints(tmp_path, best="psnr").best() is None


def test_best_by_maximum_prefers_the_newest_of_equals(tmp_path):
    with Checkpoints(tmp_path, keep=1, best="psnr", mode="max") as checkpoints:
        for step, psnr in ((1, 5.0), (2, 9.0), (3, 9.0), (4, 1.0)):
            checkpoints.save(step, make_state(), {}, {"psnr": psnr})
        checkpoints.wait()
        assert checkpoints.steps() == [3, 4] and checkpoints.best() == 3


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
        checkpoints.discard_after(10)
        assert checkpoints.steps() == [10]
        checkpoints.save(15, make_state(15), {})
        state, _ = restore_after(checkpoints)
        assert state.step == 15 and checkpoints.steps() == [10, 15]


def restore_after(checkpoints):
    checkpoints.wait()
    return checkpoints.restore(abstract(make_state()))


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


@pytest.mark.parametrize("options, message", [({"keep": 0}, ("keep", "=0")), ({"mode": "least"}, ("mode", "='least'"))])
def test_wrong_options(tmp_path, options, message):
    with refused(*message):
        Checkpoints(tmp_path, **options)


# Directories that are not what they should be


def test_empty_or_absent_directory(tmp_path):
    checkpoints = Checkpoints(tmp_path / "absent")
    assert checkpoints.steps() == [] and checkpoints.latest() is None
    with refused("checkpoints.Checkpoints._verified"):
        checkpoints.restore(abstract(make_state()))
    assert not (tmp_path / "absent").exists()
    save_steps(tmp_path / "absent", 1, 2)
    with refused("checkpoints.Checkpoints._verified", "3", "1", "2"):
        checkpoints.restore(abstract(make_state()), step=3)


@pytest.mark.parametrize("content", ["holiday.jpg", "5/frame.png", "5/default/manifest.ocdbt"])
def test_foreign_directory_is_refused_and_untouched(tmp_path, content):
    path = tmp_path / content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    with pytest.raises(UserError, match=f"is not a directory of vdm_jax checkpoints: it holds '{content[0]}"):
        Checkpoints(tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_a_file_is_not_a_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    with refused("checkpoints._refuse_foreign"):
        Checkpoints(tmp_path / "file")


def test_notes_beside_checkpoints_are_tolerated(tmp_path):
    save_steps(tmp_path, 1)
    (tmp_path / "notes.txt").write_text("x")
    assert Checkpoints(tmp_path).steps() == [1]


DAMAGES = {
    "array file cut": (lambda root, big: os.truncate(big, 40), r"has \d+ bytes instead of"),
    "array file gone": (lambda root, big: big.unlink(), r"state/.* is missing"),
    "tree gone": (lambda root, big: (root / "state/_METADATA").unlink(), "state/_METADATA is missing"),
    "meta gone": (lambda root, big: (root / "meta/metadata").unlink(), "meta/metadata is missing"),
    "meta altered": (lambda root, big: flip(root / "meta/metadata"), "meta/metadata has changed"),
    "manifest gone": (lambda root, big: (root / "manifest.json").unlink(), "manifest.json is missing"),
    "manifest cut": (lambda root, big: os.truncate(root / "manifest.json", 60), "manifest.json is not read"),
    "manifest of a later version": (lambda root, big: replace(root / "manifest.json", "checkpoint/2", "checkpoint/3"),
                                    "manifest.json has format 'vdm_jax.checkpoint/3'; permitted"),
}


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def replace(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoint_names_reason_and_earlier_steps(tmp_path, name):
    save_steps(tmp_path, 10, 20, 30)
    damage, reason = DAMAGES[name]
    (tmp_path / "10/manifest.json").unlink()  # damaged too, hence not offered
    damage(tmp_path / "30", largest(tmp_path, 30))
    checkpoints = Checkpoints(tmp_path, keep=3)
    with pytest.raises(UserError, match=reason) as caught:
        checkpoints.restore(abstract(make_state()))
    message = str(caught.value)
    assert f"{tmp_path}/30 is damaged" in message and message.endswith("the intact earlier steps: 20")
    assert "\n" not in message
    assert_same(checkpoints.restore(abstract(make_state()), step=20)[0], make_state(20))
    checkpoints.discard_after(20)  # the way on
    checkpoints.save(30, make_state(31), {})
    assert restore_after(checkpoints)[0].step == 31
    checkpoints.close()


def test_damaged_file_of_orbax_bookkeeping_does_not_matter(tmp_path):
    save_steps(tmp_path, 1)
    os.truncate(tmp_path / "1/_CHECKPOINT_METADATA", 10)
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(abstract(make_state()))[0], make_state(1))
        checkpoints.save(2, make_state(2), {})
    assert Checkpoints(tmp_path).steps() == [1, 2]


@pytest.mark.parametrize("change, message", [
    (lambda s: s.replace(params={**s.params, "up": {"kernel": jax.ShapeDtypeStruct((2,), jnp.float32)}}),
     "1 missing: params/up/kernel$"),
    (lambda s: s.replace(params={"scale": s.params["scale"]}),
     "2 unexpected: params/down/bias, params/down/kernel$"),
    (lambda s: s.replace(ema={**s.ema, "scale": jax.ShapeDtypeStruct((5,), jnp.float32)}),
     r"1 different: ema/scale \(float32\[4\] instead of float32\[5\]\)$"),
    (lambda s: s.replace(ema={**s.ema, "scale": jax.ShapeDtypeStruct((4,), jnp.bfloat16)}),
     r"1 different: ema/scale \(float32\[4\] instead of bfloat16\[4\]\)$"),
    (lambda s: s.replace(key=jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))),
     r"1 different: key \(key<fry>\[\] instead of key<rbg>\[\]\)$"),
], ids=["missing", "unexpected", "shape", "dtype", "key"])
def test_checkpoint_of_another_model(tmp_path, change, message):
    save_steps(tmp_path, 1)
    with pytest.raises(UserError, match="1 is of another model: " + message):
        Checkpoints(tmp_path).restore(change(abstract(make_state())))


def test_long_mismatch_is_abridged(tmp_path):
    save_steps(tmp_path, 1)
    with refused("checkpoints.Checkpoints._check_match") as caught:
        Checkpoints(tmp_path).restore(abstract(make_state(width=16)))
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


# Saves that fail


def big_state(seed):
    """2 MiB that do not compress."""
    return {"w": jnp.asarray(np.random.default_rng(seed).standard_normal(1 << 19), jnp.float32)}


@contextlib.contextmanager
def file_size_limit(size):
    """No file may grow beyond `size` bytes: the write fails as on a full disk, with another number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("asynchronous", [True, False])
def test_no_space_keeps_the_previous_checkpoint(tmp_path, asynchronous, capfd):
    with Checkpoints(tmp_path, keep=1, asynchronous=asynchronous) as checkpoints:
        checkpoints.save(1, big_state(1), {})
        checkpoints.wait()
        with file_size_limit(1 << 16), pytest.raises(UserError, match="2 was not saved.*no space") as caught:
            checkpoints.save(2, big_state(2), {})
            checkpoints.wait()
        assert str(caught.value).endswith("usable steps: 1") and "\n" not in str(caught.value)
        assert os.listdir(tmp_path) == ["1"]  # the half-written files are gone
        assert_same(checkpoints.restore(abstract(big_state(1)))[0], big_state(1))
        checkpoints.save(2, big_state(2), {})  # there is room again
        checkpoints.wait()
        assert checkpoints.steps() == [2]
        assert_same(checkpoints.restore(abstract(big_state(2)))[0], big_state(2))
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(("error", "said"), [
    (ValueError("Failed to write 9 bytes [os_error_code='28']"), False), (OSError(28, "No space left"), False),
    (ValueError("of something else"), True)])
def test_only_the_first_of_writes_that_fail_together_is_reported(error, said, caplog):
    async def fail():
        raise error

    async def forget():
        task = asyncio.ensure_future(fail())
        await asyncio.sleep(0)
        del task
        gc.collect()

    asyncio.run(forget())
    assert ("never retrieved" in caplog.text) is said


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "none", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        checkpoints = Checkpoints(disk / "run", keep=1)
        checkpoints.save(1, big_state(1), {})
        checkpoints.wait()
        (disk / "other").write_bytes(bytes(2 << 20))
        checkpoints.save(2, big_state(2), {})
        with refused("checkpoints.Checkpoints._failures", "2", "1"):
            checkpoints.close()
        assert os.listdir(disk / "run") == ["1"]
        assert_same(checkpoints.restore(abstract(big_state(1)))[0], big_state(1))
        (disk / "other").unlink()
        with checkpoints:
            checkpoints.save(2, big_state(2), {})
        assert checkpoints.steps() == [2]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_no_space_for_the_manifest(tmp_path, monkeypatch):
    """The last file written fails: the step must not appear, although all its arrays are on disk."""
    import vdm_jax.runs.checkpoints as module

    def full(*_):
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), {})
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(module, "write_manifest", full)
            checkpoints.save(2, make_state(2), {})
            with refused("checkpoints.Checkpoints._failures", "2", "1"):
                checkpoints.wait()
        assert os.listdir(tmp_path) == ["1"] and checkpoints.steps() == [1]


def test_leaving_by_an_error_keeps_that_error(tmp_path):
    """A failed background save must not hide the exception that ended the run."""
    with file_size_limit(1 << 16), pytest.raises(KeyError) as caught:
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, big_state(1), {})
            raise KeyError("the run")
    assert "no space left" in caught.value.__notes__[0]


def run_python(code, *arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, text=True, stdout=pipe, stderr=pipe)


def test_killed_save_is_not_a_checkpoint(tmp_path):
    """kill -9 after all arrays are on disk, an instant before the step becomes complete."""
    process = run_python("""
        import os, signal, sys
        import jax.numpy as jnp
        import vdm_jax.runs.checkpoints as module
        checkpoints = module.Checkpoints(sys.argv[1])
        checkpoints.save(1, {"w": jnp.arange(8.0)}, {})
        checkpoints.wait()
        module.write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        checkpoints.save(2, {"w": jnp.zeros(8)}, {})
        checkpoints.wait()
    """, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    assert sorted(os.listdir(tmp_path)) == ["1", "2.orbax-checkpoint-tmp"]
    template = {"w": jax.ShapeDtypeStruct((8,), jnp.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        np.testing.assert_array_equal(checkpoints.restore(template)[0]["w"], np.arange(8.0))
        assert (tmp_path / "2.orbax-checkpoint-tmp").exists()  # reading changes nothing
        checkpoints.save(2, {"w": jnp.ones(8)}, {})
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]
    np.testing.assert_array_equal(Checkpoints(tmp_path).restore(template)[0]["w"], np.ones(8))


def test_a_killed_first_save_does_not_make_the_directory_foreign(tmp_path):
    (tmp_path / "1.orbax-checkpoint-tmp/state").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == []
        checkpoints.save(2, make_state(2), {})
    assert os.listdir(tmp_path) == ["2"]  # what the killed save left is gone


def test_a_killed_deletion_of_an_old_step_does_not_matter(tmp_path):
    """What is left of it may be anything, and goes with the next save."""
    save_steps(tmp_path, 1, 2)
    for part in ("manifest.json", "_CHECKPOINT_METADATA"):
        (tmp_path / "1" / part).unlink()
    shutil.rmtree(tmp_path / "1/meta")
    with Checkpoints(tmp_path, keep=2, best="loss") as checkpoints:
        assert checkpoints.newest_damages() == {} and checkpoints.newest_intact() == 2
        assert_same(checkpoints.restore(abstract(make_state()))[0], make_state(2))
        for step in (3, 4):
            checkpoints.save(step, make_state(step), {}, {"loss": step})
    assert Checkpoints(tmp_path).steps() == [3, 4]


def test_two_processes_save_and_one_restores(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = """
        import sys
        import jax, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        jax.config.update("jax_num_cpu_devices", 2)
        directory, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
        jax.distributed.initialize("127.0.0.1:" + port, num_processes=2, process_id=index)
        from vdm_jax.runs.checkpoints import Checkpoints
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        values = np.arange(32, dtype=np.float32).reshape(8, 4)
        split = NamedSharding(mesh, P("data"))
        state = {"w": jax.make_array_from_callback(values.shape, split, lambda i: values[i])}
        with Checkpoints(directory, keep=1, best="loss") as checkpoints:
            for step in (1, 2, 3):
                checkpoints.save(step, state, {}, {"loss": step})
            checkpoints.save(3, state, {}, {"loss": 3}, force=True)
            checkpoints.wait()
            assert checkpoints.steps() == [1, 3], checkpoints.steps()
            restored, meta = checkpoints.restore(state)
            assert meta["processes"] == 2
            for shard in restored["w"].addressable_shards:
                np.testing.assert_array_equal(shard.data, values[shard.index])
        print("done")
    """
    processes = [run_python(code, tmp_path, port, index) for index in range(2)]
    for process in processes:
        output, errors = process.communicate(timeout=90)
        assert output.split()[-1:] == ["done"], errors
    mesh = mesh_of(8)
    target = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=NamedSharding(mesh, P("data")))}
    restored, meta = Checkpoints(tmp_path).restore(target)
    np.testing.assert_array_equal(restored["w"], np.arange(32, dtype=np.float32).reshape(8, 4))
    assert meta["mesh"] == {"data": 4}


def test_orbax_is_quiet(tmp_path):
    """Orbax reports every step of a save at INFO; who turns absl's INFO on for other libraries sees none."""
    process = run_python("""
        import sys
        from absl import logging
        logging.set_verbosity(logging.INFO)
        import jax.numpy as jnp
        from vdm_jax.runs.checkpoints import Checkpoints
        with Checkpoints(sys.argv[1]) as checkpoints:
            checkpoints.save(1, {"w": jnp.zeros(3)}, {})
        logging.info("mine")
    """, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "mine" in errors and "orbax" not in errors.lower() and "heckpoint" not in errors
