"""A saved tiny policy to start runs from."""

from __future__ import annotations

from pathlib import Path

import pytest

from algos.policies.embedded import save_policy
from algos.policies.load import Policy


@pytest.fixture(scope="session")
def model_folder(tiny_policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with the tiny policy."""
    return save_policy(tiny_policy, tmp_path_factory.mktemp("model") / "tiny")
