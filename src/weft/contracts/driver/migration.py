"""Migration of a running guest from one node's runtime to another's: what source and target promise, step by step.

A migration has a ``key``; every step names it and may be repeated, also by a driver made anew after a crash. Bytes go from the
source's machine to a unix socket of the target's; who carries them between nodes is not the runtime's business.

The order: source ``describe``, ``sample`` · target ``expect`` · source ``send`` · the source's facts become ``handedOver`` ·
target ``take_over`` · source ``leave``. Until the source reports ``handedOver`` the target stands still, so a migration that
fails earlier ends only the target: the guest goes on at the source. After it the source stands still for good, unless the
target's ``give_up`` proves that the guest never ran there; ``cancel`` takes that proof.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from weft.contracts.driver.runtime import GuestFacts, GuestPlan

MigrationMode = Literal["plain", "xbzrle", "multifd-zstd", "auto-converge", "post-copy", "stop-and-copy"]
MigrationStage = Literal["waiting", "migrating", "switching", "handedOver", "arrived", "takenOver", "failed"]


class MigrationSettings(msgspec.Struct, frozen=True):
    """How a guest's memory is sent; the same for source and target."""

    mode: MigrationMode = "plain"
    bytes_per_second: int = 0  # 0: no limit
    pause_ms: int = 300  # how long the guest may stand still at the end, as far as QEMU can predict
    streams: int = 4  # of multifd
    slowdown: float = 0.0  # share of its CPUs taken from the guest once passes don't shrink; 0: none, until ``adjust``
    cache_bytes: int = 64 << 20  # of xbzrle: at least what the guest keeps writing to
    copied_disks: tuple[str, ...] = ()  # serials of the disks that the nodes don't share, so their content is sent too

    whole: bool = False  # so is what they stand on, but for their image, which both nodes have

    @property
    def connections(self) -> int:
        """How many the source's machine opens for its memory."""
        return self.streams + 1 if self.mode == "multifd-zstd" else 1


class MigrationSockets(msgspec.Struct, frozen=True):
    """The sockets where a target waits: for memory, over several connections in some modes, and for disks if there are any to
    copy."""

    memory: str
    disks: str = ""


class MigratingGuest(msgspec.Struct, frozen=True):
    """The facts that the target must know of the machine to build the same one."""

    plan: GuestPlan
    driver: str
    version: str
    accelerator: str
    boot_id: str | None
    machine: dict[str, Any]  # in the driver's own form


class MigrationFacts(msgspec.Struct, frozen=True):
    """Facts about a migration at its source or target. Bytes as the machine counts them; a rate of 0 is not known yet."""

    key: str
    role: Literal["source", "target"]
    # Source: waiting, migrating, switching (stands still, may run on), handedOver. Target: waiting, migrating, arrived (all is
    # there, nothing has run), takenOver. Either: failed.
    phase: MigrationStage
    message: str | None = None  # why it failed
    reason: str = ""  # why it failed; noSpace: a disk at the target is full
    sent_bytes: int = 0
    remaining_bytes: int = 0
    total_bytes: int = 0
    passes: int = 0  # how often the source has searched for pages that were written meanwhile
    dirty_bytes_per_second: int = 0
    bytes_per_second: int = 0
    expected_pause_ms: int = 0
    elapsed_ms: int = 0


class Load(msgspec.Struct, frozen=True):
    """The load that a guest puts on its memory, and how much there is of it."""

    memory_bytes: int  # all that isn't zero
    dirty_bytes_per_second: float
    written_bytes: int  # what it writes to, again and again
    changed_share: float  # of the words of a page that it writes to, those that differ afterwards
    compression: float  # how much smaller what it writes gets
    still_compression: float = 1.0  # how much smaller all its memory gets
    samples: int = 1
    spread: float = 0.5  # standard deviation of the rate over the samples, as a share of it
    disk_bytes: dict[str, int] = {}  # serial → what its own disk holds beside the image it is made from


class MigrationEvent(msgspec.Struct, frozen=True):
    # stopped, resumed: the guest stands still here, or runs; migrated: the phase may have changed; copied: more of a disk is copied
    name: Literal["stopped", "resumed", "migrated", "copied"]
    at: float  # seconds of this node's elapsed clock


class MigrationDriver(Protocol):
    """Steps of one guest's migration at one node. An unknown key is an IllegalTransition."""

    async def describe(self, guest_id: str) -> MigratingGuest:
        """Source: the machine as it is now. Raises IllegalTransition for a guest that doesn't run."""

    async def sample(self, guest_id: str, *, seconds: float = 1.0) -> Load:
        """Source: what the guest does to its memory within ``seconds``; the guest doesn't notice. Raises IllegalTransition for
        a guest that doesn't run, Unavailable."""

    async def expect(
        self, plan: GuestPlan, guest: MigratingGuest, key: str, settings: MigrationSettings
    ) -> MigrationSockets:
        """Target: start a machine built like ``guest``, with this node's own paths from ``plan``; it runs nothing and waits for
        its memory at the unix sockets that are returned. Disks to copy exist already, empty and as large, on the same image and
        copies of the same layers. Raises InvalidInput for a plan of another machine, DriverFailed."""

    async def send(self, guest_id: str, key: str, to: MigrationSockets, settings: MigrationSettings) -> None:
        """Source: begin to send to the unix sockets ``to``; returns when sending has begun. A failed migration begins anew,
        with a target that was expected anew."""

    async def progress(self, guest_id: str, key: str) -> MigrationFacts:
        """Source or target: the facts now. The source's ``handedOver`` is for good."""

    async def adjust(
        self,
        guest_id: str,
        key: str,
        *,
        bytes_per_second: int | None = None,
        pause_ms: int | None = None,
        slowdown: float | None = None,
    ) -> None:
        """Source: change limits of a migration under way. A guest that was slowed down stays so until the end."""

    def events(self, guest_id: str) -> AsyncIterator[MigrationEvent]:
        """Source or target: what happens to the guest from the first ``anext`` on; ends with its machine."""

    async def cancel(self, guest_id: str, key: str, *, never_ran: bool = False) -> GuestFacts:
        """Source: the guest goes on here. ``never_ran`` is the target's proof; without it, what was handed over or died under
        way is an IllegalTransition. An unknown key is fine."""

    async def take_over(self, guest_id: str, key: str) -> GuestFacts:
        """Target: the guest runs here from now on. Call it only once the source has reported ``handedOver``. Raises
        IllegalTransition before everything has arrived."""

    async def give_up(self, guest_id: str, key: str) -> None:
        """Target: end the machine and forget the guest. Its return proves that the guest never ran here under this key and
        never will; raises IllegalTransition if it may have."""

    async def leave(self, guest_id: str, key: str) -> None:
        """Source: end the machine that was handed over, and touch nothing that migrated. Raises IllegalTransition before."""


@runtime_checkable
class CanMigrate(Protocol):
    migrations: MigrationDriver
