"""What README and docs name exists: commands (parsed, not run), links, files, imports, configs. The site builds."""

from __future__ import annotations

import functools
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import readme_tables
from vdm_jax.commands.arguments import override, parse_with_rest
from vdm_jax.commands.configs import config_names, load_config, read_header
from vdm_jax.commands.main import COMMANDS

ROOT = Path(__file__).parent.parent
STOPS = ("&&", "|", ";", "&", ">", '"')
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = ("docs/images/shipped.gif",)  # that docs/_site.py adds


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
    for path in PAGES:
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


def anchors(path: Path) -> set[str]:
    """Names by which links reach the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        found = Path(os.path.normpath(page.parent / file)) if file else page
        assert found.exists() or found.relative_to(ROOT).as_posix() in GENERATED, target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(page):
    """Paths in backticks, from the repository or from the package."""
    named = re.findall(r"`([\w/]+\.(?:py|md|json|yml|ipynb)|(?:vdm_jax|tests|docs|experiments|configs)/[\w/]*)`",
                       page.read_text())
    missing = [name for name in named if "/" in name and "NAME" not in name and "STEP" not in name
               and not any((folder / name).exists() for folder in (ROOT, ROOT / "vdm_jax"))]
    assert not missing


def imports_of(code: str) -> list[tuple[str, str]]:
    """Modules and names that a block of Python imports from the package."""
    return [(module, name) for module, names in re.findall(r"^from (vdm_jax[\w.]*) import (.*)$", code, re.M)
            for name in names.split(", ")]


def test_imports_of_examples_exist():
    found = [pair for page in PAGES for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)
             for pair in imports_of(block)]
    for module, name in found:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
    assert len(found) > 5


@functools.cache
def table_of_systems() -> str:
    """The table of README."""
    return (ROOT / "README.md").read_text().split("## Systems")[1].split("\n## ")[0]


def test_configs_of_the_table_of_systems_exist():
    named = re.findall(r"`([\w/]+)`", table_of_systems())
    assert len(named) > 25 and set(named) <= set(config_names())


def test_status_in_the_table_of_systems_is_that_of_the_configs():
    trained = {name for name, path in config_names().items() if read_header(path).status == "trained"}
    rows = [line for line in table_of_systems().splitlines() if re.search(r"\| trained\s*\|$", line)]
    assert {name for row in rows for name in re.findall(r"`([\w/]+)`", row)} == trained


def test_readme_is_short_enough_to_be_read():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "decisions").glob("*.md")), ids=lambda page: page.stem)
def test_a_decision_has_at_most_ten_lines(page):
    for section in page.read_text().split("\n## ")[1:]:
        title, *lines = filter(str.strip, section.splitlines())
        assert 1 <= len(lines) <= 10, title


def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("mkdocs", reason="the site is built with requirements/docs.txt")
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
                          cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Process" in (tmp_path / "reference" / "diffusion.html").read_text()
    assert (tmp_path / "notebooks" / "digits.html").read_text().count("data:image/png") >= 2


def test_recorded_results_are_shown_as_recorded():
    for name, body in readme_tables.tables().items():
        text = readme_tables.page_of(name).read_text()
        assert readme_tables.insert(text, name, body) == text, "write it anew: python experiments/readme_tables.py"
