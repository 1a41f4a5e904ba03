"""Where the studies are, and the command line in this process."""

from pathlib import Path

import pytest
from tests.runs.conftest import call

__all__ = ["call"]


@pytest.fixture(scope="session")
def studies() -> Path:
    return Path(__file__).parents[2] / "experiments"
