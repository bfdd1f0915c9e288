"""What a refusal says, whatever its words."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from vdm_jax.commands.main import main
from vdm_jax.errors import UserError


@contextlib.contextmanager
def refused(code: str, *named: str) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """The block raises `UserError` of this code, whose message names these: values, files, what is permitted."""
    with pytest.raises(UserError) as error:
        yield error
    assert error.value.code == code, f"{error.value.code}: {error.value}"
    for part in named:
        assert part in str(error.value)


def refusals_of_commands(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs a command, which is refused, and returns what it says."""
    def fails(*arguments: str) -> str:
        capfd.readouterr()
        assert main(list(arguments)) == 2
        return capfd.readouterr().err

    return fails
