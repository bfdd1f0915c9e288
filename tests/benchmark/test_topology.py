"""Compiling a benchmark for a TPU slice, where libtpu is installed."""

import importlib.util

import pytest

from vdm_jax.benchmark.cases import Sweep
from vdm_jax.benchmark.record import load
from vdm_jax.benchmark.sweep import compile_ahead


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
