"""Moving a running guest from one node's runtime to another's: what both sides promise, step by step.

A move has a ``key``; every step names it and may be repeated, also by a driver made anew after a crash. Bytes go from
the source's machine to a unix socket of the target's; who carries them between nodes is not the runtime's business.

The order: source ``describe``, ``sample`` · target ``expect`` · source ``send`` · the source's facts say ``handedOver`` · target
``take_over`` · source ``leave``. Until the source says ``handedOver`` the target stands still, so a move that breaks
earlier is broken for the target alone: the guest goes on at the source. After it the source stands still for good,
unless the target's ``give_up`` says that the guest never ran there; that word goes into ``cancel``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from weft.contracts.driver.runtime import GuestFacts, GuestPlan

MigrationMode = Literal["plain", "xbzrle", "multifd-zstd", "auto-converge", "post-copy", "stop-and-copy"]
MigrationStage = Literal["waiting", "migrating", "switching", "handedOver", "arrived", "takenOver", "failed"]


class MigrationSettings(msgspec.Struct, frozen=True):
    """How a guest's memory goes over; the same on both sides. ``pause_ms``: how long the guest may stand still at the end,
    as far as QEMU can tell beforehand. ``bytes_per_second`` 0: as fast as it goes. ``slowdown``: the share of its CPUs that
    the guest is kept from, once passes don't shrink; 0: it isn't, until ``adjust`` says so."""

    mode: MigrationMode = "plain"
    bytes_per_second: int = 0
    pause_ms: int = 300
    streams: int = 4  # of multifd
    slowdown: float = 0.0
    cache_bytes: int = 64 << 20  # of xbzrle: at least what the guest keeps writing to
    copied_disks: tuple[str, ...] = ()  # serials of those that the nodes don't share: what is on them goes over too

    @property
    def connections(self) -> int:
        """How many the source's machine opens for its memory."""
        return self.streams + 1 if self.mode == "multifd-zstd" else 1


class MigrationSockets(msgspec.Struct, frozen=True):
    """Where a target waits: for memory, over several connections in some modes, and for disks if there are any to copy."""

    memory: str
    disks: str = ""


class MigratingGuest(msgspec.Struct, frozen=True):
    """What the target must know of the machine to build the same; ``machine`` is the driver's own words."""

    plan: GuestPlan
    driver: str
    version: str
    accelerator: str
    boot_id: str | None
    machine: dict[str, Any]


class MigrationFacts(msgspec.Struct, frozen=True):
    """What is true of a move at one side. Source: waiting, moving, switching (stands still, may run on), handedOver;
    target: waiting, moving, arrived (all is there, nothing has run), takenOver; either: failed. Bytes as the machine
    counts them; a rate of 0 is not known yet. ``reason`` and ``message``: why it failed; ``noSpace``: a disk there is full."""

    key: str
    role: Literal["source", "target"]
    phase: MigrationStage
    message: str | None = None
    reason: str = ""
    sent_bytes: int = 0
    remaining_bytes: int = 0
    total_bytes: int = 0
    passes: int = 0  # how often the source has looked for what was written meanwhile
    dirty_bytes_per_second: int = 0
    bytes_per_second: int = 0
    expected_pause_ms: int = 0
    elapsed_ms: int = 0


class Load(msgspec.Struct, frozen=True):
    """What a guest does to its memory, and how much there is of it. ``memory_bytes``: all that isn't zero; ``disk_bytes``: what
    each of its own disks holds, by serial, beside the image it is made from; ``written_bytes``: what it writes to, again and
    again; ``changed_share``: of the words of a page that it writes to, those that differ afterwards; ``compression``: how
    much smaller what it writes gets, ``still_compression``: all its memory; ``spread``: the standard deviation of the
    rate over the samples, as a share of it."""

    memory_bytes: int
    dirty_bytes_per_second: float
    written_bytes: int
    changed_share: float
    compression: float
    still_compression: float = 1.0
    samples: int = 1
    spread: float = 0.5
    disk_bytes: dict[str, int] = {}


class MigrationEvent(msgspec.Struct, frozen=True):
    """``stopped``, ``resumed``: the guest stands still here, or runs; ``moved``: the phase may have changed; ``copied``: the copy
    of a disk has come further."""

    name: Literal["stopped", "resumed", "migrated", "copied"]
    at: float  # seconds of this node's elapsed clock


class MigrationDriver(Protocol):
    """Steps of one guest's move at one node. An unknown key is an IllegalTransition."""

    async def describe(self, guest_id: str) -> MigratingGuest:
        """Source: the machine as it is now. Raises IllegalTransition for a guest that doesn't run."""

    async def sample(self, guest_id: str, *, seconds: float = 1.0) -> Load:
        """Source: what the guest does to its memory within ``seconds``; it doesn't notice. Raises IllegalTransition for a guest
        that doesn't run, Unavailable."""

    async def expect(
        self, plan: GuestPlan, guest: MigratingGuest, key: str, settings: MigrationSettings
    ) -> MigrationSockets:
        """Target: a machine built like ``guest``, with this node's own paths from ``plan``, that waits for its memory at
        the unix sockets that are returned. Disks to copy are there already,
        empty and as large. It runs nothing. Raises InvalidInput for a plan of another machine,
        DriverFailed."""

    async def send(self, guest_id: str, key: str, to: MigrationSockets, settings: MigrationSettings) -> None:
        """Source: begin to send to the unix sockets ``to``; returns when it is under way. A move that has failed
        begins anew, with a target that was expected anew."""

    async def progress(self, guest_id: str, key: str) -> MigrationFacts:
        """Either side: what is true now. The source's ``handedOver`` is for good."""

    async def adjust(
        self,
        guest_id: str,
        key: str,
        *,
        bytes_per_second: int | None = None,
        pause_ms: int | None = None,
        slowdown: float | None = None,
    ) -> None:
        """Source: other limits from now on, while it moves. Once a guest is slowed down, it stays so until the end."""

    def events(self, guest_id: str) -> AsyncIterator[MigrationEvent]:
        """Either side: what happens to the guest from the first ``anext`` on; ends with its machine."""

    async def cancel(self, guest_id: str, key: str, *, never_ran: bool = False) -> GuestFacts:
        """Source: the guest goes on here. What was handed over, or died under way, only with the target's word that it
        ``never_ran`` there: IllegalTransition else. An unknown key is fine: nothing of it is under way."""

    async def take_over(self, guest_id: str, key: str) -> GuestFacts:
        """Target: the guest runs here from now on. To be called only when the source has said ``handedOver``; raises
        IllegalTransition before all has arrived."""

    async def give_up(self, guest_id: str, key: str) -> None:
        """Target: end the machine and forget the guest. Its return is the word that the guest never ran here under this
        key and never will; raises IllegalTransition if it may have."""

    async def leave(self, guest_id: str, key: str) -> None:
        """Source: end the machine that was handed over, without touching what moved. Raises IllegalTransition before."""


@runtime_checkable
class CanMigrate(Protocol):
    migrations: MigrationDriver
