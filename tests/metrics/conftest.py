"""Detectors of the extra [metrics]: tests that need their weights are skipped where they are not installed."""

import pytest

from vdm_jax.errors import UserError
from vdm_jax.metrics.detectors import weights


@pytest.fixture(scope="session")
def trained():
    """A function that skips the test unless a detector's file is here."""

    def require(file):
        try:
            weights.find(file)
        except UserError as error:
            pytest.skip(str(error))
        return file

    return require
