"""Where the studies are."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def studies() -> Path:
    return Path(__file__).parents[2] / "experiments"
