"""The capability table: what is in it runs, what is not is an error that lists what is; what `auto` chooses."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from tests.refusals import refused
from vdm_jax.attention import (
    BlockCausal,
    Causal,
    FirstFrames,
    Full,
    LocalWindow,
    Neighbourhood,
    Radial,
    SlidingTiles,
    SparseCausal,
    Spatial,
    TeacherForcing,
    Temporal,
    TemporalCausal,
    WithExtraKeys,
    cross_pattern,
)
from vdm_jax.attention.capability import CAPABILITIES, Request, _choose, require, resolve
from vdm_jax.attention.kernels import KERNELS
from vdm_jax.networks.config import SelfAttention

BY_NAME = {type(p).__name__: p for p in (Spatial(), Temporal(), Full(), Causal(window=2), TemporalCausal(window=2),
                                         SparseCausal(), FirstFrames(), LocalWindow(), BlockCausal(window=6),
                                         TeacherForcing(frames=6), Neighbourhood(frames=2, height=3, width=3),
                                         SlidingTiles(tile=(1, 2, 2)), Radial())}
FULL = Full()


def request(pattern=FULL, shape=(16, 8, 8), batch=1, heads=8, head_dim=64, dtype="float32", platform="cpu", **more):
    return Request(pattern=pattern, shape=shape, batch=batch, heads=heads, head_dim=head_dim, dtype=dtype,
                   platform=platform, **more)


def test_every_entry_names_a_kernel_and_passes():
    assert set(BY_NAME) == frozenset().union(*(entry.patterns for entry in CAPABILITIES.values()))
    for (kernel, context), entry in CAPABILITIES.items():
        assert kernel in KERNELS
        for name in entry.patterns:
            require(BY_NAME[name], kernel, context)
            require(WithExtraKeys(inner=BY_NAME[name]), kernel, context)


@pytest.mark.parametrize(("kernel", "context"), [("flash", "none"), ("xla", "telepathy"), ("auto", "telepathy")])
def test_an_unsupported_pair_is_named_with_what_is_permitted(kernel, context):
    with refused("capability.require") as error:
        require(Temporal(), kernel, context)
    assert str(error.value).startswith(
        f"attention kernel={kernel!r}, context={context!r} is not supported with pattern Temporal; permitted: ")
    assert "kernel='chunked' with context='none'; " in str(error.value)


def test_a_kernel_for_few_frames_refuses_patterns_that_see_all():
    require(Causal(window=3), "gather", "none")
    with refused("capability.require", "'gather'", "window=None", "kernel='chunked'"):
        require(Causal(), "gather", "none")


def test_a_pattern_in_no_entry_is_named():
    @dataclasses.dataclass(frozen=True)
    class Spiral(Full):
        pass

    with refused("capability.require"):
        require(Spiral(), "xla", "none")


def test_a_config_with_an_unsupported_pair_cannot_be_made():
    with refused("capability.require", "context='telepathy'"):
        SelfAttention(pattern=Full(), context="telepathy")


@pytest.mark.parametrize(("kernel", "wrong", "message"), [
    ("cudnn", {}, "kernel='cudnn' with context='none' runs on gpu, not on cpu; permitted here: 'chunked', 'xla'"),
    ("cudnn", {"platform": "gpu"}, "takes bfloat16, float16, not float32; permitted here: 'chunked', 'xla'"),
    ("cudnn", {"platform": "gpu", "dtype": "bfloat16", "head_dim": 60}, "multiple of 8 and <= 128, not 60"),
    ("cudnn", {"platform": "gpu", "dtype": "bfloat16", "bias": True}, "takes no bias"),
    ("splash", {}, "runs on tpu, not on cpu"),
    ("splash", {"platform": "tpu", "extra_keys": True}, "takes no extra_keys"),
    ("cudnn", {"platform": "gpu", "dtype": "bfloat16", "extra_keys": True, "pattern": WithExtraKeys(inner=Causal())},
     "takes no extra_keys tokens with Causal"),
    ("cudnn", {"platform": "gpu", "dtype": "bfloat16", "extra_keys": True, "extra_hidden": True,
               "pattern": WithExtraKeys(inner=Full())}, "takes no extra_keys tokens that some queries do not see"),
    ("splash", {"platform": "tpu", "pattern": Causal(), "shape": (128, 64, 128)},
     "takes sequences of Causal(window=None) up to 450000 tokens, not 1048576; permitted here: 'chunked', 'xla'"),
])
def test_limits_of_a_kernel_are_named_with_what_fits(kernel, wrong, message):
    with refused("capability.resolve") as error:
        resolve(request(**wrong), kernel, "none")
    assert message in str(error.value)


def test_auto_on_a_cpu_is_dense_until_it_does_not_pay():
    for pattern in BY_NAME.values():
        assert resolve(request(pattern, (2, 4, 4)), "auto", "none") == "xla"  # what the small shipped configs get
    assert resolve(request(Full(), (8, 4, 4), batch=64), "auto", "none") == "xla"
    assert resolve(request(SparseCausal()), "auto", "none") == "gather"
    assert resolve(request(Temporal(), (16, 64, 64)), "auto", "none") == "xla"
    assert resolve(request(Full(), (1, 16, 16)), "auto", "none") == "xla"
    assert resolve(request(Full(), (8, 8, 8)), "auto", "none") == "chunked"
    assert resolve(request(Full(), (8, 8, 8), platform="gpu"), "auto", "none") == "xla"
    assert resolve(request(Full(), (16, 64, 64), platform="gpu"), "auto", "none") == "chunked"
    assert resolve(request(LocalWindow(), (64, 64, 64)), "auto", "none") == "chunked"


def test_auto_asks_what_a_kernel_sees_of_tiles():
    """In their order, 27 of 64 tiles, which it gathers; frame by frame three quarters of the frames. On a CPU it reads
    whole tiles in place."""
    tiles = SlidingTiles(tile=(4, 2, 2))
    by_frames = dataclasses.replace(tiles, order="frames")
    assert (request(tiles).frames_share, request(by_frames).frames_share) == (27 / 64, 12 / 16)
    outside = WithExtraKeys(inner=tiles)
    for pattern, kernel in ((tiles, "gather"), (outside, "gather"), (by_frames, "xla")):
        assert resolve(request(pattern, platform="gpu", extra_keys=pattern is outside), "auto", "none") == kernel
    assert request(tiles).whole_frames and not request(by_frames).whole_frames
    assert resolve(request(tiles, tiled=True), "auto", "none") == "xla"


def test_auto_on_a_tpu_and_on_a_gpu():
    tpu = {"platform": "tpu", "dtype": "bfloat16"}
    for pattern in (Full(), Causal(), SparseCausal(), LocalWindow()):
        assert resolve(request(pattern, (16, 32, 32), **tpu), "auto", "none") == "splash"
    assert resolve(request(Full(), (128, 64, 128), **tpu), "auto", "none") == "splash"
    assert resolve(request(Causal(), (128, 64, 128), **tpu), "auto", "none") == "chunked"
    assert resolve(request(Full(), (16, 32, 32), bias=True, **tpu), "auto", "none") == "chunked"
    assert resolve(request(Spatial(), (16, 16, 16), **tpu), "auto", "none") == "xla"  # short sequences
    assert resolve(request(Temporal(), (16, 32, 32), **tpu), "auto", "none") == "xla"
    gpu = {"platform": "gpu", "dtype": "bfloat16"}
    for pattern in (Full(), Spatial(), SparseCausal()):
        assert resolve(request(pattern, (16, 32, 32), **gpu), "auto", "none") == "cudnn"
    assert resolve(request(LocalWindow(), (16, 16, 16), **gpu), "auto", "none") == "gather"
    cross = {"pattern": cross_pattern(1), "shape": (16, 32, 32), "extra_keys": True, "extra_tokens": 77}
    assert resolve(request(**cross, **gpu), "auto", "none") == "cudnn"
    assert resolve(request(**cross, **gpu, extra_hidden=True), "auto", "none") == "xla"
    assert resolve(request(**cross, **tpu), "auto", "none") == "xla"
    assert resolve(request(Full(), (16, 32, 32), platform="gpu"), "auto", "none") == "chunked"  # float32


def test_auto_logs_each_choice_once(caplog):
    _choose.cache_clear()
    with caplog.at_level(logging.INFO, logger="vdm_jax.attention.capability"):
        for _ in range(3):
            resolve(request(SparseCausal(), (8, 4, 4)), "auto", "none")
    assert [r.getMessage() for r in caplog.records] == [
        "attention auto: gather for SparseCausal(first=True, previous=True, own=False) on cpu, 8x4x4 tokens, "
        "8 heads of 64, float32"]
