"""Names of TPU slices."""

import importlib.util
import math

import pytest

from tests.refusals import refused
from vdm_jax.planning import topology

NAMES = {"v5p-64": "v5p:2x4x4", "v5p-8": "v5p:2x2x1", "v5p-128": "v5p:4x4x4", "v5p-1024": "v5p:8x8x8",
         "v4-16": "v4:2x2x2", "v5e-16": "v5e:4x4", "v5litepod-8": "v5e:2x4", "v6e-256": "v6e:16x16",
         "v5p:4x4x4": "v5p:4x4x4", "tpu7x:4x4x4": "tpu7x:4x4x4", "tpu7x-128": "tpu7x:4x4x4",
         "tpu7x-4x4x8": "tpu7x:4x4x8", "v5p-12288": "v5p:16x16x24", "v5p-384": "v5p:4x4x12",
         "2xv5p-128": "2xv5p:4x4x4", "4xv6e-256": "4xv6e:16x16", "2xv5e:4x4": "2xv5e:4x4"}


@pytest.mark.parametrize("name", NAMES)
def test_products_and_slices(name):
    assert topology.full_name(name) == NAMES[name]


@pytest.mark.parametrize(("name", "chips"), [("v5p-2048", 1024), ("v4-512", 256), ("v5e-64", 64), ("tpu7x-512", 256)])
def test_v4_v5p_and_tpu7x_count_cores(name, chips):
    assert math.prod(topology.parse(name).sides) == chips


@pytest.mark.parametrize(("code", "name", "permitted"), [
    *(("topology._product", name, f"{name.split('-')[0]}-N") for name in
      ("v5p-3", "v5p-96", "v5e-2", "v5e-512", "v5p-20000")),
    *(("topology.parse", name, "v5p-128") for name in ("v5p", "a100-8", "")),
    *(("topology.parse", name, "3 sides") for name in ("v5p:4", "v5p:4x4", "v5p:0x4x4", "tpu7x-4x4")),
    ("topology.parse", "v5e:4x4x4", "2 sides"), ("topology.parse", "0xv5p-8", "1 or more"),
])
def test_other_names_are_refused(code, name, permitted):
    with refused(code, f"topology '{name}'", "permitted: ", permitted):
        topology.full_name(name)


@pytest.mark.parametrize(("name", "meant"), [("v5p128", "v5p-128"), ("V5E-16", "v5e-16"), ("v6-256", "v6e-256"),
                                             ("v5p_4x4x4", "v5p:4x4x4"), ("2xv5p 128", "2xv5p-128"),
                                             ("v5lite-16", "v5e-16"), ("v5p:4*4*4", "v5p:4x4x4")])
def test_a_mistyped_name_is_suggested(name, meant):
    with refused("topology.parse", f"'{meant}'"):
        topology.parse(name)


@pytest.mark.parametrize("name", ["v5e:32x32", "v5p:64x64x64", "v4:16x16x32", "v5p:999999x4x4", "v5p:" + "9" * 5000,
                                  "9999999xv5p-8", "v5e-٤"])
def test_slices_that_nobody_has_are_refused(name):
    with refused("topology.parse"):
        topology.parse(name)


def test_without_libtpu_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused("topology.devices", "--topology", "'vdm_jax[tpu]'"):
        topology.devices("v5p-64")
