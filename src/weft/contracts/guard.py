"""The guard contract: a process of the node, which outlives the agent, ends guests at a time that the agent puts off again and
again.

Times are seconds of CLOCK_BOOTTIME, which counts a suspended machine's sleep. Ids are guests' 10-character short ids. What the
guard holds survives ``kill -9`` of the agent and of the guard; a machine that starts again holds nothing, and has no guests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

MOST_GUESTS = 1000  # that a guard holds


class Held(msgspec.Struct, frozen=True):
    """The hold of one guest."""

    until: float  # nothing of it runs later; what is started later is ended again
    ended_at: float = 0.0  # when something of it was ended; 0: nothing since ``until`` was set


class GuardDriver(Protocol):
    @property
    def boot_id(self) -> str:
        """The id of this start of the machine: times of another one mean nothing."""

    def read_time(self) -> float: ...

    async def check(self) -> str:
        """Why guests can't be ended here, or ""."""

    async def renew(self, until: Mapping[str, float]) -> dict[str, Held]:
        """Let each of these guests run until then, and no others; the others that are held stay as they are. Returns all that are
        held once they are for good. Begins a guard if there is none. Raises DriverFailed."""

    async def drop(self, ids: Iterable[str]) -> None:
        """These may run for good, or are gone. A guard that holds nothing ends. Raises DriverFailed."""

    async def read(self) -> dict[str, Held]:
        """All that are held, also by a guard that was killed. Raises DriverFailed."""

    def end(self, guest_id: str) -> None:
        """End the guest now, from this process: of a caller that can't reach the guard."""
