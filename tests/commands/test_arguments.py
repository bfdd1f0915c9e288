"""Errors of the command line: one line without repetition, what is permitted last."""

import dataclasses

import pytest
import tyro

from vdm_jax.commands.arguments import parse, plain
from vdm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 1.0  # per step

    def __post_init__(self):
        if self.rate <= 0:
            raise UserError(f"Inner.rate={self.rate} is not valid; permitted: > 0")


@dataclasses.dataclass(frozen=True)
class Options:
    """A command."""

    what: tyro.conf.Positional[str]  # the thing
    count: int = 3  # how many
    inner: Inner = Inner()


@pytest.mark.parametrize(("arguments", "message"), [
    (["a", "--nope"], "Unrecognized options: --nope"),
    (["a", "--coun", "1"], "Unrecognized options: --coun, 1; did you mean --count INT?"),
    (["a", "--count", "many"], "--count: invalid literal for int() with base 10: 'many'; "
                               "permitted: --count INT how many (default: 3)"),
    (["a", "--inner.rate", "-1"], "inner: Inner.rate=-1.0 is not valid; permitted: > 0"),
    ([], "Missing from vdm-jax x: STR the thing (required)"),
    (["a", "--count"], "Missing value for argument '--count'. Expected 1 values."),
])
def test_parser_errors_say_everything_once(arguments, message):
    with pytest.raises(UserError) as caught:
        parse(Options, arguments, "vdm-jax x")
    assert str(caught.value) == message


def test_a_choice_is_told_like_other_values(fails):
    line = fails("benchmark", "memory")
    assert line == "vdm-jax: error: what='memory' is not valid; permitted: 'attention'"


def test_colours_and_wrapping_are_removed():
    boxed = "\x1b[31m╭─ Value error ──╮\x1b[0m\n│ too \x1b[1mlarge,\x1b[0m   │\n│ by far  │\n╰───╯\n"
    assert plain(boxed) == "too large, by far"
