"""The source of a live migration: describes the guest to the target, has it sent, reports the progress, and confirms when the guest
will never run here again. Always begins with the runtime's state, so that the next agent continues.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Literal

import msgspec

from weft.agent.migration.bandwidth import find_slow_path
from weft.agent.migration.cold import list_disks
from weft.agent.migration.disk_transfer import count_data
from weft.agent.migration.history import HistorySender, mark_log
from weft.agent.migration.relay import Limit
from weft.agent.migration.role import MigrationContext, Role
from weft.agent.migration.transport import MigrationConnection
from weft.agent.problem import describe_problem
from weft.agent.snapshot.transfer import pack_layers, send_layers
from weft.agent.workload.console_log import read_console
from weft.agent.workload.shape import ROOT_SERIAL, name_serial
from weft.contracts.driver.migration import MigrationDriver, MigrationFacts, MigrationSettings, MigrationSockets
from weft.contracts.wakeup import wait_for_event
from weft.kinds.allocation import ROOT
from weft.kinds.fields.allocated_migration import AllocatedMigration, MigrationLesson, limits_of
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, NotFound, Unavailable, WeftError
from weft.protocol.migration import Channel, MigrationRequest
from weft.transfer.calibration import correct_plan
from weft.transfer.plan import USABLE_SHARE, Leeway, MigrationPlan, choose_mode, reconsider

log = logging.getLogger("weft.agent")
REFRESH_SECONDS = 1.0  # beside the machine's own events
AGAIN_SECONDS = 0.5
UNKNOWN_PATH = 125_000_000.0  # bytes per second


class MigrationSource(Role):
    def __init__(self, context: MigrationContext, driver: MigrationDriver) -> None:
        super().__init__(context)
        self._driver, self._network, self._clock = driver, self._node.network, self._node.clock
        self._limits = [self._node.limit, Limit(self._migration.bytes_per_second, self._clock)]
        self._connection: MigrationConnection | None = None
        self._plan: MigrationPlan | None = None
        self._remaining: list[int] = []
        self._slowdown = 0.0
        self._slow_path: float | None = None
        self._stopped_at: float | None = None
        self._flows: list[list[str]] = []
        self._printed = 0  # bytes of the console log that the target has
        self._sending: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._history: HistorySender | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    def put(self, migration: AllocatedMigration) -> None:
        if migration.address != self._migration.address:
            self._disconnect()
        self._migration = migration

    async def close(self) -> None:
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._history is None:
            self._disconnect()
        else:
            await self._history.release()
            self.rest = self._history.task

    async def _run(self) -> None:
        watching = asyncio.ensure_future(self._watch())
        try:
            while not await self._lead():
                await self._clock.sleep(AGAIN_SECONDS)
        finally:
            watching.cancel()

    async def _lead(self) -> bool:
        """Lead the migration to its end; False if it must be continued."""
        try:
            facts = await self._inspect()
            if facts is None or facts.phase == "waiting":
                await self._begin()
            await self._follow()
        except (WeftError, OSError) as problem:
            if not await self._break_off():
                return False
            self._disconnect()
            reason, message = describe_problem(problem)
            if (
                self._between_clusters
            ):  # the server may take its word while the target still waits: it must hold for good
                try:
                    await self._keep(failed=True)
                except (WeftError, OSError):
                    return False
            self._report(phase="failed", reason=reason, message=message)
        return True

    async def _break_off(self) -> bool:
        """Cancel: the guest stays here, or has ended here. False if it was handed over meanwhile."""
        try:
            await self._driver.cancel(self._local.id, self.migration.key)
        except (IllegalTransition, NotFound):
            facts = await self._inspect()
            return facts is None or facts.phase != "handedOver"
        return True

    # Steps

    async def _begin(self) -> None:
        """Announce the guest to the target, and send it."""
        guest_id, key = self._local.id, self.migration.key
        guest = await self._driver.describe(guest_id)
        self._slow_path = await find_slow_path(self._connect().ask, self._clock)
        path = self._find_path()
        limit = min(filter(None, limits_of(self._migration)), default=0)
        leeway = Leeway(path, self._migration.pause_ms / 1000, copied_disks=self._list_copied(), limit=limit)
        load = await self._driver.sample(guest_id)
        if not self._between_clusters:  # else the networks and the snapshots are others
            await self._network.prepare_migration(self._local, self._target_address)
            await self._send_layers()
        while True:
            plan = self._plan = choose_mode(load, leeway)
            planned = correct_plan(plan.planned, self._lesson)
            settings = self._choose(plan.settings)
            rate = load.dirty_bytes_per_second
            made_from = {
                "dirty_bytes_per_second": int(rate),
                "path_bytes_per_second": int(path),
                "limit_bytes_per_second": limit,
            }
            self._report(plan=msgspec.structs.replace(planned, **made_from))
            self._flows = await self._list_flows()
            mark = await mark_log(self._node, self._local)  # before the console, which reaches to it then
            printed = read_console(self._runtime, guest_id)
            await self._order(MigrationRequest("expect", guest, settings, self._flows, printed=printed, log=mark))
            if printed is not None:
                self._printed = printed.start + len(printed.data)
            connection = self._connect()
            folder = Path(self._node.host.run_dir)
            channels: dict[Channel, Path] = {"memory": folder / f"{guest_id}.memory"}
            if settings.copied_disks:
                channels["disks"] = folder / f"{guest_id}.disks"
            connection.offer(channels, ahead=0 if settings.copied_disks else settings.connections)  # disks take longer
            to = MigrationSockets(str(channels["memory"]), str(channels.get("disks", "")))
            try:
                await self._driver.send(guest_id, key, to, settings)
            except InvalidInput as problem:
                if problem.field != "mode" or leeway.modes == ("stop-and-copy",):
                    raise
                bar = problem.message.partition(": ")[2]
                leeway = msgspec.structs.replace(leeway, modes=("stop-and-copy",), live_bar=bar)
                self._disconnect()
            else:
                break
        self._report(phase="migrating")

    async def _send_layers(self) -> None:
        """Send what its disks stand on: it goes first, because it doesn't change any more."""
        packed = await pack_layers(self._node.pools, self._local, self.migration.key, list_disks(self._local))
        if not packed.disks:
            return
        total = sum([await asyncio.to_thread(count_data, path) for path in packed.files.values()])
        sending = asyncio.ensure_future(send_layers(self._connect(), packed))
        try:
            while not sending.done():
                sent = self._connect().meter.sent
                left = max(0, total - sent)
                self._report(phase="migrating", sent_bytes=sent, total_bytes=total, remaining_bytes=left)
                await asyncio.wait([sending], timeout=REFRESH_SECONDS)
            await sending
        finally:
            sending.cancel()

    async def _follow(self) -> None:
        """Follow the migration until the target confirms that the guest runs there, or the migration fails."""
        began = self._clock.elapsed()
        while True:
            facts = await self._inspect()
            if facts is None or facts.phase == "failed":
                why = facts.message if facts is not None and facts.message else "the machine stopped migrating"
                reason = facts.reason or None if facts is not None else None
                raise DriverFailed(
                    f"migrating to {self._migration.peer}: {why}", reason=reason, details={"step": "migration"}
                )
            self._report(**self._figures(facts, began))
            if facts.phase == "handedOver":
                await self._hand_over(began)
                return
            await self._reconsider(facts)
            await wait_for_event(self._clock, self._news, REFRESH_SECONDS)
            self._news.clear()

    async def _hand_over(self, began: float) -> None:
        """Order the target to take the guest over, until it has: the guest will never run here again. The guest's pause includes
        this."""
        while not self.migration.taken:
            try:
                reported = self.report
                ask = MigrationRequest(
                    "takeOver",
                    sent_bytes=reported.sent_bytes,
                    passes=reported.passes,
                    elapsed_ms=reported.elapsed_ms,
                    printed=read_console(self._runtime, self._local.id, after=self._printed),
                )
                await self._order(ask)
            except WeftError as problem:
                self._report(phase="handedOver", reason=problem.token, message=problem.message)
                await wait_for_event(self._clock, self._news, AGAIN_SECONDS)
                self._news.clear()
                continue
            now = self._clock.elapsed()
            self._keep(taken=True)
            self._history = HistorySender(
                self._connect, self._disconnect, self._node, self._local, between_clusters=self._between_clusters
            )
            elapsed = round((now - began) * 1000)
            self._report(phase="handedOver", reason="", message="", elapsed_ms=elapsed)
            pause_ms = await self._find_pause(now)
            self._report(pause_ms=pause_ms)
            self._phases.note("guest paused", pause_ms / 1000)

    async def _find_pause(self, taken_at: float) -> int:
        """Milliseconds of the guest's pause until ``taken_at``. Its beginning may become known only after the handover; the guest
        runs at the target by now, so there is time to wait for that."""
        until = taken_at + AGAIN_SECONDS
        while self._stopped_at is None and (left := until - self._clock.elapsed()) > 0:
            self._news.clear()
            await wait_for_event(self._clock, self._news, left)
        return round((taken_at - self._stopped_at) * 1000) if self._stopped_at is not None else 0

    async def _reconsider(self, facts: MigrationFacts) -> None:
        """Check, after each pass over the memory that the guest has written, whether the migration converges."""
        if self._plan is None or facts.phase != "migrating" or facts.passes < 1:
            return
        if facts.passes <= len(self._remaining):
            return
        self._beside(self._send_flows())
        left = facts.remaining_bytes if self._remaining else facts.total_bytes
        self._remaining.append(left)
        rate = facts.bytes_per_second or self._find_path()
        leeway = Leeway(rate / USABLE_SHARE, self._migration.pause_ms / 1000)
        change = reconsider(self._plan.settings.mode, self._remaining, leeway, slowdown=self._slowdown)
        guest_id, key = self._local.id, self.migration.key
        if change.action == "slow down":
            self._slowdown = change.slowdown
            await self._driver.adjust(guest_id, key, slowdown=change.slowdown)
        elif change.action == "finish standing still":
            await self._driver.adjust(guest_id, key, pause_ms=round(change.pause_seconds * 1500) + 100)
        elif change.action == "call off":
            raise DriverFailed(f"{self._local.what}: {change.reason}", details={"step": "migration"})
        if change.action != "go on":
            self._report(reason=change.action, message=change.reason)

    async def _send_flows(self) -> None:
        """Let connections that were opened meanwhile pass at the target too. Nothing waits for this: the guest may be paused by
        now."""
        flows = await self._list_flows()
        if flows != self._flows:
            self._flows = flows
            await self._order(MigrationRequest("flows", flows=flows))

    async def _list_flows(self) -> list[list[str]]:
        """Its open connections. Those with guests of this cluster end: an address of theirs may be another guest's over there."""
        return [] if self._between_clusters else await self._network.handover.list_flows(self._local)

    async def _inspect(self) -> MigrationFacts | None:
        """The runtime's state of the migration, if it has one."""
        while True:
            try:
                facts = await self._driver.progress(self._local.id, self.migration.key)
                return facts if facts.role == "source" else None  # else it came here by this same migration
            except (IllegalTransition, NotFound):
                return None
            except Unavailable:  # its driver is reconnecting
                await self._clock.sleep(AGAIN_SECONDS)

    async def _watch(self) -> None:
        """Follow the guest's events: while it is paused, its traffic goes to the target."""
        with contextlib.suppress(WeftError):
            async for event in self._driver.events(self._local.id):
                if event.name == "stopped":
                    self._stopped_at = event.at
                    self._switch("stopped")
                elif event.name == "resumed":
                    self._stopped_at = None
                    self._switch("resumed")
                if event.name != "copied":  # these come by the dozen, within the pause too
                    self._news.set()
        self._news.set()

    def _switch(self, what: Literal["stopped", "resumed"]) -> None:
        """Switch both nodes' networks; their failure loses frames, but doesn't abort the migration."""
        self._beside(self._order(MigrationRequest(what)))
        if self._between_clusters:
            return
        try:
            if what == "stopped":
                self._network.handover.switch_away(self._local, self._target_address)
            else:
                self._network.handover.undo_switch(self._local)
        except WeftError as problem:
            log.warning("%s: its network: %s", self._local.what, problem.message)

    def _beside(self, sending: Coroutine[Any, Any, None]) -> None:
        """Send a request to the target without waiting for it."""
        task = asyncio.ensure_future(sending)
        self._sending.add(task)
        task.add_done_callback(self._log_failure)

    def _log_failure(self, sending: asyncio.Task[None]) -> None:
        self._sending.discard(sending)
        if not sending.cancelled() and (problem := sending.exception()) is not None:
            log.warning("%s: its network at the target: %s", self._local.what, problem)

    # Connection

    def _connect(self) -> MigrationConnection:
        if self._connection is None:
            migration = self._migration
            self._connection = self._node.wire.make_connection(
                self.migration.key, migration.address, migration.peer_uid, self._limits, migration.peer_ca
            )
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def _order(self, ask: MigrationRequest) -> None:
        await self._connect().order(ask)

    @property
    def _lesson(self) -> MigrationLesson:
        return self._migration.lesson or MigrationLesson()

    @property
    def _target_address(self) -> str:
        return self._migration.address.rpartition(":")[0].strip("[]")

    def _find_path(self) -> float:
        """The assumed rate of the path, in bytes a second."""
        known = (*limits_of(self._migration), self._lesson.path_bytes_per_second, self._slow_path)
        return min(filter(None, known), default=UNKNOWN_PATH)

    def _choose(self, settings: MigrationSettings) -> MigrationSettings:
        """``settings`` with the disks that are copied."""
        return msgspec.structs.replace(settings, copied_disks=self._list_copied(), whole=self._between_clusters)

    def _list_copied(self) -> tuple[str, ...]:
        """Serials of the disks that aren't shared with the target."""
        shared = self._migration.shared
        own = [name_serial(volume.name) for volume in self._local.spec.volumes if volume.uid not in shared]
        return (*(() if ROOT in shared else (ROOT_SERIAL,)), *own)

    def _figures(self, facts: MigrationFacts, began: float) -> dict[str, object]:
        sent = self._connection.meter.sent if self._connection is not None else facts.sent_bytes
        return {
            "phase": "handedOver" if facts.phase == "handedOver" else
            "switching" if facts.phase == "switching" else "migrating",
            "sent_bytes": sent,
            "total_bytes": facts.total_bytes,
            "remaining_bytes": facts.remaining_bytes,
            "passes": facts.passes,
            "bytes_per_second": facts.bytes_per_second,
            "dirty_bytes_per_second": facts.dirty_bytes_per_second,
            "elapsed_ms": round((self._clock.elapsed() - began) * 1000),
        }  # fmt: skip
