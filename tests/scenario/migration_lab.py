"""Pretend nodes whose guests move: what both sides of a move report, and the truth about who runs the guest, which no
report can change. Each step of a side can be told to go wrong."""

from __future__ import annotations

from typing import Any

import msgspec
from tests.scenario.controllers_lab import Lab, PretendNode

from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.fields.allocated_migration import AllocatedMigration, MigrationReport, PlannedMigration
from weft.kinds.migration import MigrationStatus
from weft.kinds.parts.workload import WorkloadStatus
from weft.objects.envelope import Envelope, decode_envelope, decode_part, merge_part
from weft.objects.identity import object_key

MIB = 1024 * 1024


class World(msgspec.Struct):
    """One try's truth. ``stops_at``: the step of the source that is not followed by another; ``fails_at``: the one that
    fails instead; ``deaf``: the target never hears of the hand-over."""

    handed_over: bool = False
    taken_over: bool = False
    given_up: bool = False
    stops_at: str = ""
    fails_at: str = ""
    deaf: bool = False
    stuck: str = ""  # why the target can't get ready


class MigratingNode(PretendNode):
    """An agent without a machine whose guests can move."""

    lab: MovingLab

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.sent: dict[str, AllocatedMigration] = {}  # by key: what it was told of them

    async def act(self, key: str) -> None:
        entry = await self.lab.store.get(key)
        if entry is None or self.slow or not self.alive:
            return
        envelope = decode_envelope(entry.value, entry.revision)
        spec = decode_part(envelope.spec, AllocationSpec)
        deleting = envelope.deleting_since is not None
        old = self.running.get(envelope.uid, AllocationReport())
        if spec.migration is None and (lost := self._find_lost(spec, old)) is not None:
            new = msgspec.structs.replace(old, state="running", reason="illegalTransition", migration=lost)
        elif spec.migration is None or spec.role in ("active", "reserved"):
            await super().act(key)
            return
        else:
            new = self.lab.step_move(spec, spec.migration, old, deleting)
        self.running[envelope.uid], self.specs[envelope.uid] = new, spec
        if spec.migration is not None:
            self.sent[spec.migration.key] = spec.migration
        if new != decode_part(envelope.report, AllocationReport):

            def change(target: Envelope) -> None:
                target.report = merge_part(target.report, new)

            await self.lab.change(key, change)
        if (
            spec.migration is not None
            and new.migration is not None
            and new.migration.phase == "handedOver"
            and not self.lab.world(spec.migration.key).deaf
        ):
            peer = self.lab.nodes[spec.migration.peer]
            for uid, there in list(peer.specs.items()):
                if there.migration is not None and there.migration.key == spec.migration.key and peer.alive:
                    await peer.act(object_key("allocation", None, f"{peer.uid}.{uid}"))

    def _find_lost(self, spec: AllocationSpec, old: AllocationReport) -> MigrationReport | None:
        """What it keeps saying of a guest that it has handed over, if the allocation, of an older store, has no such migration:
        until it learns that the guest goes on here."""
        said = old.migration
        if said is None or said.phase != "handedOver":
            return None
        if said.key in spec.back_from:
            assert not self.lab.world(said.key).taken_over, "the guest goes on here though it runs at the target"
            return None
        former = self.sent.get(said.key)
        return (
            said
            if former is None
            else msgspec.structs.replace(said, peer=former.peer, peer_allocation=former.peer_allocation)
        )


class MovingLab(Lab):
    """``begin`` is what a new try's world is like."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.worlds: dict[str, World] = {}
        self.begin: list[World] = []

    async def add_node(self, name: str, **report: Any) -> PretendNode:
        node = self.nodes[name] = MigratingNode(self, name, **{"epoch": await self.epoch(), **report})
        await node.join()
        return node

    def world(self, key: str) -> World:
        if key not in self.worlds:
            self.worlds[key] = self.begin.pop(0) if self.begin else World()
        return self.worlds[key]

    def step_move(
        self, spec: AllocationSpec, migration: AllocatedMigration, old: AllocationReport, deleting: bool
    ) -> AllocationReport:
        """The next thing that a side of a move reports."""
        world = self.world(migration.key)
        if spec.role == "source":
            return self._step_source(spec, migration, world, old, deleting)
        return self._step_target(spec, migration, world, old, deleting)

    def _step_source(
        self, spec: AllocationSpec, migration: AllocatedMigration, world: World, old: AllocationReport, deleting: bool
    ) -> AllocationReport:
        if deleting:
            assert world.taken_over, "a source is taken away though the guest doesn't run at the target"
            return msgspec.structs.replace(old, state="released")
        said = old.migration.phase if old.migration is not None and old.migration.key == migration.key else ""
        if migration.never_ran:
            assert world.given_up and not world.taken_over
            return self._say(old, migration, "failed", "it goes on here")
        if not migration.address or said in ("failed", "handedOver") or said == world.stops_at != "":
            return old
        following = {"": "migrating", "migrating": "switching", "switching": "handedOver"}[said]
        if following == world.fails_at:
            return self._say(old, migration, "failed", "the connection was cut")
        if following == "handedOver":
            world.handed_over = True
        return self._say(old, migration, following)

    def _step_target(
        self, spec: AllocationSpec, migration: AllocatedMigration, world: World, old: AllocationReport, deleting: bool
    ) -> AllocationReport:
        new = msgspec.structs.replace(old, incarnation=spec.incarnation, restart_generation=spec.restart_generation)
        if deleting:
            assert not world.taken_over, "a target is taken away though the guest runs there"
            return msgspec.structs.replace(new, state="released")
        said = old.migration.phase if old.migration is not None else ""
        if said in ("takenOver", "abandoned"):
            return new
        if spec.desired == "stop" and not world.taken_over:
            world.given_up = True
            return self._say(msgspec.structs.replace(new, state="stopped"), migration, "abandoned")
        if world.taken_over or (world.handed_over and not world.deaf):
            world.taken_over = True
            saved = bool(migration.saves)
            came = msgspec.structs.replace(
                new, state="suspended" if saved else "running", ready=None if saved else True
            )
            return self._say(came, migration, "takenOver", pause_ms=21)
        if world.stuck:
            troubled = msgspec.structs.replace(
                new, state="failed", reason=world.stuck, message="it can't be made ready"
            )
            return self._say(troubled, migration, "preparing")
        if said == "":
            return self._say(msgspec.structs.replace(new, state="preparing"), migration, "preparing")
        return self._say(new, migration, "waiting", address="10.0.0.9:7000")

    def _say(
        self, report: AllocationReport, migration: AllocatedMigration, phase: str, message: str = "", **more: Any
    ) -> AllocationReport:
        plan = PlannedMigration(
            mode="plain", reason="each pass leaves less", duration_seconds=4.0, pause_seconds=0.02, bytes=MIB
        )
        told = MigrationReport(
            key=migration.key,
            phase=phase,  # type: ignore[arg-type]
            message=message,
            plan=plan if phase == "migrating" else report.migration.plan if report.migration is not None else None,
            sent_bytes=MIB if phase in ("handedOver", "switching") else 0,
            elapsed_ms=4000 if phase == "handedOver" else 0,
            **more,
        )
        return msgspec.structs.replace(report, migration=told)

    async def migrate(self, vm: str, name: str = "m", **spec: Any) -> Envelope:
        return await self.put("migration", name, {"workload": f"vm/{vm}", **spec}, finalizers=("migration",))

    async def cancel(self, name: str) -> None:
        await self.ask(name, "migration", cancel=True)

    async def migration(self, name: str = "m") -> MigrationStatus:
        envelope = await self.get(f"/migration/default/{name}")
        assert envelope is not None
        return decode_part(envelope.status, MigrationStatus)

    async def until_lease_message(self, vm: str, words: str, seconds: float = 120.0) -> WorkloadStatus:
        async def there() -> bool:
            lease = (await self.status(vm)).lease
            return lease is not None and words in lease.message

        await self.until(there, seconds)
        return await self.status(vm)

    async def until_migration(self, phase: str, name: str = "m", seconds: float = 120.0) -> MigrationStatus:
        async def there() -> bool:
            return (await self.migration(name)).phase == phase

        await self.until(there, seconds)
        return await self.migration(name)
