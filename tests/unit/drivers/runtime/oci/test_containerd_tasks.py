"""What containerd's books say of a container for a moment after it has ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from weft.drivers.runtime.oci.containerd.tasks import SHIM_SECONDS, Tasks
from weft.objects.errors import DriverFailed


class Clock:
    """As late as what was slept."""

    def __init__(self) -> None:
        self.at = 0.0

    def elapsed(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds


class Books:
    """A containerd that has noticed a shim's end once it was asked ``notices`` times for another task; never: it is alive."""

    def __init__(self, notices: int | None) -> None:
        self._notices, self.asked = notices, 0

    async def call(self, path: str, **fields: Any) -> Any:
        assert path == "tasks.v1.Tasks/Create"
        self.asked += 1
        if self._notices is None or self.asked <= self._notices:
            raise DriverFailed("task c1: already exists", details={"code": "ALREADY_EXISTS"})
        return SimpleNamespace(pid=7)


async def test_a_task_whose_shim_was_killed_is_waited_for_until_containerd_has_noticed() -> None:
    books = Books(notices=3)
    assert (await Tasks(books, Clock(), "n1").create("c1")).pid == 7  # type: ignore[arg-type]


async def test_one_that_lives_is_not_waited_for_for_ever() -> None:
    books, waits = Books(notices=None), Clock()
    with pytest.raises(DriverFailed, match="already exists"):
        await Tasks(books, waits, "n1").create("c1")  # type: ignore[arg-type]
    assert waits.elapsed() >= SHIM_SECONDS
