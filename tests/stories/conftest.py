"""Where a story keeps its things: on this machine, or in PostgreSQL and an S3-compatible store."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["local", "shared"])
def storage(request: pytest.FixtureRequest) -> dict[str, str]:
    """What the environment adds; the project's files are the same."""
    found: dict[str, str] = {} if request.param == "local" else request.getfixturevalue("shared_storage")
    return found
