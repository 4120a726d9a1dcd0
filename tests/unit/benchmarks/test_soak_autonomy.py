"""The soak of 72 hours alone: it goes on where it was, and says which event broke the promise."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from benchmarks.measurement import ROOT
from benchmarks.soak import autonomy
from benchmarks.soak.autonomy import EVENTS, Case, Progress


def test_a_run_that_was_interrupted_goes_on_and_the_event_that_breaks_the_promise_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autonomy, "PROGRESS", tmp_path / "soak.json")
    ran = list[tuple[str, int]]()

    def pretend(event: str, seed: int) -> Case:
        ran.append((event, seed))
        return Case(event, seed, (event, seed) != ("power cut", 3), 100.0, 10**8)

    monkeypatch.setattr(autonomy, "run", pretend)
    begun = [Case(event, seed, True, 90.0, 10**8) for event, seed in autonomy.list_cases()[:16]]
    autonomy.PROGRESS.write_bytes(msgspec.json.encode(Progress(0, begun)))
    found = {figure.what: figure for figure in autonomy.measure().figures}
    assert ran == autonomy.list_cases()[16:] and len(ran) == 2
    assert not autonomy.PROGRESS.exists()
    monkeypatch.setattr(autonomy, "SEEDS", (3,))
    ended = {figure.what: figure for figure in autonomy.measure().figures}
    assert ended["power cut: cases kept"].kept is False and ended["full disk: cases kept"].kept is True
    assert found["agent killed: cases kept"].value == "3 of 3"


def test_each_case_is_a_test_that_there_is() -> None:
    for event, case in EVENTS.items():
        file, _, name = case.partition("::")
        text = (ROOT / file).read_text()
        assert f"def {name.partition('[')[0]}(" in text
        assert event == "secret changed" or re.search(rf'"event", \[.*"{event}"', text)
