"""Searching for what fits, with a compiler that is a formula."""

import dataclasses

import jax
import pytest

from tests.refusals import refused
from vdm_jax.data.array_record import METADATA, PreparedClips
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.planning import cache
from vdm_jax.planning.cache import Reports
from vdm_jax.planning.flops import remat_choices
from vdm_jax.planning.program import Plan
from vdm_jax.planning.search import TRIES, Pace, default_meshes, search
from vdm_jax.versions import PACKAGE

KEEP, AGAIN = remat_choices()[0], "full" if "full" in remat_choices() else True


@pytest.fixture
def plan(tiny):
    return Plan(experiment="tiny", stage=tiny.stages[0], data=tiny.data, mesh=MeshSpec())


@pytest.fixture
def compiled(monkeypatch):
    """Needs 100 bytes per clip and device, 40 with recomputation, and 80 for the state over fsdp; 10 clips a second, 7
    with recomputation, at the peak of the chip. The estimate from shapes misses a third. Holds what was compiled."""
    done = []

    def rate(plan):
        return 7 if plan.stage.network.remat == AGAIN else 10

    def formula(plan, devices):
        fsdp, data = plan.mesh.fsdp, plan.mesh.data
        each, remat = plan.batch // (fsdp * data), plan.stage.network.remat
        done.append((fsdp, remat, plan.batch))
        return {"status": "compiled", "what": "train", "stage": "base", "batch": plan.batch, "batch_parts": fsdp * data,
                "accumulation": 1, "remat": remat, "frames": 4, "devices": 8, "chip": None,
                "mesh": {"data": data, "fsdp": fsdp, "tensor": 1, "context": 1}, "state": {"parameters": 80 // fsdp},
                "memory": {"needed": 80 // fsdp + each * (40 if remat == AGAIN else 100)},
                "as_compiled": {"step_seconds": plan.batch / rate(plan)}}

    def counted(plan, mesh):
        each = plan.batch // (plan.mesh.fsdp * plan.mesh.data)
        return {"moved": {"state": 2 * 80 // plan.mesh.fsdp, "gradients": 0, "inputs": 0,
                          "activations": 2 * each * (27 if plan.stage.network.remat == AGAIN else 67)},
                "roofline": {"seconds": {"compute": plan.batch / rate(plan)}}}

    monkeypatch.setattr(cache, "compile_plan", formula)
    monkeypatch.setattr(cache, "counted_from_shapes", counted)
    return done


MESHES = [MeshSpec(data=8, fsdp=1), MeshSpec(data=2, fsdp=4)]


def test_the_largest_batch_of_every_mesh(plan, compiled, tmp_path):
    rows = search(plan, Reports(tmp_path), jax.devices(), 520, meshes=MESHES, remats=(KEEP, AGAIN))
    sizes = {(row.mesh.fsdp, row.remat): row.report and row.report["batch"] for row in rows}
    assert sizes == {(1, KEEP): 32, (4, KEEP): 40, (1, AGAIN): None, (4, AGAIN): None}  # (520 - 80 / fsdp) / 100
    assert (rows[0].mesh.fsdp, rows[0].remat, rows[0].clips_per_second) == (4, KEEP, 10)
    assert rows[-1].reason == f"no faster than {KEEP}, which fits: not compiled"
    before = len(compiled)
    search(plan, Reports(tmp_path), jax.devices(), 520, meshes=MESHES, remats=(KEEP, AGAIN))
    assert len(compiled) == before  # every report was kept


def test_it_begins_near_the_answer(plan, compiled, tmp_path):
    """Where doubling from one clip per device would need 16 programs."""
    search(plan, Reports(tmp_path), jax.devices(), 40_080, meshes=MESHES[:1], remats=(KEEP,), most=8 * 4096)
    sizes = [batch // 8 for _, _, batch in compiled]
    assert sizes[0] == 40_000 // 67 and sizes[1] == 400 and max(sizes[1:]) <= 450 and len(sizes) <= 3


@pytest.mark.parametrize("faster", [False, True])
def test_recomputation_is_tried_where_it_can_be_better(plan, compiled, tmp_path, monkeypatch, faster):
    """Where less recomputation does not fit; or does not fit the batch of the config, and could be slower."""
    if faster:
        monkeypatch.setattr(cache, "counted_from_shapes", lambda plan, mesh, counted=cache.counted_from_shapes: {
            **counted(plan, mesh), "roofline": {"seconds": {"compute": plan.batch / 20}}})
    capacity = 520 if faster else 130
    rows = search(plan.with_batch(64), Reports(tmp_path), jax.devices(), capacity, meshes=MESHES[:1],
                  remats=(KEEP, AGAIN))
    found = {row.remat: row.report and row.report["batch"] for row in rows}
    assert found == ({KEEP: 32, AGAIN: 88} if faster else {KEEP: None, AGAIN: 8})


def test_default_meshes_with_check_shards_are_left_out_once_one_fits(plan, compiled, tmp_path, monkeypatch):
    monkeypatch.setattr("vdm_jax.planning.search.check_shards", lambda params, mesh: (
        "a whole slice" if mesh.shape["fsdp"] == 8 else None))
    rows = search(plan, Reports(tmp_path), jax.devices(), 520, remats=(KEEP,))
    assert rows[-1].mesh.fsdp == 8 and rows[-1].reason == "not compiled: a whole slice"
    assert {fsdp for fsdp, _, _ in compiled} == {1, 2, 4}
    compiled.clear()
    search(plan, Reports(tmp_path), jax.devices(), 520, meshes=[*MESHES, MeshSpec(data=1, fsdp=8)], remats=(KEEP,))
    assert {fsdp for fsdp, _, _ in compiled} == {8}  # asked for; the others were kept


def test_one_batch_that_is_given(plan, compiled, tmp_path):
    told = []
    rows = search(plan, Reports(tmp_path), jax.devices(), 230, meshes=[MeshSpec(data=8)], batch=16,
                  remats=(KEEP, AGAIN), tell=told.append)
    assert [(row.remat, row.plan and row.plan.batch) for row in rows] == [(AGAIN, 16), (KEEP, None)]
    assert rows[1].reason == "needs 0.00 of 0.00 GiB per device at batch 16"
    assert [(one.text, one.report and one.report["verdict"], one.done, one.most) for one in told] == [
        (f"mesh data=8, remat {KEEP}, batch 16", None, 0, 2),
        (f"mesh data=8, remat {KEEP}, batch 16", "does not fit", 1, 2),
        (f"mesh data=8, remat {AGAIN}, batch 16", None, 1, 2), (f"mesh data=8, remat {AGAIN}, batch 16", "fits", 2, 2)]
    assert told[0].left is None and told[2].left >= 0 and told[3].left == 0


def test_what_cannot_fit_by_its_shapes_is_not_compiled(plan, compiled, tmp_path):
    """The state of 80 bytes on one device; on four, what two clips keep without recomputation, but not with it."""
    rows = search(plan, Reports(tmp_path), jax.devices(), 50, meshes=MESHES, remats=(KEEP, AGAIN), batch=16)
    assert compiled == [] and all(row.reason.endswith("GiB per device by its shapes: not compiled") for row in rows)
    rows = search(plan, Reports(tmp_path), jax.devices(), 121, meshes=MESHES, remats=(KEEP, AGAIN), batch=16)
    assert compiled == [(4, AGAIN, 16)] and rows[0].plan.mesh == MESHES[1]  # 20 + 2 x 67 bytes; 20 + 2 x 27
    compiled.clear()
    search(plan, Reports(tmp_path), jax.devices(), 121, meshes=MESHES, remats=("offload",), batch=16)
    assert (1, "offload", 16) in compiled  # what a block keeps lies in the memory of the host


def test_what_is_left_is_at_most():
    told = []
    pace = Pace(3, TRIES, told.append)
    pace.compiled("a", dict)
    pace.compiled("b", dict)
    assert (pace.done, pace.most) == (2, 3 * TRIES)
    pace.finish()  # with four tries to spare
    assert (pace.done, pace.most) == (2, 2 + 2 * TRIES)
    pace.finish(2)
    pace.say("no others", None)
    assert (told[-1].done, told[-1].most, told[-1].left) == (2, 2, 0)


def test_what_cannot_be_split_is_a_row(plan, compiled, tmp_path):
    rows = search(plan, Reports(tmp_path), jax.devices(), 200, meshes=[MeshSpec(data=3), MeshSpec(data=8)])
    (other,) = (row for row in rows if row.mesh.data == 3)  # once, not for every remat
    assert rows[0].plan is not None and other.plan is None and "does not fit 8 devices" in other.reason
    with refused("search.search", "--memory-gib"):
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


def test_flags_of_the_environment_and_the_clips_on_disk_are_part_of_a_reports_key(plan, monkeypatch, tmp_path):
    fixed = dataclasses.replace(plan, data=PreparedClips(path=str(tmp_path)))
    keys = [cache.content_key(fixed, jax.devices())]
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_a=true")
    keys.append(cache.content_key(fixed, jax.devices()))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / METADATA).write_text('{"frames": 8, "height": 32, "width": 32}')
    keys.append(cache.content_key(fixed, jax.devices()))
    assert len(set(keys)) == 3 and keys[-1] == cache.content_key(fixed, jax.devices())


def test_every_room_on_which_reports_depend_exists():
    assert not [room for room in cache.ROOMS if not list((PACKAGE / room).glob("*.py"))]
