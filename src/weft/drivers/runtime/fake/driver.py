"""The fake runtime: guests that are files. For tests of everything above a runtime, and for simulated nodes.

Reads and writes ``Host.state_dir/fake-guests/ID.json``; those files are its world, so guests outlive a driver as real
ones do. ``FakeOrders`` says how long verbs take and which fail; ``kill`` and ``power_off`` are what happens
to a guest without anyone asking the driver.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock, SystemClock
from weft.contracts.driver.host import Host
from weft.contracts.driver.runtime import (
    ExecRequest,
    GuestFacts,
    GuestPlan,
    GuestState,
    GuestStats,
    RuntimeProbe,
    SessionMark,
)
from weft.drivers.runtime.fake.carrying import FakeCarrying
from weft.drivers.runtime.fake.guest import FakeGuest, describe_guest
from weft.drivers.runtime.fake.migration import FakeMigrations
from weft.drivers.runtime.fake.session import FakeSession
from weft.drivers.runtime.fake.snapshot import FakeSnapshots, read_memory
from weft.objects.errors import DriverFailed, IllegalTransition, NotFound, Unavailable, WeftError


class FakeOrders(msgspec.Struct):
    """How the fake behaves; may be changed at any time. Verbs by name: ``start``, ``stop``, ``suspend``, ``adjust``, ``remove``,
    ``inspect``, ``recover``, ``exec``. Each error in ``failures`` is raised once, after the delay, before any effect.
    ``boot_seconds`` pass between start and readiness, ``shutdown_seconds`` when a guest is asked to shut down."""

    delay_seconds: dict[str, float] = {}
    failures: dict[str, list[WeftError]] = {}
    boot_seconds: float = 0.0
    shutdown_seconds: float = 0.0
    probe: RuntimeProbe | None = None


class FakeDriver:
    """A RuntimeDriver that can also suspend, adjust, migrate, exec (the few programs of ``session``) and report stats."""

    name = "fake"

    def __init__(self, host: Host, clock: Clock | None = None, orders: FakeOrders | None = None) -> None:
        self.orders = orders or FakeOrders()
        self._clock = clock or SystemClock()
        self._folder = Path(host.state_dir) / "fake-guests"
        self._starting: dict[str, GuestPlan] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._boots: dict[str, asyncio.Task[None]] = {}
        self._sessions: list[tuple[str, FakeSession]] = []
        self._news = asyncio.Event()
        self.carrying = FakeCarrying(self._read, self._write, self._path, self._lock)
        self.migrations = FakeMigrations(self._read, self._write, self._path, self._lock, self._clock, self._news.set)
        self.snapshots = FakeSnapshots(self._read, self._write, self._lock, self.migrations.check_stays, self._clock)

    async def probe(self) -> RuntimeProbe:
        capabilities = ["suspend", "exec", "stats", "gpu-shares"]
        return self.orders.probe or RuntimeProbe(
            "fake", True, "1", "none", ["q35", "microvm"], capabilities, [], checkpoint="yes"
        )

    async def start(self, plan: GuestPlan) -> GuestFacts:
        async with self._lock(plan.id):
            guest = self._read(plan.id)
            if guest is not None and guest.plan.uid != plan.uid:
                raise DriverFailed(f"guest {plan.name}: id {plan.id} belongs to {guest.plan.name} on this node")
            self.migrations.check_start(guest, plan)
            if guest is not None and guest.state == "running":
                return describe_guest(guest)
            self._starting[plan.id] = plan
            try:
                await self._obey("start")
            finally:
                del self._starting[plan.id]
            resumed = guest is not None and guest.state == "suspended"
            boot_id = guest.boot_id if guest is not None and resumed else str(uuid.uuid4())
            if guest is None and plan.memory:
                boot_id, resumed = read_memory(plan).boot_id, True
            pid = int.from_bytes(os.urandom(3), "little") + 1_000_000
            snapshot = self.snapshots.settle(guest) if guest is not None else None
            guest = FakeGuest(plan, "running", boot_id, self._clock.now(), pid, snapshot=snapshot)
            self._write(guest)
            self._boot(guest, 0.0 if resumed else self.orders.boot_seconds)
        self._news.set()
        return describe_guest(guest)

    async def stop(self, guest_id: str, *, grace_seconds: float) -> None:
        async with self._lock(guest_id):
            await self._obey("stop")
            guest = self._read(guest_id)
            if guest is None or guest.state not in ("running", "suspended", "starting", "paused"):
                return
            if guest.state == "running":
                await self._clock.sleep(min(grace_seconds, self.orders.shutdown_seconds))
            self._end(guest_id, "stopped", "stopRequested")

    async def adjust(self, plan: GuestPlan) -> GuestFacts:
        async with self._lock(plan.id):
            await self._obey("adjust")
            guest = self._read(plan.id)
            if guest is None or guest.state != "running":
                raise IllegalTransition(f"guest {plan.name} doesn't run, so there is nothing to change")
            self.migrations.check_stays(guest)
            guest.plan = plan
            self._write(guest)
        self._news.set()
        return describe_guest(guest)

    async def inspect(self, guest_id: str) -> GuestFacts:
        await self._obey("inspect")
        guest = self._read(guest_id)
        if guest_id in self._starting:
            plan = self._starting[guest_id]
            ready = False if plan.has_agent else None
            return GuestFacts(plan.id, plan.uid, plan.name, plan.incarnation, "starting", ready)
        return describe_guest(guest) if guest else GuestFacts(guest_id, "", "", 0, "absent")

    async def recover(self) -> list[GuestFacts]:
        await self._obey("recover")
        guests = [guest for path in sorted(self._folder.glob("*.json")) if (guest := self._read(path.stem))]
        for guest in guests:
            if guest.state == "running" and not guest.ready and guest.plan.id not in self._boots:
                self._boot(guest, self.orders.boot_seconds)
        return [describe_guest(guest) for guest in guests]

    async def remove(self, guest_id: str) -> None:
        async with self._lock(guest_id):
            await self._obey("remove")
            guest = self._read(guest_id)
            if guest is not None and guest.state in ("running", "starting", "paused"):
                raise IllegalTransition(f"guest {guest.plan.name} runs", hint="stop it first")
            self._path(guest_id).unlink(missing_ok=True)
        self._news.set()

    async def changed(self) -> None:
        await self._news.wait()
        self._news.clear()

    async def close(self) -> None:
        for task in self._boots.values():
            task.cancel()
        self._boots.clear()
        self._hang_up(None)

    # The optional protocols.

    async def suspend(self, guest_id: str) -> None:
        async with self._lock(guest_id):
            await self._obey("suspend")
            guest = self._known(guest_id)
            if guest.state == "suspended":
                return
            if guest.state != "running":
                raise IllegalTransition(f"guest {guest.plan.name} doesn't run, so it can't be suspended")
            self.migrations.check_stays(guest)
            self._end(guest_id, "suspended", None)

    async def trim(self, guest_id: str) -> int:
        async with self._lock(guest_id):
            guest = self._read(guest_id)
            if guest is None or guest.state != "running":
                raise Unavailable(f"guest {guest_id} doesn't run")
            await self._obey("trim")
        return 1 << 20

    async def exec(self, guest_id: str, request: ExecRequest, mark: SessionMark | None = None) -> FakeSession:
        """It keeps no sessions."""
        await self._obey("exec")
        if mark is not None and mark.run:
            raise Unavailable("the guest no longer has this command's session", reason="sessionLost")
        guest = self._known(guest_id)
        if guest.state != "running" or not guest.ready:
            raise Unavailable(f"guest {guest.plan.name}: no agent in it answers yet", retry_after_seconds=0.2)
        session = FakeSession(request)
        self._sessions = [(where, held) for where, held in self._sessions if not held.over]
        self._sessions.append((guest_id, session))
        return session

    async def stats(self, guest_id: str, *, disks: bool = True) -> GuestStats:
        guest = self._known(guest_id)
        if guest.state != "running":
            raise Unavailable(f"guest {guest.plan.name} doesn't run")
        return GuestStats(max(0.0, self._clock.now() - guest.started_at), guest.plan.memory_bytes // 2, 0, 0)

    # What happens to guests without the driver.

    def kill(self, guest_id: str) -> None:
        """The machine is gone from one moment to the next."""
        self._end(guest_id, "failed", "killed")

    def power_off(self, guest_id: str) -> None:
        """The guest has shut itself down."""
        self._end(guest_id, "stopped", "guestPoweredOff")

    def _boot(self, guest: FakeGuest, seconds: float) -> None:
        if not guest.plan.has_agent:
            return
        guest_id = guest.plan.id
        self._boots[guest_id] = asyncio.create_task(self._become_ready(guest_id, guest.pid, seconds))

    async def _become_ready(self, guest_id: str, pid: int, seconds: float) -> None:
        await self._clock.sleep(seconds)
        guest = self._read(guest_id)
        if guest is not None and guest.pid == pid and guest.state == "running":
            guest.ready = True
            self._write(guest)
            self._news.set()
        self._boots.pop(guest_id, None)

    def _end(self, guest_id: str, state: GuestState, reason: str | None) -> None:
        guest = self._known(guest_id)
        guest.state, guest.reason, guest.ready = state, reason, False
        if task := self._boots.pop(guest_id, None):
            task.cancel()
        self._write(guest)
        self._hang_up(guest_id)
        self._news.set()

    def _hang_up(self, guest_id: str | None) -> None:
        for where, session in self._sessions:
            if guest_id in (None, where):
                session.lose()
        self._sessions = [(where, session) for where, session in self._sessions if not session.over]

    async def _obey(self, verb: str) -> None:
        if seconds := self.orders.delay_seconds.get(verb, 0.0):
            await self._clock.sleep(seconds)
        if failures := self.orders.failures.get(verb):
            raise failures.pop(0)

    def _lock(self, guest_id: str) -> asyncio.Lock:
        return self._locks.setdefault(guest_id, asyncio.Lock())

    def _known(self, guest_id: str) -> FakeGuest:
        guest = self._read(guest_id)
        if guest is None:
            raise NotFound(f"this node has no guest {guest_id}")
        return guest

    def _path(self, guest_id: str) -> Path:
        return self._folder / f"{guest_id}.json"

    def _read(self, guest_id: str) -> FakeGuest | None:
        try:
            with open(
                f"{self._folder}/{guest_id}.json", "rb", buffering=0
            ) as file:  # a Path costs more than all else here
                return msgspec.json.decode(file.read(), type=FakeGuest)
        except FileNotFoundError:
            return None

    def _write(self, guest: FakeGuest) -> None:
        stem = f"{self._folder}/{guest.plan.id}"
        if not os.path.isdir(self._folder):
            self._folder.mkdir(parents=True)
        with open(f"{stem}.pending", "wb", buffering=0) as file:
            file.write(msgspec.json.encode(guest))
        os.replace(f"{stem}.pending", f"{stem}.json")
