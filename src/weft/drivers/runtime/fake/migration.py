"""Migrations between nodes of the fake runtime: a guest's file learns what the clock says has been sent by now.

Reads and writes the files of both guests; the target's file is the "socket". Nothing runs in between: the first reader
writes down what has come to pass, so migrations go on without a driver as real ones do.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.migration import (
    Load,
    MigratingGuest,
    MigrationEvent,
    MigrationFacts,
    MigrationSettings,
    MigrationSockets,
)
from weft.contracts.driver.runtime import GuestFacts, GuestPlan
from weft.drivers.runtime.fake.guest import FakeGuest, FakeMigration, describe_guest
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, NotFound

POLL_SECONDS = 0.01
_HERE = ("running", "starting", "paused")


class FakeMigrations:
    """See contracts.driver.migration."""

    def __init__(
        self,
        read: Callable[[str], FakeGuest | None],
        write: Callable[[FakeGuest], None],
        path: Callable[[str], Path],
        lock: Callable[[str], asyncio.Lock],
        clock: Clock,
        notify: Callable[[], None],
    ) -> None:
        self._read, self._write, self._path, self._lock = read, write, path, lock
        self._clock, self._notify = clock, notify

    def check_start(self, guest: FakeGuest | None, plan: GuestPlan) -> None:
        if guest is None or guest.migration is None or plan.incarnation > guest.plan.incarnation:
            return
        if guest.state != "running" and guest.migration.phase != "takenOver":
            raise IllegalTransition(f"guest {plan.name} is on its way to or from another node and may run there")

    def check_stays(self, guest: FakeGuest) -> None:
        if guest.migration is not None and guest.migration.phase != "takenOver":
            raise IllegalTransition(f"guest {guest.plan.name} is migrating")

    async def describe(self, guest_id: str) -> MigratingGuest:
        guest = self._running(guest_id)
        return MigratingGuest(guest.plan, "fake", "1", "none", guest.boot_id, {"ready": guest.ready})

    async def sample(self, guest_id: str, *, seconds: float = 1.0) -> Load:
        guest = self._running(guest_id)
        await self._clock.sleep(seconds)
        return Load(guest.plan.memory_bytes // 4, 0.0, 0, 0.0, 1.0)  # it writes nothing

    async def expect(
        self, plan: GuestPlan, guest: MigratingGuest, key: str, settings: MigrationSettings
    ) -> MigrationSockets:
        if (plan.name, plan.machine) != (guest.plan.name, guest.plan.machine):
            field = "name" if plan.name != guest.plan.name else "machine"
            raise InvalidInput(
                f"guest {plan.name}: the machine that comes has another {field} than the plan", field=field
            )
        async with self._lock(plan.id):
            found = self._read(plan.id)
            migration = found.migration if found is not None else None
            ours = (
                migration is not None
                and (migration.key, migration.role) == (key, "target")
                and migration.phase != "takenOver"
            )
            if found is not None and found.state in (*_HERE, "suspended") and not ours:
                raise IllegalTransition(f"guest {plan.name} is on this node already")
            if not (found is not None and ours and found.state == "starting"):
                pid = int.from_bytes(os.urandom(3), "little") + 1_000_000
                boot_id = guest.boot_id or str(uuid.uuid4())
                expected = FakeGuest(plan, "starting", boot_id, self._clock.now(), pid)
                expected.migration = FakeMigration(key, "target")
                self._write(expected)
        self._notify()
        return MigrationSockets(str(self._path(plan.id)))

    async def send(self, guest_id: str, key: str, to: MigrationSockets, settings: MigrationSettings) -> None:
        async with self._lock(guest_id):
            guest = self._running(guest_id)
            if guest.migration is not None and guest.migration.phase != "takenOver":
                self._migration(guest, key, "source")
                if guest.migration.phase not in ("waiting", "failed"):
                    return
            if _read_target(to.memory) is None:
                raise DriverFailed(f"guest {guest.plan.name}: nobody waits at {to.memory}", details={"step": "send"})
            rate = settings.bytes_per_second
            guest.migration = FakeMigration(
                key, "source", "migrating", to.memory, self._clock.elapsed(), bytes_per_second=rate
            )
            self._write(guest)
        self._notify()

    async def progress(self, guest_id: str, key: str) -> MigrationFacts:
        guest = self._inspect(guest_id)
        migration = self._migration(guest, key)
        if guest.state not in _HERE and not (migration.role == "source" and guest.reason == "migrated"):
            return MigrationFacts(key, migration.role, "failed", f"its machine has ended: {guest.reason}")
        total, sent = guest.plan.memory_bytes, self._sent(guest, migration)
        return MigrationFacts(
            key, migration.role, migration.phase, sent_bytes=sent, remaining_bytes=total - sent, total_bytes=total,
            passes=1, bytes_per_second=migration.bytes_per_second,
        )  # fmt: skip

    async def adjust(
        self,
        guest_id: str,
        key: str,
        *,
        bytes_per_second: int | None = None,
        pause_ms: int | None = None,
        slowdown: float | None = None,
    ) -> None:
        async with self._lock(guest_id):
            guest = self._inspect(guest_id)
            migration = self._migration(guest, key, "source")
            if bytes_per_second is not None:
                migration.sent_before, migration.began_at = self._sent(guest, migration), self._clock.elapsed()
                migration.bytes_per_second = bytes_per_second
                self._write(guest)

    async def events(self, guest_id: str) -> AsyncIterator[MigrationEvent]:
        before = self._inspect(guest_id)
        while (guest := self._read(guest_id)) is not None and guest.state in _HERE:
            self._bring_up_to_date(guest)
            if guest.state != before.state:
                yield MigrationEvent("resumed" if guest.state == "running" else "stopped", self._clock.elapsed())
            if (guest.migration and guest.migration.phase) != (before.migration and before.migration.phase):
                yield MigrationEvent("migrated", self._clock.elapsed())
            before = guest
            await self._clock.sleep(POLL_SECONDS)

    async def cancel(self, guest_id: str, key: str, *, never_ran: bool = False) -> GuestFacts:
        async with self._lock(guest_id):
            guest = self._inspect(guest_id)
            if guest.migration is None or guest.migration.key != key:
                return describe_guest(guest)
            if self._migration(guest, key, "source").phase == "handedOver" or guest.state not in _HERE:
                if not never_ran:
                    raise IllegalTransition(
                        f"guest {guest.plan.name} was already handed over, or ended during the migration"
                    )
            if guest.state == "paused":
                guest.state, guest.reason = "running", None
            guest.migration = None
            self._write(guest)
        self._notify()
        return describe_guest(guest)

    async def take_over(self, guest_id: str, key: str) -> GuestFacts:
        async with self._lock(guest_id):
            guest = self._inspect(guest_id)
            migration = self._migration(guest, key, "target")
            if migration.phase not in ("arrived", "takenOver"):
                raise IllegalTransition(
                    f"guest {guest.plan.name} has not arrived here: its migration is {migration.phase}"
                )
            if migration.phase == "arrived":
                if guest.state != "starting":
                    raise IllegalTransition(f"guest {guest.plan.name}: its machine here has ended: {guest.reason}")
                migration.phase, guest.state, guest.ready = "takenOver", "running", guest.plan.has_agent
                self._write(guest)
        self._notify()
        return describe_guest(guest)

    async def give_up(self, guest_id: str, key: str) -> None:
        async with self._lock(guest_id):
            guest = self._read(guest_id)
            if guest is None:
                return
            if self._migration(guest, key, "target").phase == "takenOver":
                raise IllegalTransition(f"guest {guest.plan.name} may have run here, so it can't be given up")
            self._path(guest_id).unlink()
        self._notify()

    async def leave(self, guest_id: str, key: str) -> None:
        async with self._lock(guest_id):
            guest = self._inspect(guest_id)
            migration = self._migration(guest, key, "source")
            if guest.state in _HERE and migration.phase != "handedOver":
                raise IllegalTransition(f"guest {guest.plan.name} still runs here: its migration is {migration.phase}")
            guest.state, guest.reason, guest.ready, migration.phase = "stopped", "migrated", False, "handedOver"
            self._write(guest)
        self._notify()

    def _inspect(self, guest_id: str) -> FakeGuest:
        """The guest as it is by now."""
        guest = self._read(guest_id)
        if guest is None:
            raise NotFound(f"this node has no guest {guest_id}")
        self._bring_up_to_date(guest)
        return guest

    def _bring_up_to_date(self, guest: FakeGuest) -> None:
        """Write down what has come to pass by now."""
        migration = guest.migration
        if migration is None or (migration.role, migration.phase, guest.state) != ("source", "migrating", "running"):
            return
        target = _read_target(migration.to)
        if (
            target is None
            or target.migration is None
            or target.migration.key != migration.key
            or target.state != "starting"
        ):
            migration.phase = "failed"
        elif self._sent(guest, migration) >= guest.plan.memory_bytes:
            target.migration.phase = "arrived"
            _write_target(migration.to, target)
            migration.phase, guest.state, guest.reason = "handedOver", "paused", "handedOver"
        else:
            if target.migration.phase == "waiting":
                target.migration.phase = "migrating"
                _write_target(migration.to, target)
            return  # nothing is new here
        self._write(guest)

    def _sent(self, guest: FakeGuest, migration: FakeMigration) -> int:
        if migration.role == "target" or migration.phase == "waiting":
            return 0
        if migration.phase == "handedOver" or not migration.bytes_per_second:
            return guest.plan.memory_bytes
        sent = migration.sent_before + (self._clock.elapsed() - migration.began_at) * migration.bytes_per_second
        return min(guest.plan.memory_bytes, int(sent))

    def _running(self, guest_id: str) -> FakeGuest:
        guest = self._inspect(guest_id)
        if guest.state != "running" and not (guest.migration is not None and guest.migration.role == "source"):
            raise IllegalTransition(f"guest {guest.plan.name} doesn't run, so it can't migrate live")
        return guest

    def _migration(self, guest: FakeGuest, key: str, role: str | None = None) -> FakeMigration:
        migration = guest.migration
        if migration is None or migration.key != key or (role is not None and migration.role != role):
            raise IllegalTransition(f"guest {guest.plan.name} is in no such migration here", details={"migration": key})
        return migration


def _read_target(path: str) -> FakeGuest | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return msgspec.json.decode(file.read(), type=FakeGuest)
    except FileNotFoundError:
        return None


def _write_target(path: str, guest: FakeGuest) -> None:
    there = Path(path).resolve()  # what carries it may lie between
    pending = there.with_suffix(".arriving")
    pending.write_bytes(msgspec.json.encode(guest))
    os.replace(pending, there)
