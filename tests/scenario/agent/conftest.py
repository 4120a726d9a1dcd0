"""What holds for every scenario of an agent: it reports a moment after the report before, so that no test waits for its pace."""

from __future__ import annotations

import pytest

from weft.agent.server import reporter


@pytest.fixture(autouse=True)
def quick_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "TICK_SECONDS", 0.02)
