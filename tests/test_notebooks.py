"""The notebooks run from beginning to end, as a reader runs them. `make notebooks` stores in them what they show."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


# What the suite runs in place of a training: that it learns takes minutes (`--full`), and tests/training/test_loop.py
# has a smaller one that does.
SHORTER = {"digits": {
    "steps=320": "steps=4", "checkpoint_every=320": "checkpoint_every=4", "log_every=80": "log_every=1",
    "warmup_steps=10": "warmup_steps=1", "steps=24": "steps=2",
    "assert losses[320] < 0.5 * losses[80]": "assert list(losses) == [1, 2, 3, 4]",
    "assert right < wrong": "assert right > 0 and wrong > 0"}}


def run(path: Path, folder: str | Path, changes: Mapping[str, str] = MappingProxyType({})):
    """The notebook, run in a folder, with the outputs of its cells; `changes` of its code each occur once. Raises for a
    cell that raises."""
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for old, new in changes.items():
        (cell,) = (cell for cell in notebook.cells if re.search(rf"\b{re.escape(old)}", cell.source))
        cell.source = re.sub(rf"\b{re.escape(old)}", new, cell.source)
    nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3", record_timing=False,
                            resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


@pytest.fixture
def kernel(monkeypatch):
    """What the process of a notebook inherits: one device, and the tests' cache of compiled functions."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def check_ran(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.execution_count for cell in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, kernel, tmp_path):
    pytest.importorskip("nbclient", reason="notebooks run with requirements/docs.txt")
    check_ran(run(path, tmp_path, SHORTER.get(path.stem, {})))


@pytest.mark.full
@pytest.mark.parametrize("name", SHORTER)
def test_a_notebook_that_learns(name, kernel, tmp_path, monkeypatch):
    pytest.importorskip("nbclient", reason="notebooks run with requirements/docs.txt")
    for variable in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS"):  # it computes more than it compiles
        monkeypatch.delenv(variable, raising=False)
    check_ran(run(ROOT / "notebooks" / f"{name}.ipynb", tmp_path))


def test_there_are_notebooks():
    assert {"digits", "released_weights"} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_what_it_shows(path):
    """The site shows it."""
    shown = [output for cell in json.loads(path.read_text())["cells"] for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert not any(output["output_type"] == "error" for output in shown)


if __name__ == "__main__":
    import nbformat

    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(run(path, folder), path)
