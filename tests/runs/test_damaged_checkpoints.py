"""Directories of checkpoints that are not what they should be, and states that do not fit."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import pytest

from tests.refusals import refused
from tests.runs.checkpoint_states import (
    abstract,
    assert_same,
    flip,
    largest,
    make_state,
    restore_after,
    save_steps,
)
from vdm_jax.runs.checkpoints import Checkpoints


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
    with refused("checkpoints._refuse_foreign", f"{content[0]}"):
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
    "array file cut": (lambda root, big: os.truncate(big, 40), ("state/", " 40 bytes")),
    "array file gone": (lambda root, big: big.unlink(), ("state/", "missing")),
    "tree gone": (lambda root, big: (root / "state/_METADATA").unlink(), ("state/_METADATA", "missing")),
    "meta gone": (lambda root, big: (root / "meta/metadata").unlink(), ("meta/metadata", "missing")),
    "meta altered": (lambda root, big: flip(root / "meta/metadata"), ("meta/metadata", "changed")),
    "manifest gone": (lambda root, big: (root / "manifest.json").unlink(), ("manifest.json", "missing")),
    "manifest cut": (lambda root, big: os.truncate(root / "manifest.json", 60), ("manifest.json", "not readable")),
    "manifest of a later version": (lambda root, big: replace(root / "manifest.json", "checkpoint/2", "checkpoint/3"),
                                    ("manifest.json", "'vdm_jax.checkpoint/3'; permitted: 'vdm_jax.checkpoint/2'")),
}


def replace(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoint_names_reason_and_earlier_steps(tmp_path, name):
    save_steps(tmp_path, 10, 20, 30)
    damage, named = DAMAGES[name]
    (tmp_path / "10/manifest.json").unlink()  # damaged too, hence not offered
    damage(tmp_path / "30", largest(tmp_path, 30))
    checkpoints = Checkpoints(tmp_path, keep=3)
    with refused("checkpoints.Checkpoints._verified", f"{tmp_path}/30 ", "permitted: --damaged skip", *named) as caught:
        checkpoints.restore(abstract(make_state()))
    assert str(caught.value).endswith(": 20") and "\n" not in str(caught.value)  # the one intact earlier step
    assert_same(checkpoints.restore(abstract(make_state()), step=20)[0], make_state(20))
    checkpoints.save(30, make_state(31), {}, force=True)  # the way on
    assert restore_after(checkpoints)[0].step == 31
    checkpoints.close()


def test_damaged_file_of_orbax_bookkeeping_does_not_matter(tmp_path):
    save_steps(tmp_path, 1)
    os.truncate(tmp_path / "1/_CHECKPOINT_METADATA", 10)
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(abstract(make_state()))[0], make_state(1))
        checkpoints.save(2, make_state(2), {})
    assert Checkpoints(tmp_path).steps() == [1, 2]


@pytest.mark.parametrize("change, listed", [
    (lambda s: s.replace(params={**s.params, "up": {"kernel": jax.ShapeDtypeStruct((2,), jnp.float32)}}),
     "1 missing: params/up/kernel"),
    (lambda s: s.replace(params={"scale": s.params["scale"]}),
     "2 unexpected: params/down/bias, params/down/kernel"),
    (lambda s: s.replace(ema={**s.ema, "scale": jax.ShapeDtypeStruct((5,), jnp.float32)}),
     "1 different: ema/scale (float32[4] instead of float32[5])"),
    (lambda s: s.replace(ema={**s.ema, "scale": jax.ShapeDtypeStruct((4,), jnp.bfloat16)}),
     "1 different: ema/scale (float32[4] instead of bfloat16[4])"),
    (lambda s: s.replace(key=jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))),
     "1 different: key (key<fry>[] instead of key<rbg>[])"),
], ids=["missing", "unexpected", "shape", "dtype", "key"])
def test_checkpoint_of_another_model(tmp_path, change, listed):
    save_steps(tmp_path, 1)
    with refused("checkpoints.Checkpoints._check_match", f"{tmp_path}/1 ") as caught:
        Checkpoints(tmp_path).restore(change(abstract(make_state())))
    assert str(caught.value).endswith(f": {listed}")  # nothing else


def test_long_mismatch_is_abridged(tmp_path):
    save_steps(tmp_path, 1)
    with refused("checkpoints.Checkpoints._check_match") as caught:
        Checkpoints(tmp_path).restore(abstract(make_state(width=16)))
    assert len(str(caught.value)) < 400 + len(str(tmp_path))
