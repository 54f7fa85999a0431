"""Shared by the unit tests."""

import pytest
from world import World, make_world


@pytest.fixture
def world() -> World:
    """Three tasks, their experts, heads and inputs."""
    return make_world()
