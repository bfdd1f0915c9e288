"""Commands in README and docs are commands that exist: each is parsed, and none is run."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from vdm_jax.commands.arguments import override, parse_with_rest
from vdm_jax.commands.configs import config_names, load_config, read_header
from vdm_jax.commands.main import COMMANDS

ROOT = Path(__file__).parent.parent
STOPS = ("&&", "|", ";", "&", ">", '"')


def commands_of(text: str) -> list[list[str]]:
    """The words of every `vdm-jax ...` line of indented or fenced code."""
    text = re.sub(r"\$\w+|\$\(\(.*?\)\)", "1", re.sub(r"\\\n\s*", " ", text))  # variables of a shell: any number
    lines = [line for block in re.findall(r"^```.*?\n(.*?)^```", text, re.S | re.M) for line in block.splitlines()]
    lines += re.findall(r"^    (vdm-jax .*)$", text, re.M)
    found = []
    for line in lines:
        if not (start := re.search(r"(?<![\w/])vdm-jax ", line)):
            continue
        line = line[start.end():]
        line = line[:-1] if line.count('"') % 2 else line  # the end of a command in quotes
        words = shlex.split(line, comments=True)
        found.append(words[:next((i for i, word in enumerate(words) if word in STOPS), len(words))])
    return found


def cases():
    """Every command and the file it stands in."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for words in commands_of(path.read_text()):
            yield pytest.param(words, id=f"{path.name}:{' '.join(words)[:60]}")
    for name in ("my_videos", "my_captioned_videos"):
        for words in re.findall(r"vdm-jax (.*?)(?= vdm-jax|$)", read_header(config_names()[name]).sections["Run"]):
            yield pytest.param(shlex.split(words), id=f"{name}:{words[:60]}")


def options_of(command: str):
    """The dataclass of a command's options."""
    module = importlib.import_module(f"vdm_jax.commands.{command}_command")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__
             and kind.__name__.lower().startswith(command) and hasattr(kind, "__dataclass_fields__")]
    assert len(kinds) == 1, f"{command}: {kinds}"
    return kinds[0]


@pytest.mark.parametrize("words", list(cases()))
def test_a_command_of_the_documentation_parses(words):
    name, *rest = (word for word in words if word not in ("[OTHER_RUN", "...]"))
    assert name in COMMANDS
    options, unknown = parse_with_rest(options_of(name), rest, f"vdm-jax {name}")
    if unknown:  # values of a config
        assert name in ("train", "compile"), unknown
        config = options.config if options.config in config_names() else "captioned_digits"
        override(load_config(config), unknown, f"vdm-jax {name}")


def test_commands_are_found():
    assert commands_of("```sh\nX=1 vdm-jax train a \\\n   --seed 1  # why\n```\n    vdm-jax list\n") == [
        ["train", "a", "--seed", "1"], ["list"]]
    assert len(list(cases())) > 20
