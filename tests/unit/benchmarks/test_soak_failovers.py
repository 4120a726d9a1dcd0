"""The soak of failovers: it goes on where it was, and says which run broke the promise."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from benchmarks.soak import failovers
from benchmarks.soak.failovers import Progress, describe, run
from tests.simulation import two_sites


def test_a_run_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failovers, "PROGRESS", tmp_path / "soak.json")
    monkeypatch.setattr(failovers, "RUNS", 3)
    begun = Progress(7)
    run(begun, 2)
    failovers.PROGRESS.write_bytes(msgspec.json.encode(begun))
    measured = failovers.measure()
    assert "Seeds 7 to 9" in measured.summary and measured.figures[0].value == "0 of 3"
    assert not failovers.PROGRESS.exists()


def test_a_run_that_breaks_the_promise_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_sites, "change_replication", lambda *_: {})
    progress = Progress(45)
    run(progress, 1)
    assert progress.split == [45]
    assert next(one.kept for one in describe(progress, 1.0).figures) is False
