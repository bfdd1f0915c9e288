"""Names of TPU slices, and compiling for one where libtpu is installed."""

import importlib.util

import pytest

from vdm_jax.benchmark import topology
from vdm_jax.benchmark.cases import Sweep
from vdm_jax.benchmark.record import load
from vdm_jax.benchmark.sweep import compile_ahead
from vdm_jax.errors import UserError

NAMES = {"v5p-64": "v5p:2x4x4", "v5p-8": "v5p:2x2x1", "v5p-128": "v5p:4x4x4", "v5p-1024": "v5p:8x8x8",
         "v4-16": "v4:2x2x2", "v5e-16": "v5e:4x4", "v5litepod-8": "v5e:2x4", "v6e-256": "v6e:16x16",
         "v5p:4x4x4": "v5p:4x4x4", "tpu7x:4x4x4": "tpu7x:4x4x4"}


@pytest.mark.parametrize("name", NAMES)
def test_products_and_slices(name):
    assert topology.full_name(name) == NAMES[name]


@pytest.mark.parametrize("name", ["v5p", "v5p-3", "v5p-96", "v5e-2", "a100-8", "v5p:4", ""])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match="topology .* permitted: "):
        topology.full_name(name)


def test_without_libtpu_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--topology v5p-64 needs libtpu.*permitted: pip install 'vdm_jax\[tpu\]'"):
        topology.devices("v5p-64")


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra [tpu])")
def test_compiling_for_a_slice_records_memory_and_collectives(tmp_path):
    sweep = Sweep(patterns=("sparse-causal",), kernels=("auto", "cudnn"), frames=(4,), sides=(16,), heads=(4,),
                  dtypes=("bfloat16",), modes=("forward+backward",))
    path = tmp_path / "attention.json"
    compile_ahead(sweep.cases(), path, "v5e-4")
    record = load(path)
    compiled, left_out = record["rows"].values()
    assert record["device"] == {"platform": "tpu", "kind": "TPU v5 lite", "count": 4, "topology": "v5e:2x2"}
    assert (compiled["status"], compiled["kernel"], compiled["mesh"]) == ("compiled", "splash", {"tensor": 4})
    assert compiled["collectives"] == {}  # every chip has its own head
    assert compiled["memory"]["arguments"] >= 4 * 2 * 1024 * 64
    assert left_out["status"] == "skipped" and "runs on gpu, not on tpu" in left_out["reason"]
