"""The machines' processes, whose numbers are used again, and the fake runtime over them, under the witness's eyes."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec

from tests.simulation.truth import Witness
from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.driver.runtime import GuestState
from weft.drivers.linux import processes
from weft.drivers.linux.processes import ProcessId
from weft.drivers.runtime.fake.driver import FakeDriver, FakeGuest, FakeOrders

HERE = ("running", "starting", "paused")  # states of a guest that has a process


class Processes:
    """All processes of all machines. A pid is used again, by something else, when its process is gone."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._found: dict[int, ProcessId] = {}

    def inspect(self, pid: int) -> ProcessId | None:
        """``processes.inspect_process`` of these machines."""
        return self._found.get(pid)

    def begin(self, process: ProcessId) -> None:
        self._found.setdefault(process.pid, process)

    def end(self, process: ProcessId) -> None:
        if self._found.get(process.pid) == process:
            del self._found[process.pid]
            if self._draw.random() < 0.5:
                self._found[process.pid] = ProcessId(process.pid, process.start_ticks + 1)


class WatchedDriver(FakeDriver):
    """The fake runtime, under the witness's eyes. A guest's file may say that it runs when its process is long gone: as
    the driver of real guests it believes the process, by the real comparison."""

    def __init__(self, host: Host, clock: Clock, orders: FakeOrders, witness: Witness, found: Processes) -> None:
        super().__init__(host, clock, orders)
        self._node, self._witness, self._found = host.node, witness, found

    def read(self, guest_id: str) -> FakeGuest | None:
        return super()._read(guest_id)

    def kill_process(self, guest_id: str) -> None:
        """The guest's process is gone; nobody has noticed yet."""
        guest = super()._read(guest_id)
        if guest is not None and guest.state in HERE:
            self._found.end(_process_of(guest))
            self._witness.see_gone((self._node, guest_id))

    def kill_all(self) -> None:
        """The machine's power is gone."""
        for path in sorted(self._folder.glob("*.json")):
            self.kill_process(path.stem)

    def states(self) -> dict[str, str]:
        """Allocation uid → state of each guest here, ``dead`` if it is said to run and its process isn't there."""
        found = {}
        for path in sorted(self._folder.glob("*.json")):
            guest = FakeDriver._read(self, path.stem)
            if guest is not None:
                dead = guest.state in HERE and self._found.inspect(guest.pid) != _process_of(guest)
                found[guest.plan.uid] = "dead" if dead else guest.state
        return found

    def _read(self, guest_id: str) -> FakeGuest | None:
        guest = super()._read(guest_id)
        if guest is not None and guest.state in HERE and not processes.is_alive(_process_of(guest)):
            guest.state, guest.reason, guest.ready = "failed", "killed", False
            self._write(guest)
        return guest

    def _end(self, guest_id: str, state: GuestState, reason: str | None) -> None:
        guest = self._read(guest_id)
        if guest is not None and guest.state in HERE:
            if reason in (None, "stopRequested") and guest.state == "running":
                self._witness.see_end(self._node, guest, state)
            self._found.end(_process_of(guest))
        super()._end(guest_id, state, reason)

    def _write(self, guest: FakeGuest) -> None:
        if guest.state in HERE:
            self._found.begin(_process_of(guest))
        elif guest.reason == "migrated":
            self._found.end(_process_of(guest))
        if guest.state == "paused" and guest.migration is not None:
            _copy_disks(guest, guest.migration.to)
        self._witness.see_guest(self._node, guest)
        super()._write(guest)


def _copy_disks(guest: FakeGuest, to: str) -> None:
    """What the machines do with the disks of a guest that is handed over."""
    target = msgspec.json.decode(Path(to).read_bytes(), type=FakeGuest)
    theirs = {disk.serial: disk.path for disk in target.plan.disks}
    for disk in guest.plan.disks:
        if not disk.read_only:
            Path(theirs[disk.serial]).write_bytes(Path(disk.path).read_bytes())


def _process_of(guest: FakeGuest) -> ProcessId:
    return ProcessId(guest.pid, round(guest.started_at * 100))
