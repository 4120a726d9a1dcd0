"""A soak goes on where it was, with its own seed, and begins afresh once it is through."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from benchmarks.soak.progress import read_progress
from benchmarks.soak.workloads import Progress


def test_it_goes_on_until_it_is_through_or_another_seed_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "progress.json"
    monkeypatch.setenv("WEFT_SOAK_SEED", "7")
    assert read_progress(path, Progress, lambda kept: True) == Progress(7)
    path.write_bytes(msgspec.json.encode(Progress(7, rounds=3)))
    assert read_progress(path, Progress, lambda kept: kept.rounds < 4).rounds == 3
    assert read_progress(path, Progress, lambda kept: kept.rounds < 3) == Progress(7)
    monkeypatch.setenv("WEFT_SOAK_SEED", "8")
    assert read_progress(path, Progress, lambda kept: True) == Progress(8)
    path.write_bytes(b"{")
    assert read_progress(path, Progress, lambda kept: True) == Progress(8)
