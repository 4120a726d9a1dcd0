"""A suspended guest goes over whole, or its migration fails: it never boots elsewhere without its memory."""

from __future__ import annotations

import asyncio
import uuid
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from tests.node_key import make_node_key

from weft.agent.flow.files import FlowFiles
from weft.agent.flow.folded import MINUTE, Interval
from weft.agent.migration import history
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
from weft.objects.errors import IllegalTransition, InvalidInput, Unavailable
from weft.objects.identity import Ref, short_id
from weft.protocol.migration import LogMark, MigrationRequest
from weft.telemetry.logs.journal import Cursor
from weft.telemetry.logs.store import LogStore
from weft.telemetry.samples.layout import Series
from weft.trust.ca import Authority, read_csr

CLOCK = SystemClock()


@pytest.fixture(autouse=True)
def soon_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(history, "PAUSE_SECONDS", 0.01)


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
        await asyncio.gather(*[end.rest for end in (source, target) if end.rest is not None])


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


class Wire:
    """Loses the first answers to each kind of piece; where ``there`` is False the piece too, as to a node that is too busy."""

    def __init__(self, wire: TlsTransport, count: int, *, there: bool) -> None:
        self._wire, self._count, self._there = wire, count, there
        self.asked: list[str] = []

    def make_connection(self, *facts: Any) -> Any:
        connection: Any = self._wire.make_connection(*facts)
        order = connection.order

        async def lossy(ask: MigrationRequest) -> None:
            self.asked.append(ask.do)
            is_lost = ask.do in history.NAMES and self.asked.count(ask.do) <= self._count
            if self._there or not is_lost:
                await order(ask)
            if is_lost:
                raise Unavailable("the target doesn't answer", reason="lineLost")

        connection.order = lossy
        return connection


class Left:
    """What a guest leaves behind on a node: a line of its log, a sample, and a minute of flows."""

    def __init__(self, folder: Path, context: MigrationContext, *, fill: bool) -> None:
        self.logs, self.files, self.events = Logs(folder / "logs"), FlowFiles(folder / "flows"), list[tuple[str, str]]()
        flows = SimpleNamespace(files=self.files, pack=lambda uid: self.files.pack(uid, None, CLOCK.now()))
        reporter = SimpleNamespace(put_event=lambda ref, type_, reason, text: self.events.append((reason, text)))
        node = msgspec.structs.replace(
            context.node, logs=cast(Any, self.logs), flows=cast(Any, flows), reporter=cast(Any, reporter)
        )
        Path(context.node.host.state_dir).mkdir(exist_ok=True)
        self.samples, self.context = node.samples, msgspec.structs.replace(context, node=node)
        if fill:
            self.logs.store.append("web-1", array("q", [1]), b"one\n", Cursor("4"))
            now = CLOCK.now()
            file = self.samples.open("web-1", [Series("cpu", "cores")])
            for tick in range(50):
                file.append(now - 60 + tick * 0.2, [1.0])
            file.close()
            self.files.append("web-1", Interval(int(now) // 60 * 60 - 60, MINUTE, "n1", []), now)

    async def list(self) -> tuple[int, bool, list[Interval]]:
        carried = self.logs.store.find("web-1")[0]
        lines = sum(part.count for part in carried.head.parts) if carried is not None else 0
        return lines, bool(await self.samples.pack("web-1")), self.files.read("web-1")


async def move(ends: Ends, tmp_path: Path, count: int, *, there: bool = False) -> tuple[Left, Left, Wire]:
    before = await ends.drivers[0].start(ends.plan(0))
    await ends.drivers[0].suspend(before.id)
    gets = Left(tmp_path / "there", ends.context(1, MOVE), fill=False)
    target = ColdTarget(gets.context, Prepared())
    await target.open()
    sent = msgspec.structs.replace(MOVE, peer_uid="node-2", address=target.report.address)
    gives = Left(tmp_path / "here", ends.context(0, sent), fill=True)
    wire = Wire(cast(Any, gives.context.node.wire), count, there=there)
    node = msgspec.structs.replace(gives.context.node, wire=cast(Any, wire))
    source = ColdSource(msgspec.structs.replace(gives.context, node=node))
    await migrate(source, target)
    assert (source.report.phase, target.report.phase) == ("handedOver", "takenOver"), source.report.message
    return gives, gets, wire


@pytest.mark.parametrize("there", [False, True])
async def test_what_a_guest_leaves_behind_is_sent_again_until_its_node_has_it(
    ends: Ends, tmp_path: Path, there: bool
) -> None:
    gives, gets, wire = await move(ends, tmp_path, 2, there=there)
    count = len(await gives.samples.pack("web-1")) + 1
    sent = {part: wire.asked.count(part) for part in history.NAMES}
    assert sent == {"logs": 2 + 2, "traffic": 1 + 2, "samples": count + 2}, "what has come is not sent again"
    lines, has_samples, flows = await gets.list()
    assert (lines, has_samples, flows) == (1, True, gives.files.read("web-1")) and not gives.events


async def test_a_history_that_never_gets_through_holds_nothing_up_and_is_told(
    ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "HISTORY_SECONDS", 0.3)
    monkeypatch.setattr(history, "LOG_SECONDS", 0.1)
    gives, gets, _ = await move(ends, tmp_path, 1 << 30)
    assert await gets.list() == (0, False, [])
    left = "its log, its recorded flows and its samples stay on node n1: the target doesn't answer"
    assert gives.events == [("HistoryLeftBehind", left)]


async def test_a_piece_that_could_not_be_taken_comes_again_with_those_before_it(ends: Ends, tmp_path: Path) -> None:
    gives, gets = (Left(tmp_path / str(side), ends.context(side, MOVE), fill=side == 0) for side in (0, 1))
    pieces = history.pack_log(gives.logs.store, "web-1")
    taker = history.HistoryTaker(gets.context.node, gets.context.local)
    with pytest.raises(InvalidInput, match="no log is expected"):
        await taker.take(MigrationRequest("logs", logs=pieces[0], piece=1))
    taker.begin()
    await taker.take(MigrationRequest("logs", logs=pieces[0], piece=1))
    with pytest.raises(InvalidInput):
        await taker.take(MigrationRequest("logs", logs=b"nonsense", piece=2))
    with pytest.raises(InvalidInput, match="from the first on"):
        await taker.take(MigrationRequest("logs", logs=pieces[1], piece=2))
    for number, piece in [*enumerate(pieces, 1), *enumerate(pieces, 1)]:
        await taker.take(MigrationRequest("logs", logs=piece, piece=number))
    assert (await gets.list())[0] == 1
