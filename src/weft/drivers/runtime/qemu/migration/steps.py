"""The migrations of a node's guests: each step as its contract has it; the guest's record holds its role.

Reads and writes the guests' records, starts and ends QEMU, and commands it through ``migration``. The record has a step's
effect before the step is done, so the next driver knows what may have happened, and asks QEMU what has.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

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
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.linux.processes import host_boot_id
from weft.drivers.runtime.qemu.devices.hotplug import inspect_frame, plug_cpus
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.guests import Guests
from weft.drivers.runtime.qemu.machine_shape import describe_present
from weft.drivers.runtime.qemu.migration.arrival import check_machine, read_frame
from weft.drivers.runtime.qemu.migration.commands import (
    begin_sending,
    begin_waiting,
    check_alone,
    check_mode,
    check_movable,
    check_same,
    check_stays,
    end_sending,
    inspect_migration,
    link_socket,
    plan_limits,
    run_on,
)
from weft.drivers.runtime.qemu.migration.disk_copies import (
    begin_copies,
    check_copied,
    drop_copies,
    keep_synced,
    lead_copies,
    offer_disks,
    withdraw_disks,
)
from weft.drivers.runtime.qemu.migration.load_sampling import sample_load
from weft.drivers.runtime.qemu.process.confinement import choose_user
from weft.drivers.runtime.qemu.record import GuestEnd, GuestRecord, MigrationRecord, mark_taken, prepare_mark
from weft.drivers.runtime.qemu.start import choose_limits, launch_failed, launch_guest, undo_launch
from weft.drivers.runtime.qemu.translate import QemuHostFacts
from weft.objects.errors import IllegalTransition, InvalidInput, Unavailable


class QemuMigrations:
    """See contracts.driver.migration."""

    def __init__(
        self, guests: Guests, cgroups: ControlGroups, clock: Clock, working: Callable[[], Awaitable[QemuHostFacts]]
    ) -> None:
        self._guests, self._cgroups, self._clock, self._working = guests, cgroups, clock, working

    async def describe(self, guest_id: str) -> MigratingGuest:
        facts = await self._working()
        async with self._guests.lock(guest_id):
            guest = await self._running(guest_id)
            record = guest.record
            assert record.frame is not None
            check_movable(record.plan, "migrated live")
            frame = await inspect_frame(guest.monitor(), record.frame)
            frame = msgspec.structs.replace(frame, uuid=frame.uuid or record.plan.uid)
            return MigratingGuest(
                plan=describe_present(record.plan, record.next, frame),
                driver="qemu",
                version=".".join(map(str, facts.version[:2])),
                accelerator=facts.accelerator,
                boot_id=record.boot_id,
                machine=msgspec.to_builtins(frame),
            )

    async def sample(self, guest_id: str, *, seconds: float = 1.0) -> Load:
        return await sample_load(await self._running(guest_id), seconds, self._clock)

    async def expect(
        self, plan: GuestPlan, guest: MigratingGuest, key: str, settings: MigrationSettings
    ) -> MigrationSockets:
        facts = await self._working()
        check_same(plan, guest.plan)
        check_copied(plan, settings)
        frame = read_frame(plan, guest.machine)
        check_machine(plan, guest, frame, facts)
        async with self._guests.lock(plan.id):
            found = await self._guests.settled(plan.id)
            if found is not None and await self._waits(found, key):
                return _sockets(found, settings)
            record = GuestRecord(
                plan=plan,
                accelerator=facts.accelerator,
                host_boot_id=host_boot_id(),
                started_at=self._clock.now(),
                frame=frame,
                boot_id=guest.boot_id,
                migration=MigrationRecord(key, "target", settings),
            )
            waiting = self._guests.add(record)
            try:
                await waiting.save_record()
                await asyncio.to_thread(prepare_mark, waiting.paths)
                await launch_guest(waiting, facts, self._cgroups, incoming=True)
                assert record.frame is not None
                await plug_cpus(waiting.monitor(), record.frame.vcpus + record.frame.plugged_vcpus)
                await offer_disks(waiting, settings)
                await begin_waiting(waiting, settings)  # last: its socket says that all is there
                waiting.keep(keep_synced(waiting))
            except BaseException as error:
                await undo_launch(waiting, self._cgroups, self._clock)
                await self._guests.forget(plan.id)
                if isinstance(error, Unavailable):
                    raise launch_failed(plan, "ended before it could wait for the guest") from error
                raise
        self._guests.notify()
        return _sockets(waiting, settings)

    async def _waits(self, guest: Guest, key: str) -> bool:
        """Whether this key's target is there. One that failed or was cut off is cleared away. Raises IllegalTransition
        where another guest, or this one by another way, is in its place."""
        name, migration = guest.record.plan.name, guest.record.migration
        if migration is not None and migration.role == "target" and migration.key == key and not migration.taken:
            with contextlib.suppress(Unavailable):
                if (
                    guest.running
                    and (await inspect_migration(guest)).phase != "failed"
                    and guest.paths.migration_socket("incoming").exists()
                ):
                    return True
        elif (
            guest.running
            or guest.record.memory != "none"
            or (guest.migrating and migration and migration.role == "target")
        ):
            raise IllegalTransition(
                f"vm/{name} is on this node already", hint="abandon it, or stop and remove it first"
            )
        await guest.quit()
        await self._guests.forget(guest.record.plan.id)
        return False

    async def send(self, guest_id: str, key: str, to: MigrationSockets, settings: MigrationSettings) -> None:
        facts = await self._working()
        async with self._guests.lock(guest_id):
            guest = await self._running(guest_id)
            record = guest.record
            if guest.migrating:
                self._migration(guest, key, "source")
                if (await inspect_migration(guest)).phase not in ("waiting", "failed"):
                    if settings.copied_disks and (guest.beside is None or guest.beside.done()):
                        guest.beside = guest.keep(lead_copies(guest, settings))
                    return
            else:
                check_stays(guest)
                check_alone(guest, "it can't migrate")
            assert record.frame is not None
            check_mode(record.plan, await inspect_frame(guest.monitor(), record.frame), facts.accelerator, settings)
            record.migration = MigrationRecord(key, "source", settings, sending=not settings.copied_disks)
            await guest.save_record()
            self._cgroups.change(guest_id, choose_limits(record.plan, facts, settings))
            try:
                user = choose_user(guest_id, facts.users)
                link_socket(guest, to.memory, guest.paths.migration_socket("outgoing"), user)
                if settings.copied_disks:
                    link_socket(guest, to.disks, guest.paths.migration_socket("outgoing-disks"), user)
                    await begin_copies(guest, settings)
                    guest.beside = guest.keep(lead_copies(guest, settings))
                else:
                    await begin_sending(guest, settings)
                guest.keep(keep_synced(guest))
            except BaseException:
                with contextlib.suppress(Unavailable):
                    await drop_copies(guest)
                    await run_on(guest)
                record.migration = None
                await guest.save_record()
                raise
        self._guests.notify()

    async def progress(self, guest_id: str, key: str) -> MigrationFacts:
        guest = await self._guests.get(guest_id)
        self._migration(guest, key)
        return await inspect_migration(guest)

    async def adjust(
        self,
        guest_id: str,
        key: str,
        *,
        bytes_per_second: int | None = None,
        pause_ms: int | None = None,
        slowdown: float | None = None,
    ) -> None:
        guest = await self._guests.get(guest_id)
        self._migration(guest, key, "source")
        limits = plan_limits(bytes_per_second=bytes_per_second, pause_ms=pause_ms, slowdown=slowdown)
        await guest.monitor().execute("migrate-set-parameters", **limits)

    async def events(self, guest_id: str) -> AsyncIterator[MigrationEvent]:
        guest = await self._guests.get(guest_id)
        with guest.watched() as events:
            while guest.running and (event := await events.get()) is not None:
                yield event

    async def cancel(self, guest_id: str, key: str, *, never_ran: bool = False) -> GuestFacts:
        async with self._guests.lock(guest_id):
            guest = await self._guests.get(guest_id)
            await guest.settle()
            record = guest.record
            if record.migration is None or record.migration.key != key:
                return guest.facts()  # nothing of it has begun, whichever way the guest came here before
            migration = self._migration(guest, key, "source")
            if guest.beside is not None:
                guest.beside.cancel()
                await asyncio.wait([guest.beside])
            away = migration.left or not guest.running or await end_sending(guest) == "handedOver"
            if away and not never_ran:
                raise IllegalTransition(
                    f"vm/{record.plan.name} was already handed over, or ended during the migration",
                    hint="to get it back, abandon it on the target first: the target must confirm that it never ran there",
                )
            if guest.running:
                await drop_copies(guest)
                await run_on(guest)
            record.migration = None
            await guest.save_record()
        self._guests.notify()
        return guest.facts()

    async def take_over(self, guest_id: str, key: str) -> GuestFacts:
        async with self._guests.lock(guest_id):
            guest = await self._guests.get(guest_id)
            await guest.settle()
            record, migration = guest.record, self._migration(guest, key, "target")
            if not migration.taken:
                if (phase := (await inspect_migration(guest)).phase) != "arrived":
                    raise IllegalTransition(f"vm/{record.plan.name} has not arrived here: its migration is {phase}")
                record.migration = msgspec.structs.replace(migration, taken=True)
                await asyncio.gather(
                    asyncio.to_thread(mark_taken, guest.paths, key), withdraw_disks(guest, migration.settings)
                )
            if guest.running:
                await run_on(guest)
            guest.keep(guest.save_record(durable=False))
        self._guests.notify()
        return guest.facts()

    async def give_up(self, guest_id: str, key: str) -> None:
        async with self._guests.lock(guest_id):
            guest = await self._guests.settled(guest_id)
            if guest is None:
                return
            if self._migration(guest, key, "target").taken:
                raise IllegalTransition(f"vm/{guest.record.plan.name} may have run here, so it can't be abandoned")
            await guest.quit()
            await self._guests.forget(guest_id)
        self._guests.notify()

    async def leave(self, guest_id: str, key: str) -> None:
        async with self._guests.lock(guest_id):
            guest = await self._guests.get(guest_id)
            await guest.settle()
            record, migration = guest.record, self._migration(guest, key, "source")
            if guest.running and (phase := (await inspect_migration(guest)).phase) != "handedOver":
                raise IllegalTransition(f"vm/{record.plan.name} still runs here: its migration is {phase}")
            record.migration = msgspec.structs.replace(migration, left=True)
            if not guest.running:
                record.end = GuestEnd("stopped", "migrated")
            await guest.save_record()
            await guest.quit()
        self._guests.notify()

    async def _running(self, guest_id: str) -> Guest:
        guest = await self._guests.get(guest_id)
        await guest.settle()
        name = guest.record.plan.name
        if not guest.running or guest.record.stopping:
            raise IllegalTransition(
                f"vm/{name} is not running; live migration needs a running guest", hint="migrate it with --cold"
            )
        if guest.record.frame is None:
            raise InvalidInput(
                f"vm/{name}: this node has lost its record, so it can't migrate live before a restart",
                reason="restartNeeded",
                hint=f"weft vm restart {name}",
            )
        return guest

    def _migration(self, guest: Guest, key: str, role: str | None = None) -> MigrationRecord:
        """This key's migration. Raises IllegalTransition if the guest has no part, or another one, in it."""
        name, migration = guest.record.plan.name, guest.record.migration
        if migration is None or migration.key != key or (role is not None and migration.role != role):
            raise IllegalTransition(f"vm/{name} is not in that migration on this node", details={"migration": key})
        return migration


def _sockets(guest: Guest, settings: MigrationSettings) -> MigrationSockets:
    return MigrationSockets(
        str(guest.paths.migration_socket("incoming")),
        str(guest.paths.migration_socket("incoming-disks")) if settings.copied_disks else "",
    )
