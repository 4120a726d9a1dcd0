"""A guest under load that moves between two QEMU drivers over a link, and what each move has cost."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from tests.conformance.runtime_contract import ready, run

from benchmarks.measurement import ROOT
from benchmarks.migration.path import Link
from weft.contracts.driver.migration import Load, MigrationMode, MigrationSettings
from weft.contracts.driver.runtime import GuestPlan
from weft.kinds.fields.allocated_migration import MigrationLesson
from weft.transfer.calibration import correct_plan
from weft.transfer.plan import USABLE_SHARE, Leeway, MigrationPlan, choose_mode, reconsider

sys.path.insert(0, str(ROOT / "tests" / "host"))

from guest_lab import GuestLab, unpack_tiny

PATIENCE_SECONDS = 120.0
UNKNOWN_PATH = 1_000_000_000  # bytes per second: as of the first move between two nodes
DRIVEN: tuple[MigrationMode, ...] = ("plain", "xbzrle", "multifd-zstd", "auto-converge", "stop-and-copy")
MIB = 1 << 20


class Migrated(msgspec.Struct):
    """One move: what was foreseen, if anything was, and what it was."""

    mode: str
    converged: bool
    duration_seconds: float
    pause_seconds: float
    bytes: int
    plan: MigrationPlan | None = None
    load: Load | None = None


class Rig:
    """Two nodes ``a`` and ``b``, the link between them, and one guest."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="weft-bench-")
        tiny = unpack_tiny(Path(self.folder.name))
        self.labs = {side: GuestLab(tiny) for side in "ab"}
        self.drivers = {side: lab.driver() for side, lab in self.labs.items()}
        self.link = Link(Path(self.folder.name))
        self.here, self.plan, self.key = "a", None, 0
        program = Path(self.folder.name, "verifier")
        source = ROOT / "tests" / "host" / "verifier.c"
        subprocess.run(["gcc", "-O2", "-static", "-s", "-o", str(program), str(source)], check=True)
        self.program = program.read_bytes()

    async def close(self) -> None:
        for lab in self.labs.values():
            await lab.close_drivers()
            lab.close()
        self.link.close()
        self.folder.cleanup()

    async def run(self, *argv: str, stdin: bytes = b"") -> str:
        return (await run(self.drivers[self.here], self.guest.id, *argv, stdin=stdin))[0].decode()

    @property
    def guest(self) -> GuestPlan:
        assert self.plan is not None
        return self.plan

    async def boot(
        self, memory_mib: int, *, kind: str = "", set_mib: int = 0, megabytes_per_second: float = 0.0
    ) -> None:
        """Another guest: one that is idle, or writes ``set_mib`` over and over."""
        if self.plan is not None:
            await self.drivers[self.here].stop(self.plan.id, grace_seconds=0)
            await self.drivers[self.here].remove(self.plan.id)
        self.here, self.key = "a", self.key + 1
        self.plan = self.labs["a"].plan(f"bench-{self.key}", memory_bytes=memory_mib * MIB)
        driver = self.drivers["a"]
        await ready(driver, self.plan)
        if kind:
            await self.run("sh", "-c", "cat > /root/verifier; chmod +x /root/verifier", stdin=self.program)
            rate = int(megabytes_per_second * 1e6 / 4096)
            words = f"/root/verifier {set_mib} {rate} /root/counter /dev/shm/verdict {kind}"
            await self.run("sh", "-c", f"{words} >/dev/null 2>&1 &")
            await self.run("sh", "-c", "until grep -qs rounds=[1-9] /dev/shm/verdict; do sleep 0.1; done")

    async def check(self) -> None:
        """Raises if the guest has lost anything."""
        said = await self.run("sh", "-c", "cat /dev/shm/verdict 2>/dev/null || true")
        if (found := re.match(r"rounds=\d+ bad=(\d+)", said)) and found[1] != "0":
            raise SystemExit(f"a guest has lost what it wrote: {said}")

    async def migrate(
        self, settings: MigrationSettings, *, leeway: Leeway | None = None, patience: float = PATIENCE_SECONDS
    ) -> Migrated:
        """Once, to the other side. ``leeway``: watched and led on as weft does; without, as QEMU does it alone. One that doesn't
        converge within ``patience`` is called off, and the guest stays."""
        source, target = self.drivers[self.here], self.drivers["b" if self.here == "a" else "a"]
        plan, key = self.guest, f"move-{time.monotonic_ns()}"
        sockets = await target.migrations.expect(plan, await source.migrations.describe(plan.id), key, settings)
        relay = str(Path(self.folder.name, f"{self.here}.sock"))
        self.link.carry(self.here, relay, sockets.memory, alone=leeway is None, connections=settings.connections)
        stops: list[float] = []
        runs: list[float] = []
        watchers = [
            asyncio.create_task(_watch(source, plan, "stopped", stops)),
            asyncio.create_task(_watch(target, plan, "resumed", runs)),
        ]
        await asyncio.sleep(0)
        before, begun = self.link.sent_bytes(self.here), time.monotonic()
        try:
            await source.migrations.send(plan.id, key, msgspec.structs.replace(sockets, memory=relay), settings)
            left: list[int] = []
            slowdown = settings.slowdown
            while True:
                facts = await source.migrations.progress(plan.id, key)
                if facts.phase in ("handedOver", "failed"):
                    break
                if time.monotonic() - begun > patience:
                    break
                if leeway is not None and facts.passes > len(left):
                    left.append(facts.remaining_bytes)
                    rate = facts.bytes_per_second / USABLE_SHARE or leeway.bytes_per_second  # once it is known
                    known = msgspec.structs.replace(leeway, bytes_per_second=rate)
                    change = reconsider(settings.mode, left, known, slowdown=slowdown)
                    if change.action == "slow down":
                        slowdown = change.slowdown
                        await source.migrations.adjust(plan.id, key, slowdown=slowdown)
                    elif change.action == "finish standing still":
                        await source.migrations.adjust(plan.id, key, pause_ms=max(1, int(change.pause_seconds * 3000)))
                await asyncio.sleep(0.002)
            if facts.phase != "handedOver":
                await source.migrations.cancel(plan.id, key)
                await target.migrations.give_up(plan.id, key)
                return Migrated(
                    settings.mode, False, time.monotonic() - begun, 0.0, self.link.sent_bytes(self.here) - before
                )
            while (await target.migrations.progress(plan.id, key)).phase != "arrived":
                await asyncio.sleep(0.001)
            await target.migrations.take_over(plan.id, key)
            ended = time.monotonic()
            sent = self.link.sent_bytes(self.here) - before
            await source.migrations.leave(plan.id, key)
            await source.remove(plan.id)
            await asyncio.wait_for(watchers[1], 5.0)
            self.here = "b" if self.here == "a" else "a"
            return Migrated(settings.mode, True, ended - begun, runs[0] - stops[0], sent)
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)

    async def move_as_planned(self, lesson: MigrationLesson, *, modes: tuple[MigrationMode, ...] = DRIVEN) -> Migrated:
        """As weft does: sample, choose, correct by what was learnt, lead."""
        load = await self.drivers[self.here].migrations.sample(self.guest.id)
        leeway = Leeway(lesson.path_bytes_per_second or UNKNOWN_PATH, pause_seconds=0.3, modes=modes)
        chosen = choose_mode(load, leeway)
        plan = msgspec.structs.replace(chosen, planned=correct_plan(chosen.planned, lesson))
        moved = await self.migrate(plan.settings, leeway=leeway)
        moved.plan, moved.load = plan, load
        return moved


async def _watch(driver: object, plan: GuestPlan, name: str, seen: list[float]) -> None:
    with contextlib.suppress(Exception):
        async for event in driver.migrations.events(plan.id):  # type: ignore[attr-defined]
            if event.name == name:
                seen.append(event.at)
                return
