"""What a person reads of a report."""

import pytest

from vdm_jax.planning.report import _memory, whole_run

GIB = 2**30


def test_hours_and_cost_of_a_whole_run():
    report = {"steps": 100_000, "chips": 16, "roofline": {"step_seconds": 0.9}}
    assert whole_run(report) == "25 h of 100,000 steps, 400 chip-hours"
    assert whole_run({**report, "price": 1.5}) == "25 h of 100,000 steps, 400 chip-hours, 600.00 at 1.5 per chip-hour"
    assert whole_run({**report, "chips": 256, "steps": 2_000_000}) == "500 h of 2,000,000 steps, 128,000 chip-hours"


@pytest.mark.parametrize("verdict", ["fits", "does not fit", "unknown"])
def test_the_parts_of_the_memory_add_up(verdict):
    memory = {"needed": 10 * GIB, "arguments": 4 * GIB, "outputs": 4 * GIB, "aliased": 3 * GIB, "new_outputs": GIB,
              "temporaries": 9 * GIB, "alive": 4 * GIB, "code": GIB}
    text = _memory({"memory": memory, "capacity": 12 * GIB, "status": "compiled", "verdict": verdict})
    assert text.split("]", 1)[1].replace("[/", "").split(" = ")[1] == (
        "arguments 4.00 GiB + new outputs 1.00 GiB + temporaries 4.00 GiB + code 1.00 GiB")
    assert f"10.00 GiB of 12.00 GiB, {verdict}" in text
