"""Weights that come with the package: found by name after the user's own runs, and refused where they are damaged."""

from __future__ import annotations

import json

import pytest

from tests.refusals import refused
from vdm_jax.runs import shipped
from vdm_jax.runs.directory import find_run, load
from vdm_jax.runs.shipped import MANIFEST, check_manifest, find_shipped, read_manifest, shipped_names, write_manifest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """As if a run named `tiny` came with the package; the user is in an empty folder."""
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path / "shipped")
    folder = tmp_path / "shipped" / "tiny"
    (folder / "base").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "base" / "params.safetensors").write_bytes(b"weights")
    write_manifest(folder, {"command": "vdm-jax train tiny", "scores": {"whole": 0.5}})
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def test_a_run_of_the_user_comes_before_one_of_the_package(folder, tmp_path):
    assert shipped_names() == ("tiny",) and find_run("tiny") == find_shipped("tiny") == folder
    assert find_shipped("other") is None and find_shipped(folder) is None
    with refused("directory.find_run", "'other'", "tiny"):
        find_run("other")
    own = tmp_path / "here" / "runs" / "tiny"
    own.mkdir(parents=True)
    (own / "config.json").write_text("{}")
    assert find_run("tiny").resolve() == own


def test_a_manifest_says_what_is_known_and_the_hash_of_every_file(folder):
    found = read_manifest(folder)
    assert found["command"] == "vdm-jax train tiny" and found["scores"] == {"whole": 0.5}
    assert set(found["files"]) == {"config.json", "base/params.safetensors"}
    check_manifest(folder)


@pytest.mark.parametrize(("damage", "named"), [
    (lambda folder: (folder / "base/params.safetensors").write_bytes(b"other"), ("params.safetensors", "damaged")),
    (lambda folder: (folder / "base/params.safetensors").unlink(), ("params.safetensors", "missing")),
    (lambda folder: (folder / MANIFEST).unlink(), (MANIFEST, "FileNotFoundError")),
    (lambda folder: (folder / MANIFEST).write_text(json.dumps({"files": []})), (MANIFEST, "no object")),
])
def test_files_that_are_not_those_of_the_manifest_are_refused(folder, damage, named):
    damage(folder)
    with pytest.raises(shipped.UserError) as error:
        find_run("tiny")
    assert all(part in str(error.value) for part in (*named, "installing vdm_jax again"))


def test_everything_that_is_shipped_is_intact_and_small():
    """20 MB in all."""
    for name in shipped_names():
        found = read_manifest(find_shipped(name))
        assert found["command"] and found["commit"] and found["scores"]
    assert sum(path.stat().st_size for path in shipped.SHIPPED.rglob("*") if path.is_file()) <= 20e6


@pytest.mark.full
def test_the_digits_that_are_shipped_are_those_of_their_captions():
    captions = ("a red 3 moving left", "a blue 0 rising", "a white seven not moving", "a green 2 going to the right")
    generator = load(find_shipped("captioned_digits_full"))
    scores = generator.experiment.data.scorer().score(generator(captions, seed=1).videos, captions).summary()
    assert scores["whole"] >= 0.75
