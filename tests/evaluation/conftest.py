"""The fixture of detectors, for evaluations that use them."""

from tests.metrics.conftest import trained

__all__ = ["trained"]
