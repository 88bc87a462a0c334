"""Every registered id goes through the same battery."""

from __future__ import annotations

import pytest

from tests.convgym.play import IDS


@pytest.fixture(params=IDS)
def env_id(request: pytest.FixtureRequest) -> str:
    """Every registered id."""
    return str(request.param)
