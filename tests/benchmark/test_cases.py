"""Cases and sweeps: patterns as text, names, FLOPs, errors."""

import dataclasses
import json

import pytest

from tests.refusals import refused
from vdm_jax.attention import (
    Causal,
    Full,
    LocalWindow,
    Neighbourhood,
    PerHead,
    Radial,
    SlidingTiles,
    SparseCausal,
    Spatial,
    Temporal,
    TemporalCausal,
)
from vdm_jax.benchmark.cases import Case, Sweep, label, parse_pattern

TEXTS = {"Full": Full(), "sparse-causal": SparseCausal(), "SparseCausal(own=True)": SparseCausal(own=True),
         "Causal(window=4)": Causal(window=4), "temporal_causal": TemporalCausal(),
         " LocalWindow( frames=1, width=3 ) ": LocalWindow(frames=1, width=3),
         "sliding-tiles": SlidingTiles(), "Neighbourhood(stride=(1, 2, 2))": Neighbourhood(stride=(1, 2, 2)),
         "radial(sink=False)": Radial(sink=False), "per-head": PerHead(),
         "PerHead(groups=(Temporal(), SlidingTiles(tile=(2, 4, 4), order='frames')))":
             PerHead(groups=(Temporal(), SlidingTiles(tile=(2, 4, 4), order="frames")))}


@pytest.mark.parametrize("text", TEXTS)
def test_patterns_are_read_and_written(text):
    pattern = parse_pattern(text)
    assert pattern == TEXTS[text]
    assert parse_pattern(label(pattern)) == pattern


def test_label_holds_only_what_differs_from_the_defaults():
    assert label(Causal()) == "Causal"
    assert label(SparseCausal(first=False, own=True)) == "SparseCausal(first=False, own=True)"


ERRORS = {"fully": ("cases.parse_pattern", "Spatial, Temporal, Full"),
          "WithExtraKeys": ("cases.parse_pattern", "Spatial"),
          "Causal(4)": ("cases._options", "'Causal(4)'"), "Causal(window=f())": ("cases._options", "f()"),
          "Causal(windw=4)": ("Causal.windw", "did you mean 'window'"), "Causal(window='a')": ("Causal.window", "='a'"),
          "Causal(window=0)": ("Causal.window", "=0", ">= 1, or None"),
          "SparseCausal(first=False, previous=False)": ("SparseCausal", "first=False"),
          "Causal(window=4": ("cases.parse_pattern", "permitted"),
          "PerHead(groups=(Full(), f()))": ("cases._options", "f()"),
          "PerHead(groups=(Full(), Causal(window=0)))": ("Causal.window", ">= 1, or None")}


@pytest.mark.parametrize("text", ERRORS)
def test_errors_name_what_is_permitted(text):
    with refused(*ERRORS[text]) as error:
        parse_pattern(text)
    assert "\n" not in str(error.value)


def test_flops_count_what_the_mask_shows():
    sizes = dict(frames=3, height=2, width=2, heads=5, head_dim=7, batch=2)
    full, causal = (Case(pattern=p, **sizes).flops for p in (Full(), Causal()))
    assert full == 4 * 2 * 5 * 7 * 12**2
    assert causal == full * 6 / 9  # six of the nine pairs of frames
    assert Case(pattern=Full(), mode="forward+backward", **sizes).flops == 3.5 * full


def test_a_pattern_per_group_of_heads_is_counted_group_by_group():
    case = Case(pattern=PerHead(groups=(Full(), SlidingTiles(tile=(2, 2, 2), window=(1, 1, 1)))), kernel="xla",
                frames=4, height=4, width=4, heads=4, head_dim=8)
    parts = [dataclasses.replace(case, pattern=one, heads=2) for one in case.pattern.groups]
    assert case.flops == sum(part.flops for part in parts) == 4 * 2 * 8 * (64**2 + 64 * 8)
    assert case.least_bytes("xla", "cpu") == sum(part.least_bytes("xla", "cpu") for part in parts)
    # of the tiles, which gather reads in place, each sees one
    assert parts[1].least_bytes("gather", "cpu") == 4 * 4 * 64 * 2 * 8 + 4 * 2 * 64 * 8


def test_linear_attention_stands_where_a_kernel_does():
    linear = Case(pattern=Full(), kernel="linear", frames=4, height=8, width=8, heads=2, head_dim=16)
    tokens = 4 * 8 * 8
    assert linear.flops == 4 * tokens * 2 * 16**2
    assert dataclasses.replace(linear, mode="forward+backward").flops == 3 * linear.flops
    assert linear.resolved("cpu") == linear.resolved("tpu") == "linear"
    assert dataclasses.replace(linear, pattern=Causal()).flops == linear.flops + 2 * 4**2 * 2 * 16**2
    for change, message in (({"context": "ring"}, ("Case.context", "permitted: context='none'")),
                            ({"pattern": Temporal()}, ("linear.pattern", "Temporal"))):
        with refused(*message):
            dataclasses.replace(linear, **change).resolved("cpu")


def test_least_memory_is_arrays_and_dense_logits():
    case = Case(pattern=SparseCausal(), frames=8, height=4, width=4, heads=2, head_dim=16, dtype="bfloat16")
    array, logits = 2 * 128 * 32, 4 * 2 * 128**2
    assert case.least_bytes("chunked", "cpu") == 4 * array
    assert case.least_bytes("xla", "cpu") == 4 * array + logits
    assert case.least_bytes("gather", "cpu") == 4 * array + logits * 2 // 8
    both = Case(**{**vars(case), "mode": "forward+backward"})
    assert both.least_bytes("xla", "cpu") == 8 * array + 2 * logits


def test_a_case_survives_as_data():
    case = Case(pattern=SparseCausal(own=True), kernel="gather", frames=4, mode="forward+backward")
    assert Case.from_data(json.loads(json.dumps(case.to_data()))) == case


def test_a_sweep_is_the_product_of_its_axes_with_different_keys():
    sweep = Sweep(patterns=("full", "causal", "Causal(window=2)"), kernels=("xla", "auto"), frames=(2, 4), sides=(2, 3),
                  heads=(1, 2), head_dims=(8, 16), dtypes=("float32", "bfloat16"))
    cases = sweep.cases()
    assert len(cases) == 3 * 2 * 2 * 2 * 2 * 2 * 2 * 2
    assert len({case.key for case in cases}) == len(cases)
    assert {type(case.pattern) for case in cases} == {Full, Causal}
    assert Sweep().cases()[0].pattern == Spatial()


@pytest.mark.parametrize(("values", "message"), [
    ({"kernels": ("flash",)}, ("Sweep.kernels", "'flash'", "'auto'")),
    ({"contexts": ("rings",)}, ("Sweep.contexts", "'rings'", "'none'")),
    ({"dtypes": ("float64",)}, ("Sweep.dtypes", "'float64'", "'float32', 'bfloat16', 'float16'")),
    ({"modes": ("backward",)}, ("Sweep.modes", "'backward'", "'forward', 'forward+backward'")),
    ({"sides": (0,)}, ("Sweep.sides", ">= 1")), ({"batch": 0}, ("Sweep.batch", "=0")),
    ({"frames": ()}, ("Sweep.frames", "=()", "at least 1")),
])
def test_a_sweep_refuses_what_no_case_can_have(values, message):
    with refused(*message):
        Sweep(**values)
