"""Searching for what fits, with a compiler that is a formula."""

import dataclasses

import jax
import pytest

from vdm_jax.errors import UserError
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.planning import cache
from vdm_jax.planning.cache import Reports
from vdm_jax.planning.flops import remat_choices
from vdm_jax.planning.program import Plan
from vdm_jax.planning.search import default_meshes, search

KEEP, AGAIN = remat_choices()[0], "full" if "full" in remat_choices() else True


@pytest.fixture
def plan(tiny):
    return Plan(experiment="tiny", stage=tiny.stages[0], data=tiny.data, mesh=MeshSpec())


@pytest.fixture
def compiled(monkeypatch):
    """Needs 100 bytes per clip and device, 40 with recomputation, and 80 for the state over fsdp; at 10 clips a second,
    7 with recomputation. Holds what was compiled."""
    done = []

    def formula(plan, devices):
        fsdp, data = plan.mesh.fsdp, plan.mesh.data
        each, remat = plan.batch // (fsdp * data), plan.stage.network.remat
        done.append((fsdp, remat, plan.batch))
        return {"status": "compiled", "what": "train", "stage": "base", "batch": plan.batch, "batch_parts": fsdp * data,
                "accumulation": 1, "remat": remat, "frames": 4, "devices": 8, "chip": None,
                "mesh": {"data": data, "fsdp": fsdp, "tensor": 1, "context": 1}, "state": {"parameters": 80 // fsdp},
                "memory": {"needed": 80 // fsdp + each * (40 if remat == AGAIN else 100)},
                "roofline": {"step_seconds": plan.batch / (7 if remat == AGAIN else 10)}}

    monkeypatch.setattr(cache, "compile_plan", formula)
    return done


def test_the_largest_batch_of_every_setting(plan, compiled, tmp_path):
    meshes = [MeshSpec(data=8, fsdp=1), MeshSpec(data=2, fsdp=4)]
    rows = search(plan, Reports(tmp_path), jax.devices(), 520, meshes=meshes, remats=(KEEP, AGAIN))
    sizes = {(row.mesh.fsdp, row.remat): row.report["batch"] for row in rows}
    assert sizes == {(1, KEEP): 32, (4, KEEP): 40, (1, AGAIN): 88, (4, AGAIN): 96}  # (520 - 80 / fsdp) / 100 or 40
    assert (rows[0].remat, rows[0].clips_per_second) == (KEEP, 10)  # the most clips per second, then the largest batch
    assert rows[0].mesh.fsdp == 4
    before = len(compiled)
    search(plan, Reports(tmp_path), jax.devices(), 520, meshes=meshes, remats=(KEEP, AGAIN))
    assert len(compiled) == before  # every report was kept


def test_one_batch_that_is_given(plan, compiled, tmp_path):
    told = []
    rows = search(plan, Reports(tmp_path), jax.devices(), 200, meshes=[MeshSpec(data=8)], batch=16,
                  remats=(KEEP, AGAIN), tell=lambda text, report: told.append((text, report and report["verdict"])))
    assert [(row.remat, row.plan and row.plan.batch) for row in rows] == [(AGAIN, 16), (KEEP, None)]
    assert rows[1].reason == "needs 0.00 of 0.00 GiB at batch 16"
    assert (f"mesh data=8, remat {KEEP}, batch 16", "does not fit") in told


def test_what_cannot_be_split_is_a_row(plan, compiled, tmp_path):
    rows = search(plan, Reports(tmp_path), jax.devices(), 200, meshes=[MeshSpec(data=3), MeshSpec(data=8)])
    assert rows[-1].plan is None and "does not fit 8 devices" in rows[-1].reason
    with pytest.raises(UserError, match="--memory-gib"):
        search(plan, Reports(tmp_path), jax.devices(), None)


def test_choices(plan):
    assert [(m.data, m.fsdp) for m in default_meshes(8)] == [(8, 1), (4, 2), (2, 4), (1, 8)]
    assert len(remat_choices()) >= 2 and remat_choices()[0] == plan.stage.network.remat


def test_reports_are_found_by_what_decides_about_the_program(plan, compiled, tmp_path):
    reports = Reports(tmp_path)
    fixed = dataclasses.replace(plan, mesh=MeshSpec(data=8))
    first = reports.get(fixed)
    assert Reports(tmp_path).get(dataclasses.replace(fixed)) == first and len(compiled) == 1
    for other in (fixed.with_batch(16), fixed.with_remat(AGAIN), dataclasses.replace(fixed, effort="full"),
                  dataclasses.replace(fixed, flags=(("xla_a", "true"),)), dataclasses.replace(fixed, what="sample")):
        assert reports.path(other) != reports.path(fixed)
    products = [dataclasses.replace(fixed, topology=name) for name in ("v5p-128", "v5p:4x4x4", "2xv5p-128")]
    assert reports.path(products[0]) == reports.path(products[1]) != reports.path(products[2])
    again = Reports(tmp_path, again=True)
    again.get(fixed), again.get(fixed)
    assert len(compiled) == 2  # anew, but once
    reports.path(fixed).write_text("{ damaged")
    reports.get(fixed)
    assert len(compiled) == 3
