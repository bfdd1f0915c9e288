"""Saves that fail or are killed, of one process and of two."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import shutil
import signal
import socket
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.refusals import refused
from tests.runs.checkpoint_states import (
    abstract,
    assert_same,
    make_state,
    mesh_of,
    run_python,
    save_steps,
)
from vdm_jax.runs.checkpoints import Checkpoints
from vdm_jax.runs.failures import quieten_orbax


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
        with file_size_limit(1 << 16), refused("checkpoints.Checkpoints._failures", "2") as caught:
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

    quieten_orbax()
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
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.newest_damages() == {} and checkpoints.newest_intact() == 2
        assert_same(checkpoints.restore(abstract(make_state()))[0], make_state(2))
        for step in (3, 4):
            checkpoints.save(step, make_state(step), {})
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
        with Checkpoints(directory, keep=2) as checkpoints:
            for step in (1, 2, 3):
                checkpoints.save(step, state, {})
            checkpoints.save(3, state, {}, force=True)
            checkpoints.wait()
            assert checkpoints.steps() == [2, 3], checkpoints.steps()
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
