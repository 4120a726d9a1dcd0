"""Whether a path is found slow: none of these looks at a real clock."""

from __future__ import annotations

import pytest

from weft.agent.migration.bandwidth import MORE_BYTES, find_slow_path
from weft.contracts.clock import Clock
from weft.protocol.migration import MigrationAnswer, MigrationRequest


class Path:
    """Answers after ``trip`` seconds and what the bytes take; a new connection needs some round trips to be fast. ``hiccups``:
    seconds that the questions take longer, from the first on."""

    def __init__(self, bytes_per_second: float, trip: float = 0.001, hiccups: tuple[float, ...] = ()) -> None:
        self.now, self.sent = 100.0, 0
        self._rate, self._trip, self._hiccups = bytes_per_second, trip, list(hiccups)
        self._window = 14_000

    def elapsed(self) -> float:
        return self.now

    async def ask(self, ask: MigrationRequest) -> MigrationAnswer:
        left = len(ask.padding)
        self.sent += left
        seconds = self._trip + left / self._rate
        while left > self._window:  # sends as much, waits for the answer
            left -= self._window
            self._window *= 2
            seconds += self._trip
        self.now += seconds + (self._hiccups.pop(0) if self._hiccups else 0.0)
        return MigrationAnswer()

    async def find(self) -> float | None:
        return await find_slow_path(self.ask, _clock(self))


def _clock(path: Path) -> Clock:
    return path  # type: ignore[return-value]  # of a clock only what has passed is asked


@pytest.mark.parametrize("trip", [0.0002, 0.02, 0.08])
@pytest.mark.parametrize("mbit", [0.5, 1, 4, 10])
async def test_a_slow_path_is_told_to_a_third(mbit: float, trip: float) -> None:
    rate = mbit * 125_000
    found = await Path(rate, trip).find()
    if found is None:
        assert trip == 0.08 and mbit == 10  # round trips hide it
    else:
        assert 0.67 * rate <= found <= 1.5 * rate


@pytest.mark.parametrize("trip", [0.0002, 0.02, 0.08])
@pytest.mark.parametrize("mbit", [100, 1000, 10_000])
async def test_a_fast_path_is_not_called_slow_and_costs_little(mbit: float, trip: float) -> None:
    path = Path(mbit * 125_000, trip)
    assert await path.find() is None
    assert path.sent < MORE_BYTES


@pytest.mark.parametrize("hiccups", [(0.3,), (0, 0.2), (0, 0, 0.1), (0, 0, 0.24)])
async def test_a_hiccup_of_either_node_is_no_slow_path(hiccups: tuple[float, ...]) -> None:
    assert await Path(1.25e9, 0.0005, hiccups).find() is None
