"""A suspended guest goes over whole, or its migration fails: it never boots elsewhere without its memory."""

from __future__ import annotations

import asyncio
import uuid
from array import array
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from tests.node_key import make_node_key

from weft.agent.migration.cold import ColdSource, ColdTarget
from weft.agent.migration.credentials import Credentials
from weft.agent.migration.relay import Limit
from weft.agent.migration.role import MigrationContext, NodeContext
from weft.agent.migration.transport import TlsTransport
from weft.agent.samples.files import SampleFiles
from weft.agent.state.allocation import Checkpoint, MigrationState
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.checkpoint import CheckpointStore
from weft.agent.workload.kind import Prepared
from weft.agent.workload.runtimes import Runtimes
from weft.agent.workload.vm import Vm
from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.runtime import BootDisk, GuestPlan
from weft.drivers.runtime.fake.driver import FakeDriver
from weft.kinds.allocation import ROOT, AllocationSpec, Resources
from weft.kinds.fields.allocated_migration import AllocatedMigration
from weft.objects.envelope import Envelope
from weft.objects.errors import IllegalTransition
from weft.objects.identity import Ref, short_id
from weft.protocol.migration import LogMark, MigrationRequest
from weft.telemetry.logs.journal import Cursor
from weft.telemetry.logs.store import LogStore
from weft.trust.ca import Authority, read_csr

CLOCK = SystemClock()
MOVE = AllocatedMigration(
    key="m", mode="cold", peer="n", peer_uid="node-1", peer_allocation="", saves="must", shared=(ROOT,)
)


class Ends:
    """Both ends of a migration of a VM whose disk both nodes see."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.uids = folder, (str(uuid.uuid4()), str(uuid.uuid4()))
        authority = Authority(folder / "server", CLOCK)
        for side in (1, 2):
            own = folder / f"node-{side}"
            own.mkdir()
            certificate = authority.sign_node(read_csr(make_node_key(own / "node.key")), own.name)
            (own / "node.crt").write_text(certificate)
            (own / "ca.crt").write_text(authority.ca)
        self.hosts = [
            Host(
                f"n{side}",
                f"node-{side}",
                str(folder / f"s{side}"),
                str(folder / f"s{side}"),
                "w",
                "127.0.0.1",
                "",
                "",
                Capacity(1, 1, 1),
            )
            for side in (1, 2)
        ]
        self.drivers = [FakeDriver(host) for host in self.hosts]
        monkeypatch.setattr(Vm, "plan_guest", lambda kind, local, prepared: self.plan(1))

    def plan(self, side: int) -> GuestPlan:
        uid = self.uids[side]
        return GuestPlan(short_id(uid), uid, "web", side + 1, "q35", 1.0, 1, 128 << 20, BootDisk(), [], [])

    def context(self, side: int, allocated: AllocatedMigration) -> MigrationContext:
        spec = AllocationSpec(
            node=f"n{side + 1}",
            node_uid=f"node-{side + 1}",
            workload=Ref("vm", "web", "web-1", "default"),
            workload_generation=1,
            incarnation=side + 1,
            resources=Resources(cpu=1, memory=128 << 20, disk=1 << 20),
            migration=allocated,
        )
        wire, limit = TlsTransport(Credentials(str(self.folder / f"node-{side + 1}")), CLOCK), Limit(0, CLOCK)
        runtimes = Runtimes({"vm": self.drivers[side]})
        node = NodeContext(
            self.hosts[side],
            runtimes,
            None,
            None,
            SampleFiles(Path(self.hosts[side].state_dir) / "samples"),
            wire,
            limit,
            CLOCK,
        )  # type: ignore[arg-type]  # not asked
        migration = MigrationState("m", "target" if side else "source", "", cold=True)
        raw = msgspec.Raw(msgspec.json.encode(spec))
        allocation = Envelope(kind="allocation", name=f"n{side + 1}.a", uid=self.uids[side], spec=raw)
        store = CheckpointStore(str(self.folder / f"n{side + 1}"))
        state = AllocationState(allocation, Checkpoint(migration=migration), store)
        return MigrationContext(state, state.local, migration, node)


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ends:
    return Ends(tmp_path, monkeypatch)


async def migrate(source: ColdSource, target: ColdTarget) -> None:
    """To its end, good or bad."""
    source.start()
    try:
        async with asyncio.timeout(60):
            while source.report.phase not in ("handedOver", "failed"):
                await asyncio.sleep(0.02)
    finally:
        await source.close()
        await target.close()


@pytest.mark.parametrize("suspended", [True, False])
async def test_its_memory_is_there_before_it_is_taken_over_and_without_it_nothing_is(
    ends: Ends, suspended: bool
) -> None:
    here, there = ends.drivers
    before = await here.start(ends.plan(0))
    await (here.suspend(before.id) if suspended else here.stop(before.id, grace_seconds=0))
    target = ColdTarget(ends.context(1, MOVE), Prepared())
    await target.open()
    with pytest.raises(IllegalTransition, match="saved"):
        await target._respond(MigrationRequest("takeOver"))
    source = ColdSource(
        ends.context(0, msgspec.structs.replace(MOVE, peer_uid="node-2", address=target.report.address))
    )
    await migrate(source, target)
    came = await there.inspect(short_id(ends.uids[1]))
    if suspended:
        assert (source.report.phase, target.report.phase) == ("handedOver", "takenOver"), source.report.message
        assert (came.state, came.boot_id, came.incarnation) == ("suspended", before.boot_id, 2)
    else:
        assert source.report.phase == "failed" and "not suspended any more" in source.report.message
        assert (target.report.phase, came.state) == ("waiting", "absent")


class Logs:
    """The logs of one node, as a migration asks for them."""

    def __init__(self, folder: Path) -> None:
        self.store = LogStore(folder, CLOCK)
        self.store.open()
        self.marks: list[LogMark | None] = []

    async def drain(self, local: object) -> None: ...

    def expect(self, uid: str, seconds: float, mark: LogMark | None = None) -> None:
        self.marks.append(mark)

    def expect_no_more(self, uid: str) -> None: ...


def gathering(context: MigrationContext, logs: Logs) -> MigrationContext:
    return msgspec.structs.replace(context, node=msgspec.structs.replace(context.node, logs=cast(Any, logs)))


async def test_how_far_its_log_had_come_is_known_before_the_log_comes(
    ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = (Logs(tmp_path / f"logs-{side}") for side in (1, 2))
    here.store.append("web-1", array("q", [1, 2]), b"one\ntwo\n", Cursor("8"))
    before = await ends.drivers[0].start(ends.plan(0))
    await ends.drivers[0].suspend(before.id)
    target = ColdTarget(gathering(ends.context(1, MOVE), there), Prepared())
    await target.open()
    waits: list[bool] = []

    async def settle() -> None:
        waits.append(target.report.phase == "takenOver" and bool(there.marks))

    monkeypatch.setattr(
        target._layers, "settle", settle
    )  # meanwhile the server may let the guest's agent read its console
    sent = msgspec.structs.replace(MOVE, peer_uid="node-2", address=target.report.address)
    source = ColdSource(gathering(ends.context(0, sent), here))
    await migrate(source, target)
    assert waits == [True] and there.marks == [LogMark(here.store.next_number("web-1"), 8)]
    assert there.store.next_number("web-1") == here.store.next_number("web-1")
