"""The notebooks run from beginning to end, as a reader runs them. `make notebooks` stores in them what they show."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def run(path: Path, folder: str | Path):
    """The notebook, run in a folder, with the outputs of its cells. Raises for a cell that raises."""
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3", record_timing=False,
                            resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


@pytest.fixture
def kernel(monkeypatch):
    """What the process of a notebook inherits: one device, and the tests' cache of compiled functions."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, kernel, tmp_path, monkeypatch):
    pytest.importorskip("nbclient", reason="notebooks run with requirements/docs.txt")
    if path.stem == "digits":  # it computes more than it compiles
        for name in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS"):
            monkeypatch.delenv(name, raising=False)
    code = [cell for cell in run(path, tmp_path).cells if cell.cell_type == "code"]
    assert code and all(cell.execution_count for cell in code)


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
