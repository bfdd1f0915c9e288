"""Filled parameters, as tests of networks have them."""

from tests.networks.conftest import filled, normal  # noqa: F401 (fixtures)
