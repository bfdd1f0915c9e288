"""The table of chips."""

import types

import jax
import pytest

from vdm_jax.planning.chips import CHIPS, chip_of
from vdm_jax.planning.topology import GENERATIONS


@pytest.mark.parametrize(("kind", "name"), [("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v5p", "v5p"),
                                            ("TPU v6 lite", "v6e"), ("TPU v4", "v4"), ("TPU7x", "tpu7x"),
                                            ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200")])
def test_devices_are_recognised(kind, name):
    assert chip_of(types.SimpleNamespace(device_kind=kind)) is CHIPS[name]


def test_a_cpu_has_no_figures():
    assert chip_of(jax.devices()[0]) is None


def test_every_generation_that_has_a_name_has_figures():
    assert set(GENERATIONS) <= set(CHIPS)
    for chip in CHIPS.values():
        assert chip.source and chip.usable <= 1.02 * chip.hbm_bytes + 2**30
        assert 100 < chip.flops / chip.hbm_bandwidth < 700  # FLOPs per byte at the ridge: a slip of 10^3 would show
