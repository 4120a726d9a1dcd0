"""What holds for every test: drawn examples are the same each time, and no example is timed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from weft.images.parts import AGENT, compile_program

# A suite that draws anew each time fails on the day nobody changed anything; new draws belong to the long runs.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def agent_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's agent, as a program of this machine."""
    return compile_program(AGENT, tmp_path_factory.mktemp("agent") / "weft-agent")
