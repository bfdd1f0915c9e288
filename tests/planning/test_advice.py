"""What is said when a program does not fit."""

import jax
import pytest

from tests import refusals
from vdm_jax.planning.advice import capacity_of, judge
from vdm_jax.planning.program import refused

GIB = 2**30
REPORT = {"status": "compiled", "what": "train", "stage": "base", "batch": 64, "batch_parts": 8, "accumulation": 1,
          "remat": False, "frames": 16, "mesh": {"data": 4, "fsdp": 2, "tensor": 1, "context": 1}, "devices": 8,
          "chip": "v5e", "state": {"parameters": GIB, "optimizer": 2 * GIB, "ema": GIB}, "memory": {"needed": 20 * GIB}}


def test_what_fits_needs_no_advice():
    found = judge(REPORT, 32 * GIB)
    assert (found["verdict"], found["advice"]) == ("fits", [])
    assert judge(REPORT, None)["verdict"] == "unknown"


def test_activations_that_do_not_fit():
    found = judge(REPORT, 15 * GIB)
    assert found["verdict"] == "does not fit"
    text = "\n".join(found["advice"])
    assert "fsdp" not in text.split("\n")[0]  # the state is small enough
    for flag in ("--base.training.accumulation 2", "--base.training.batch-size 32", "--base.network.remat",
                 "--mesh.context 2 --mesh.data 2"):
        assert flag in text
    assert found["advice"][-1] == "more devices, or chips with more memory: v4, v5p, v6e, tpu7x"


def test_a_state_that_does_not_fit_comes_first():
    first = judge(REPORT, 6 * GIB)["advice"][0]
    assert first.endswith("--mesh.fsdp 4 --mesh.data 2 splits them over 2 times the devices")
    few = judge({**REPORT, "mesh": {**REPORT["mesh"], "data": 1}, "devices": 2}, 6 * GIB)
    assert "fsdp x tensor x context = 4 or more, with 2 devices here" in few["advice"][0]


def test_no_advice_that_was_taken_already():
    report = {**REPORT, "remat": True, "batch": 8, "frames": 1}
    assert judge(report, 15 * GIB)["advice"] == ["more devices, or chips with more memory: v4, v5p, v6e, tpu7x"]
    sampling = judge({**REPORT, "what": "sample"}, 15 * GIB)["advice"]
    assert sampling[0].endswith("--batch 32") and not any("remat" in line for line in sampling)


MESSAGES = {
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (16.50G) exceeds "
    "available HBM (15.75G).": (16.5, 15.75),
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent error. Ran out of memory in memory space "
    "hbm. Used 33.06G of 15.75G hbm. Exceeded hbm capacity by 17.31G.": (33.06, 15.75),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_the_compilers_refusal_is_a_report(message):
    found = refused(RuntimeError(message))
    assert found["status"] == "out of memory" and found["roofline"] is None
    needed, limit = MESSAGES[message]
    assert found["memory"]["needed"] == int(needed * GIB) and found["compiler_limit"] == int(limit * GIB)
    judged = judge({**REPORT, **found}, 10**15)
    assert judged["verdict"] == "does not fit" and judged["capacity"] == int(limit * GIB) and judged["advice"]


def test_vector_memory_is_another_matter():
    found = refused(RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem: 20.00M of 16.00M"))
    assert found["status"] == "out of vector memory"
    assert "xla_tpu_scoped_vmem_limit_kib" in judge({**REPORT, **found, "memory": {}}, GIB)["advice"][0]


def test_what_is_no_memory_is_told_by_its_name_and_no_verdict_on_memory():
    found = refused(RuntimeError("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
                                 "space sflag. Used 2.5K of 2.0K sflag. Exceeded sflag capacity by 480B."))
    assert found["status"] == "out of sflag" and "memory" not in found and "compiler_limit" not in found
    judged = judge({**REPORT, "memory": {}, **found}, GIB)
    assert (judged["verdict"], judged["capacity"], judged["advice"]) == ("unknown", GIB, [])


def test_other_errors_stay_errors():
    with pytest.raises(RuntimeError, match="something else"):
        refused(RuntimeError("INTERNAL: something else"))
    with refusals.refused("program.refused", "'xla_wrong'"):
        refused(RuntimeError("INVALID_ARGUMENT: No such compile option: 'xla_wrong'"), (("xla_wrong", "true"),))


def test_a_cpus_devices_share_its_memory():
    capacity = capacity_of(jax.devices()[0])
    assert 0 < capacity * jax.device_count() < 2**50
