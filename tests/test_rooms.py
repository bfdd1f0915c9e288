"""Who may import whom: rooms import rooms above them, and no two files import each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vdm_jax"
# From above to below: a room imports rooms before it.
ROOMS = ("versions", "errors", "seeds", "configuration", "video", "parallel", "diffusion", "attention", "conditions",
         "networks", "weights", "digits", "data", "metrics", "annotation", "stages", "generation", "runs", "training",
         "pipelines", "evaluation", "reports", "planning", "benchmark", "commands")


@cache
def imports() -> dict[str, set[str]]:
    """Which files of the package (as modules) each of its files imports, inside functions too."""
    files = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        targets = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vdm_jax":
                targets |= {f"{node.module}.{alias.name}" for alias in node.names} & set(files) or {node.module}
            elif isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names if alias.name.split(".")[0] == "vdm_jax"}
        found[module] = targets - {module}
    return found


def module_of(path: Path) -> str:
    return ".".join(("vdm_jax", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def room_of(module: str) -> str:
    return (module.split(".") + [""])[1]


def test_every_room_is_in_the_order():
    assert {room_of(module) for module in imports()} - {""} == set(ROOMS)


def test_no_room_imports_a_room_below_it():
    wrong = [(module, target) for module, targets in imports().items() for target in targets
             if room_of(module) and room_of(target)  # the package itself offers what is below
             and ROOMS.index(room_of(target)) > ROOMS.index(room_of(module))]
    assert not wrong


def test_no_file_imports_the_package_itself():
    """It imports what is below, when it is asked to, so this would be a circle."""
    assert not [module for module, targets in imports().items() if "vdm_jax" in targets]


def test_no_files_import_in_a_circle():
    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            pytest.fail(" -> ".join((*path[path.index(module):], module)))
        if module not in done:
            for target in imports().get(module, ()):
                visit(target, (*path, module))
            done.add(module)

    done: set[str] = set()
    for module in imports():
        visit(module, ())


def test_sampling_an_exported_run_needs_no_trainer_and_reads_no_checkpoints():
    code = ("import sys, vdm_jax.runs.directory, vdm_jax.generation.generator; "
            "print([m for m in sys.modules if m in ('optax', 'orbax.checkpoint') or m.startswith('vdm_jax.training')])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
