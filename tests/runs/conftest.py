"""The cascade of two tiny stages that tests of the generator have too."""

from tests.generation.conftest import experiment, params  # noqa: F401 (fixtures)
