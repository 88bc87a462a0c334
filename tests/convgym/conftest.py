"""Fixtures of the conversation environments: every registered id goes through the same battery."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.convgym.play import IDS

# Runs are derandomised: a test that fails here fails everywhere, and a red build is never luck.
settings.register_profile(
    "convgym",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(params=IDS)
def env_id(request: pytest.FixtureRequest) -> str:
    """Every registered id."""
    return str(request.param)
