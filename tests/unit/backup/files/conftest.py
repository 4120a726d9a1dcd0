"""The process that a reader without rights is forked from, in tests."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from weft.backup.files import confined


@pytest.fixture(autouse=True)
def small_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is forked from is small, as weft's is: the process of tests may be larger by itself than the bound."""
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    monkeypatch.setattr(confined, "MEMORY_BYTES", own + confined.MEMORY_BYTES)
