"""Arithmetic of traffic and roofline."""

import dataclasses

import pytest

from vdm_jax.parallel.collectives import Collective
from vdm_jax.planning.chips import CHIPS
from vdm_jax.planning.roofline import Load, as_compiled, roofline, split_sent
from vdm_jax.planning.traffic import traffic

MESH = {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}
FSDP = tuple(tuple(range(4 * i, 4 * i + 4)) for i in range(2))
DATA = tuple((i, i + 4) for i in range(4))


def test_traffic_by_kind_and_axis():
    rows = traffic([Collective("all-gather", 1000, 3, 0, FSDP), Collective("all-gather", 500, 1, 0, FSDP),
                    Collective("all-reduce", 800, 1, 1, DATA), Collective("all-reduce", 80, 1, 0, ((0,), (1,))),
                    Collective("all-to-all", 8, 1, 0, None), Collective("all-reduce", 16, 1, 0, ())], MESH)
    assert rows == [
        {"kind": "all-gather", "axes": "fsdp", "count": 4, "bytes": 3500, "sent": 3 * 750 + 375},
        {"kind": "all-reduce", "axes": "data", "count": 1, "bytes": 800, "sent": 800, "unknown_loops": 1},
        {"kind": "all-reduce", "axes": "none", "count": 1, "bytes": 80, "sent": 0},
        {"kind": "all-reduce", "axes": "data+fsdp", "count": 1, "bytes": 16, "sent": 28},
        {"kind": "all-to-all", "axes": "unknown", "count": 1, "bytes": 8, "sent": 7}]


CHIP = dataclasses.replace(CHIPS["v5p"], flops=100.0, hbm_bandwidth=10.0, links=4.0, network=1.0)


@pytest.mark.parametrize(("load", "limit", "step", "mfu"), [
    (Load(model=300, computed=400, moved=30, sent=4), "compute", 4.0, 0.75),
    (Load(model=300, computed=400, moved=60, sent=4), "memory", 6.0, 0.5),
    (Load(model=300, computed=400, moved=30, sent=48), "interconnect", 12.0, 0.25),
    (Load(model=300, computed=400, moved=30, sent=4, sent_far=30), "network", 30.0, 0.1),
])
def test_the_largest_term_limits(load, limit, step, mfu):
    found = roofline(load, CHIP)
    assert (found["limited_by"], found["step_seconds"]) == (limit, step)
    assert found["mfu"] == pytest.approx(mfu)


def test_devices_of_one_chip_share_its_rates():
    load = Load(model=300, computed=400, moved=30, sent=4)
    assert roofline(load, dataclasses.replace(CHIP, devices=2))["step_seconds"] == 8.0


def test_what_has_no_published_figure_is_said():
    found = roofline(Load(1, 1, 1, 1, sent_far=5), dataclasses.replace(CHIP, network=None))
    assert "network" not in found["seconds"] and "no figure is published" in found["left_out"]


def test_what_a_program_sends_is_a_second_estimate():
    bound = roofline(Load(model=300, computed=400, moved=30, sent=4), CHIP)
    found = as_compiled(bound, 40, 0, CHIP)
    assert found == {"seconds": {"interconnect": 10.0}, "step_seconds": 10.0} and bound["step_seconds"] == 4.0
    assert as_compiled(bound, 0, 0, CHIP)["step_seconds"] == 4.0
    assert as_compiled(bound, 0, 7, CHIP) == {"seconds": {"interconnect": 0.0, "network": 7.0}, "step_seconds": 7.0}


def test_utilisation_is_never_more_than_all():
    rates = [roofline(Load(x, x, 0, 0), dataclasses.replace(CHIP, flops=f))["mfu"]
             for x, f in ((0.1, 0.3), (1.1, 3.3), (7e13, 197e12), (1.9e13, 459e12))]
    assert all(0.999999 < rate <= 1 for rate in rates)


def test_traffic_between_slices_is_apart():
    rows = [{"axes": "data+fsdp", "sent": 5}, {"axes": "fsdp", "sent": 7}, {"axes": "data", "sent": 11}]
    assert split_sent(rows, ("data",)) == (7, 16)
    assert split_sent(rows, ()) == (23, 0)
