"""The capability table: what is in it runs, what is not is an error that lists what is."""

from __future__ import annotations

import dataclasses

import pytest

from vdm_jax.attention.capability import CAPABILITIES, require
from vdm_jax.attention.kernels import KERNELS
from vdm_jax.attention.patterns import Full, Spatial, Temporal
from vdm_jax.errors import UserError
from vdm_jax.networks.config import SelfAttention


def test_every_entry_names_a_kernel_and_passes():
    by_name = {type(p).__name__: p for p in (Spatial(), Temporal(), Full())}
    assert CAPABILITIES
    for (kernel, context), names in CAPABILITIES.items():
        assert kernel in KERNELS
        for name in names:
            require(by_name[name], kernel, context)


@pytest.mark.parametrize(("kernel", "context"), [("splash", "none"), ("xla", "ring"), ("splash", "ring")])
def test_an_unsupported_pair_is_named_with_what_is_permitted(kernel, context):
    with pytest.raises(UserError) as error:
        require(Temporal(), kernel, context)
    assert str(error.value) == (
        f"attention kernel={kernel!r}, context={context!r} is not supported with pattern Temporal; "
        "permitted: kernel='xla' with context='none'")


def test_a_pattern_in_no_entry_is_named():
    @dataclasses.dataclass(frozen=True)
    class Spiral:
        pass

    with pytest.raises(UserError, match="not supported with pattern Spiral; permitted: nothing yet"):
        require(Spiral(), "xla", "none")


def test_a_config_with_an_unsupported_pair_cannot_be_made():
    with pytest.raises(UserError, match="context='ring' is not supported with pattern Full"):
        SelfAttention(pattern=Full(), context="ring")
