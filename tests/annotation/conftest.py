"""What tests of folders of control maps share."""

import pytest


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A folder of the test's own to work in, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set by tests/conftest.py")
    monkeypatch.chdir(tmp_path)
