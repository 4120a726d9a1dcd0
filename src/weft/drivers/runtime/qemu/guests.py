"""The guests of one node as the driver knows them: found again from their records, and forgotten.

Reads and removes ``Host.state_dir/guests/ID`` and ``Host.run_dir/ID``. A caller that is about to change a guest holds its lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.driver.runtime import Counters
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.linux.counters import ProcessCounters, WaitCounters
from weft.drivers.runtime.qemu.devices.disk_counters import DiskCounters
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.guest_agent.unread_output import Unread
from weft.drivers.runtime.qemu.migration.commands import check_stays, settle_migration
from weft.drivers.runtime.qemu.migration.disk_copies import keep_synced, lead_copies
from weft.drivers.runtime.qemu.record import GuestRecord, read_record
from weft.drivers.runtime.qemu.saved_memory import settle_memory
from weft.drivers.runtime.qemu.snapshot.absorb import end_left
from weft.drivers.runtime.qemu.snapshot.renewal import renew
from weft.drivers.runtime.qemu.snapshot.taking import end_hold, settle_snapshot
from weft.drivers.runtime.qemu.translate import GuestPaths
from weft.objects.errors import NotFound, WeftError


class Guests:
    """Values that the driver and the migrations of its guests share."""

    def __init__(self, host: Host, cgroups: ControlGroups, clock: Clock, notify: Callable[[], None]) -> None:
        self._run_dir = Path(host.run_dir)
        self._folder = Path(host.state_dir) / "guests"
        self._cgroups, self._clock, self.notify = cgroups, clock, notify
        self._unread = Unread()
        self.known: dict[str, Guest] = {}
        self._verbs: dict[str, asyncio.Lock] = {}

    def paths(self, guest_id: str) -> GuestPaths:
        return GuestPaths(run=self._run_dir / guest_id, state=self._folder / guest_id)

    def lock(self, guest_id: str) -> asyncio.Lock:
        """Verbs that change a guest go one after the other; they don't hold it during long waits."""
        return self._verbs.setdefault(guest_id, asyncio.Lock())

    def add(self, record: GuestRecord) -> Guest:
        guest = Guest(self.paths(record.plan.id), record, self._cgroups, self._clock, self.notify, self._unread)
        self.known[record.plan.id] = guest
        return guest

    def drop(self, guest_id: str) -> None:
        self.known.pop(guest_id, None)

    def open_counters(self, guest_id: str) -> list[Counters]:
        """See HasCounters."""
        guest = self.known.get(guest_id)
        if guest is None or not guest.running or guest.record.process is None:
            return []
        serials = [disk.serial for disk in guest.record.plan.disks if not disk.read_only and not disk.cdrom]
        process = guest.record.process
        disks = DiskCounters(str(guest.paths.counters_qmp), serials)
        return [ProcessCounters(process), WaitCounters(process), disks]

    async def find(self, guest_id: str) -> Guest | None:
        """The guest, from memory or from its record (then its process is adopted)."""
        guest = self.known.get(guest_id)
        if guest is None:
            record = read_record(self.paths(guest_id))
            if record is None:
                return None
            guest = self.add(record)
            await self.adopt(guest)
        else:
            async with guest.lock:
                pass  # someone else may be adopting it just now
        return guest

    async def find_all(self) -> list[Guest]:
        ids = [path.name for path in self._folder.glob("*") if path.is_dir()]
        return [guest for guest in await asyncio.gather(*map(self.find, ids)) if guest is not None]

    async def settled(self, guest_id: str) -> Guest | None:
        guest = await self.find(guest_id)
        if guest is not None:
            await guest.settle()
        return guest

    async def get(self, guest_id: str) -> Guest:
        """Raises NotFound for one this node doesn't have."""
        guest = await self.find(guest_id)
        if guest is None:
            raise NotFound(f"this node has no guest {guest_id}")
        return guest

    async def adopt(self, guest: Guest) -> None:
        async with guest.lock:
            await guest.adopt()
            if guest.running:
                await end_left(guest)
                snapshot = guest.record.snapshot
                if guest.migrating:
                    await settle_migration(guest)
                elif snapshot is not None and not snapshot.is_over:
                    await settle_snapshot(guest)
                else:
                    await settle_memory(guest)
            if guest.running and guest.record.renewal is not None and guest.record.memory == "none":
                guest.keep(renew(guest))
            migration = guest.record.migration
            if guest.running and migration is not None and migration.role == "source":
                guest.beside = guest.keep(lead_copies(guest, migration.settings))
                guest.keep(keep_synced(guest))

    async def hold(self, guest_id: str, held: bool) -> None:
        """Stop or continue its machine. Raises NotFound, IllegalTransition, Unavailable for one that doesn't run."""
        async with self.lock(guest_id):
            guest = await self.get(guest_id)
            check_stays(guest)
            await guest.monitor().execute("stop" if held else "cont")
            if not held:
                await guest.agents.set_clock()

    async def trim(self, guest_id: str) -> int:
        """See contracts.driver.runtime: it needs no turn of its own, since nothing of the machine changes."""
        return await (await self.get(guest_id)).agents.trim()

    async def forget(self, guest_id: str) -> None:
        """Remove everything of a guest that doesn't run, but for its disks."""
        if (guest := self.known.get(guest_id)) is not None:
            await guest.close()
        paths = self.paths(guest_id)
        self._cgroups.remove(guest_id)
        shutil.rmtree(paths.run, ignore_errors=True)
        # The record goes first and by rename, so that a removal cut off half-way isn't a guest without memory.
        with contextlib.suppress(FileNotFoundError):
            paths.record.unlink()
        self.drop(guest_id)  # from here on nothing is noted in its folder, which would keep a part of it
        await asyncio.to_thread(shutil.rmtree, paths.state, ignore_errors=True)

    async def close(self) -> None:
        for guest in [guest for guest in self.known.values() if guest.hold.is_on]:
            with contextlib.suppress(WeftError, OSError):  # the next driver lets it run on
                await end_hold(guest, "the node's agent ended while the guest stood still")
        await asyncio.gather(*(guest.close() for guest in self.known.values()))
        self.known.clear()
