"""Asynchronous invocations: what was accepted is run, again when it failed, by the function's terms; never lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.function_api_lab import ApiLab, api_lab

from weft.contracts.store import Precondition, Write
from weft.gateway.function.definition.catalogue import Function
from weft.gateway.function.invocation.call import Call, InvocationOutcome
from weft.gateway.function_events import delivery
from weft.gateway.function_events import file as event_file
from weft.gateway.function_events.dead_letters import DeadLetters
from weft.gateway.function_events.delivery import Deliveries
from weft.gateway.function_events.file import EventFile
from weft.gateway.function_events.queue import INSERT, Event, EventQueue
from weft.gateway.function_events.schedule_state import ScheduleState
from weft.gateway.function_events.schedules import Schedules
from weft.informer.view import View
from weft.kinds.function import FunctionSpec
from weft.launch.gateway import function_api
from weft.objects.envelope import Envelope, encode_envelope, merge_part
from weft.objects.errors import NotFound, StoreUnavailable, Throttled, TooLarge, Unavailable, WeftError
from weft.objects.identity import new_uid
from weft.protocol.function_counts import LEASE_PREFIX, LEASE_SECONDS
from weft.protocol.invocations import InvocationAnswer, InvocationRefused, Invoke
from weft.protocol.server.presence import SCHEDULES
from weft.store.memory import MemoryStore

DAY = 86400.0


class Time:
    """A clock that moves when it is told to, and whoever sleeps wakes at his time."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    def elapsed(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now + seconds, future))
        await future

    async def jump(self, seconds: float) -> None:
        """So much time passes at once, and whoever slept wakes late."""
        await settle()
        self._now += seconds
        await self.pass_(0)

    async def pass_(self, seconds: float) -> None:
        """So much time passes, from one waking to the next; between them all that can be done is done."""
        end = self._now + seconds
        while True:
            await settle()
            due = [at for at, future in self._sleepers if not future.done() and at <= end]
            if not due:
                break
            self._now = max(self._now, min(due))
            for at, future in list(self._sleepers):
                if at <= self._now and not future.done():
                    future.set_result(None)
            self._sleepers = [one for one in self._sleepers if not one[1].done()]
        self._now = end


files: list[EventFile] = []  # those that are open


async def settle() -> None:
    """Let tasks and the threads of the files do what they can."""
    for _ in range(8):
        for _ in range(8):
            await asyncio.sleep(0)
        for file in files:
            await file.do(lambda db: None)


class Nodes:
    """Stands in for the dispatcher: ``says`` gives what becomes of a call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.says: Any = lambda call: InvocationOutcome(id=call.id, payload=b"1")
        self.running = self.most = 0

    async def invoke(self, call: Call, function: Function | None = None) -> InvocationOutcome:
        self.calls.append(call)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            said = self.says(call)
            if asyncio.iscoroutine(said):
                said = await said
        finally:
            self.running -= 1
        if isinstance(said, WeftError):
            raise said
        return said


class Lab:
    """A gateway; ``beside``: another one of the same fabric."""

    def __init__(self, folder: Path, beside: Lab | None = None) -> None:
        self.path, self.name = folder / "events.db", folder.name
        self.time = beside.time if beside is not None else Time()
        self.store = beside.store if beside is not None else MemoryStore(self.time)
        self.view = beside.view if beside is not None else View(("function", "functionversion", "token"))
        self.nodes = Nodes()

    async def open(self) -> None:
        self.file = EventFile(self.path)
        await self.file.open()
        files.append(self.file)
        self.letters = DeadLetters(self.file)
        self.fired, queue = ScheduleState(self.store, self.file, self.name), EventQueue(self.file)
        self.deliveries = Deliveries(
            queue, self.letters, self.view, self.nodes, self.time, self.fired, draw=lambda: 0.5
        )
        self.schedules = Schedules(self.fired, queue, self.view, lambda: True, self.deliveries.stir, self.time)
        self.tasks = [
            asyncio.ensure_future(self.deliveries.run()),
            asyncio.ensure_future(self.schedules.run()),
            asyncio.ensure_future(self._report()),
        ]
        await settle()

    async def _report(self) -> None:
        while True:
            await self.store.grant(LEASE_PREFIX + self.name, self.name, LEASE_SECONDS)
            await self.time.sleep(5.0)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        files.remove(self.file)
        await self.file.close()

    def function(self, name: str, **spec: Any) -> None:
        wish = msgspec.convert({"code": "c0" * 32, "handler": "a.b", **spec}, FunctionSpec)
        envelope = Envelope(kind="function", name=name, uid=f"uid-{name}", project="default")
        envelope.spec = merge_part(envelope.spec, wish)
        self.view.put(envelope.key, encode_envelope(envelope), 1)
        self.schedules.changed()

    async def accept(self, name: str, payload: bytes = b'{"n":1}', **more: Any) -> str:
        call = Call(id=new_uid(), project="default", name=name, payload=payload, **more)
        await self.deliveries.accept(call)
        return call.id

    async def dead(self, name: str) -> list[Event]:
        return await self.letters.dead("default", name, 100)

    async def waiting(self) -> int:
        return sum(standing.count for standing in await EventQueue(self.file).standings())


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    await lab.open()
    lab.function("f")
    yield lab
    await lab.close()


def failed(call: Call) -> InvocationOutcome:
    told = b'{"errorType":"ValueError","errorMessage":"no such n"}'
    return InvocationOutcome(id=call.id, payload=told, error="Unhandled", error_type="ValueError")


async def test_an_event_that_fails_is_run_again_twice_later_and_later_then_kept(lab: Lab) -> None:
    lab.nodes.says = failed
    id = await lab.accept("f")
    await settle()
    assert len(lab.nodes.calls) == 1
    await lab.time.pass_(9)
    assert len(lab.nodes.calls) == 1
    await lab.time.pass_(2)
    assert len(lab.nodes.calls) == 2
    await lab.time.pass_(18)
    assert len(lab.nodes.calls) == 2
    await lab.time.pass_(3)
    assert [call.id for call in lab.nodes.calls] == [id] * 3
    await lab.time.jump(DAY)
    assert len(lab.nodes.calls) == 3 and await lab.waiting() == 0
    (letter,) = await lab.dead("f")
    assert (letter.id, letter.tries, letter.error_type, letter.error) == (id, 3, "ValueError", "no such n")
    lab.nodes.says = lambda call: InvocationOutcome(id=call.id, payload=b"1")
    assert await lab.deliveries.redrive("default", "f") == 1
    await settle()
    assert lab.nodes.calls[-1].id == id and lab.nodes.calls[-1].payload == b'{"n":1}'
    assert await lab.dead("f") == [] and await lab.waiting() == 0


async def test_what_failed_for_good_goes_to_the_function_that_is_named_and_from_there_no_further(lab: Lab) -> None:
    lab.function("f", retries=0, dead_letter="heir")
    lab.function("heir", retries=0, dead_letter="f")
    lab.nodes.says = failed
    id = await lab.accept("f", qualifier="3")
    await settle()
    heir = lab.nodes.calls[-1]
    told = json.loads(heir.payload)
    assert heir.name == "heir" and heir.id != id
    assert told["requestContext"] == {
        "requestId": id,
        "functionArn": "arn:weft:lambda:weft:default:function:f:3",
        "condition": "RetriesExhausted",
        "approximateInvokeCount": 1,
    }
    assert told["requestPayload"] == {"n": 1} and told["responsePayload"]["errorType"] == "ValueError"
    await lab.time.jump(DAY)
    assert len(lab.nodes.calls) == 2 and await lab.dead("f") == []
    assert [letter.origin for letter in await lab.dead("heir")] == ["deadletter"]
    lab.function("g", retries=0, dead_letter="gone")
    await lab.accept("g")
    await settle()
    assert len(await lab.dead("g")) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        Throttled("busy"),
        Unavailable("no room", reason="insufficientResources"),
        Unavailable("not ready", reason="functionNotReady"),
        WeftError("something else"),
    ],
)
async def test_what_can_not_run_now_waits_without_costing_a_retry_until_it_is_too_old(
    lab: Lab, refusal: WeftError
) -> None:
    lab.function("f", max_age=3600.0)
    lab.nodes.says = lambda call: refusal
    await lab.accept("f")
    await lab.time.pass_(1800)
    tried = len(lab.nodes.calls)
    assert 20 < tried < 60 and await lab.waiting() == 1 and await lab.dead("f") == []
    lab.nodes.says = lambda call: InvocationOutcome(id=call.id, payload=b"1")
    await lab.time.pass_(60)
    assert await lab.waiting() == 0 and len(lab.nodes.calls) == tried + 1
    lab.nodes.says = lambda call: refusal
    await lab.accept("f")
    await lab.time.pass_(3700)
    (letter,) = await lab.dead("f")
    assert letter.tries == 0 and letter.error_type == refusal.token


async def test_an_event_of_a_version_that_is_gone_holds_up_no_other_and_is_a_dead_letter_after_a_minute(
    lab: Lab,
) -> None:
    lab.nodes.says = lambda call: (
        NotFound("no version", reason="functionNotFound")
        if call.qualifier
        else InvocationOutcome(id=call.id, payload=b"1")
    )
    await lab.accept("f", qualifier="9")
    await lab.time.pass_(1)
    await lab.accept("f")
    await lab.time.pass_(1)
    assert await lab.waiting() == 1 and [call.qualifier for call in lab.nodes.calls] == ["9", ""]
    await lab.time.pass_(70)
    (letter,) = await lab.dead("f")
    assert (letter.tries, letter.error_type, await lab.waiting()) == (0, "functionNotFound", 0)


async def test_an_invocation_that_was_lost_is_run_again(lab: Lab) -> None:
    lost = iter([Unavailable("the node died", reason="invocationLost")])
    lab.nodes.says = lambda call: next(lost, None) or InvocationOutcome(id=call.id, payload=b"1")
    await lab.accept("f")
    await lab.time.pass_(12)
    assert len(lab.nodes.calls) == 2 and await lab.waiting() == 0


async def test_one_functions_pile_keeps_no_other_waiting_and_no_more_run_than_may(lab: Lab) -> None:
    lab.function("slow", max_concurrent=6)
    release = asyncio.Event()

    async def hang(call: Call) -> InvocationOutcome:
        await release.wait()
        return InvocationOutcome(id=call.id, payload=b"1")

    lab.nodes.says = lambda call: hang(call) if call.name == "slow" else InvocationOutcome(id=call.id, payload=b"1")
    for _ in range(200):
        await lab.accept("slow")
    await lab.accept("f")
    await settle()
    assert [call.name for call in lab.nodes.calls].count("f") == 1 and lab.nodes.running <= 6
    release.set()
    for _ in range(100):
        await lab.time.pass_(0.01)
        if not await lab.waiting():
            break
    assert await lab.waiting() == 0 and lab.nodes.most <= 7 and len({call.id for call in lab.nodes.calls}) == 201


async def test_too_large_an_event_and_one_too_many_are_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TooLarge):
        await lab.accept("f", b"x" * (256 * 1024 + 1))
    monkeypatch.setattr(delivery, "MOST_WAITING", 3)
    lab.nodes.says = lambda call: Throttled("busy")
    for _ in range(3):
        await lab.accept("f")
    with pytest.raises(Throttled, match="wait already"):
        await lab.accept("f")


async def test_a_schedule_fires_once_for_each_time_also_over_restarts(lab: Lab) -> None:
    lab.time._now = 1_800_000_000.0 - 1_800_000_000.0 % 3600 + 10  # ten seconds past an hour
    lab.function("tick", schedule=[{"cron": "*/10 * * * *"}, {"cron": "@hourly", "input": {"hourly": True}}])
    await lab.time.pass_(595)
    assert [json.loads(call.payload)["schedule"] for call in lab.nodes.calls] == ["*/10 * * * *"]
    await lab.close()
    await lab.open()
    await lab.time.pass_(1800)
    assert len(lab.nodes.calls) == 4
    for _ in range(3):  # restarts in the minute that it was fired in
        await lab.close()
        await lab.open()
        await lab.time.pass_(1)
    assert len(lab.nodes.calls) == 4
    await lab.time.pass_(1200)
    assert [call.payload for call in lab.nodes.calls].count(b'{"hourly":true}') == 1 and len(lab.nodes.calls) == 7


async def test_what_fell_into_a_downtime_is_made_up_for_once(lab: Lab) -> None:
    lab.time._now = 1_800_000_000.0 - 1_800_000_000.0 % 3600 + 10
    lab.function("tick", schedule=[{"cron": "* * * * *"}])
    await lab.time.pass_(60)
    assert len(lab.nodes.calls) == 1
    await lab.close()
    lab.time._now += 3 * DAY
    await lab.open()
    await settle()
    assert len(lab.nodes.calls) == 2
    await lab.time.pass_(125)
    assert len(lab.nodes.calls) == 4
    lab.view.drop("/function/default/tick")
    lab.schedules.changed()
    await lab.time.pass_(600)
    assert len(lab.nodes.calls) == 4 and await lab.fired.known() == {}


def ticks_of(*labs: Lab) -> list[str]:
    """The times of all runs of schedules, in order; those that ran twice stand there twice."""
    return sorted(json.loads(call.payload)["time"] for lab in labs for call in lab.nodes.calls)


async def test_of_two_gateways_one_fires_and_the_other_goes_on_where_it_died(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    second = Lab(tmp_path / "second", lab)
    await second.open()
    lab.time._now = 1_800_000_000.0 - 1_800_000_000.0 % 3600 + 10
    lab.function("tick", schedule=[{"cron": "* * * * *"}])
    await lab.time.pass_(160)
    assert len(lab.nodes.calls) == 2 and not second.nodes.calls
    never: asyncio.Event = asyncio.Event()
    lab.nodes.says = lambda call: never.wait()
    await lab.time.pass_(60)
    assert len(lab.nodes.calls) == 3  # it is under way, and never ends
    unfinished = lab.nodes.calls.pop()
    [held] = await lab.store.leases(SCHEDULES)
    await lab.close()
    assert not await lab.store.leases(SCHEDULES)  # one that ends in order gives it back
    await lab.store.grant(SCHEDULES, held.holder, 10.0)  # and one that dies doesn't
    await lab.time.pass_(130)
    times = ticks_of(lab, second)
    assert len(times) == len(set(times)) == 6  # none is left out, and the unfinished one ran
    assert [call.id for call in second.nodes.calls].count(unfinished.id) == 1
    lab.nodes.says = lambda call: InvocationOutcome(id=call.id, payload=b"1")
    await lab.open()  # its queue still has the one that the other has run
    await lab.time.pass_(120)
    times = ticks_of(lab, second)
    assert len(times) == len(set(times)) == 8 and await lab.waiting() == await second.waiting() == 0
    assert (await lab.store.list("/-event/")).entries == []
    await second.close()


class Broken(MemoryStore):
    """Commits and then says that it doesn't know."""

    broken = False

    async def commit(
        self,
        writes: Sequence[Write],
        preconditions: Sequence[Precondition] = (),
        *,
        idempotency_key: str | None = None,
    ) -> int:
        revision = await super().commit(writes, preconditions, idempotency_key=idempotency_key)
        if self.broken and any(write.key.startswith("/-event/") for write in writes):
            self.broken = False
            raise StoreUnavailable("the connection was lost")
        return revision


async def test_a_firing_whose_answer_was_lost_is_neither_repeated_nor_skipped(lab: Lab) -> None:
    await lab.close()
    lab.store = store = Broken(lab.time)
    await lab.open()
    lab.time._now = 1_800_000_000.0 - 1_800_000_000.0 % 3600 + 10
    lab.function("tick", schedule=[{"cron": "* * * * *"}])
    await lab.time.pass_(40)
    store.broken = True
    await lab.time.pass_(120)
    assert not store.broken and len(ticks_of(lab)) == len(set(ticks_of(lab))) == 2


async def test_what_an_earlier_weft_fired_from_its_file_is_gone_on_with(lab: Lab) -> None:
    lab.time._now = 1_800_000_000.0 - 1_800_000_000.0 % 3600 + 10
    lab.function("tick", schedule=[{"cron": "* * * * *"}])
    await lab.time.pass_(60)
    [((function, entry), fired)] = (await lab.fired.known()).items()
    await lab.close()
    lab.store = MemoryStore(lab.time)
    with closing(event_file.open_file(lab.path)) as db:
        db.execute("INSERT INTO fired VALUES (?, ?, ?)", (function, entry, fired.last))
        waits = Event(id="old", project="default", name="f", origin="schedule", accepted_at=fired.last, due_at=1.0)
        db.execute(INSERT, msgspec.structs.astuple(waits))
    lab.nodes.calls.clear()
    lab.time._now = fired.last + 61
    await lab.open()
    await lab.time.pass_(5)
    assert {call.name for call in lab.nodes.calls} == {"tick"} | {"f"} and len(lab.nodes.calls) == 2


async def test_a_schedules_dead_letter_is_run_again_too(lab: Lab) -> None:
    lab.function("tick", schedule=[{"cron": "* * * * *"}], retries=0)
    lab.nodes.says = failed
    await lab.time.pass_(60)
    (letter,) = await lab.dead("tick")
    lab.function("tick", retries=0)  # no more of them
    lab.nodes.says = lambda call: InvocationOutcome(id=call.id, payload=b"1")
    lab.nodes.calls.clear()
    assert await lab.deliveries.redrive("default", "tick") == 1
    await settle()
    assert [call.id for call in lab.nodes.calls] == [letter.id]


async def test_old_dead_letters_go_in_the_end(lab: Lab) -> None:
    lab.function("f", retries=0)
    lab.nodes.says = failed
    await lab.accept("f")
    await lab.time.jump(13 * DAY)
    assert len(await lab.dead("f")) == 1
    await lab.time.jump(2 * DAY)
    assert await lab.dead("f") == []


async def test_a_disk_that_takes_nothing_refuses_the_event_and_takes_the_next(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.file.do(lambda db: db.execute("PRAGMA max_page_count=20"))
    big = b'"' + b"x" * 100_000 + b'"'
    with pytest.raises(Unavailable, match="full"):
        await lab.accept("f", big)
    await lab.file.do(lambda db: db.execute("PRAGMA max_page_count=100000"))
    id = await lab.accept("f", big)
    await settle()
    assert [call.id for call in lab.nodes.calls] == [id]


async def test_the_log_of_the_file_is_cut_back_when_a_long_reader_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a backup is, which reads all of it."""
    monkeypatch.setattr(event_file, "_LOG_FILE_BYTES", 1 << 20)
    file, log = EventFile(tmp_path / "events.db"), tmp_path / "events.db-wal"
    await file.open()
    queue = EventQueue(file)

    async def fill(what: str) -> None:
        for n in range(30):
            await queue.add(
                [Event(id=f"{what}-{n}", project="p", name="f", payload=b"x" * 200_000, accepted_at=1.0, due_at=1.0)]
            )

    with closing(sqlite3.connect(tmp_path / "events.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM event").fetchall()
        await fill("held")
        assert log.stat().st_size > 6_000_000
    await fill("after")
    size = log.stat().st_size
    await file.close()
    assert size <= 5 << 20


async def test_what_is_no_queue_is_said(tmp_path: Path) -> None:
    (tmp_path / "events.db").write_bytes(b"not a database" * 100)
    file = EventFile(tmp_path / "events.db")
    with pytest.raises(Unavailable):
        await file.open()


WRITER = """
import asyncio, sys
from pathlib import Path
from weft.gateway.function_events.file import EventFile
from weft.gateway.function_events.queue import INSERT, Event, EventQueue

async def run() -> None:
    file = EventFile(Path(sys.argv[1]))
    await file.open()
    queue = EventQueue(file)

    async def add(lane: int) -> None:
        for n in range(100000):
            id = f"{lane}-{n}"
            await queue.add([Event(id=id, project="p", name="f", payload=b"x" * 500, accepted_at=1.0, due_at=1.0)])
            print(id, flush=True)

    await asyncio.gather(*(add(lane) for lane in range(20)))

asyncio.run(run())
"""


async def test_kill_9_loses_nothing_that_was_accepted(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    accepted: set[str] = set()
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER.replace('f"{lane}', f'f"{len(accepted)}-{{lane}}'), str(path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(300)]
        os.kill(writer.pid, signal.SIGKILL)
        lines += writer.stdout.readlines()
        writer.wait()
        accepted |= {line.strip() for line in lines if line.endswith("\n")}
    assert len(accepted) >= 900
    file = EventFile(path)
    await file.open()
    kept = {event.id for event in await EventQueue(file).due("p", "f", 10**6)}
    await file.close()
    assert accepted <= kept


# Through the API servers, with boto3's calls as they are on the wire.


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[ApiLab]:
    async with api_lab(tmp_path) as lab:
        yield lab


PATH = "/2015-03-31/functions/thumb/invocations"


async def test_events_are_run_after_a_restart_of_the_gateway_and_dead_letters_are_seen_through_the_api_servers(
    api: ApiLab,
) -> None:
    agent = await api.lab.agent("n1")
    await api.lab.function("thumb", retries=0)
    bearer = f"Bearer {await api.token(role='admin')}"
    agent.says = lambda agent, invoke: InvocationRefused(invoke.id, "insufficientResources", "no memory")
    ids = set()
    for n in range(20):
        status, headers, _ = await api.ask(
            "POST", PATH, str(n).encode(), Authorization=bearer, X_Amz_Invocation_Type="Event"
        )
        assert status == 202
        ids.add(headers["x-amzn-requestid"])
    await api.restart()
    said = InvocationAnswer("", b'{"errorType":"E","errorMessage":"odd"}', error="Unhandled", error_type="E")

    def answer(agent: Any, invoke: Invoke) -> InvocationAnswer:
        if int(invoke.payload) % 2:
            return msgspec.structs.replace(said, id=invoke.id)
        return InvocationAnswer(invoke.id, b"1")

    agent.says = answer
    await agent.stop()
    await agent.start()
    await api.lab.until(lambda: {one.id for one in agent.invoked if one.id in agent.heard} == ids)
    path = "/v1/projects/default/functions/thumb/dead-letters"

    async def letters() -> list[dict[str, Any]]:
        status, _, body = await api.ask("GET", path, Authorization=bearer)
        assert status == 200
        return list(json.loads(body)["items"])

    for _ in range(1200):
        if len(found := await letters()) == 10:
            break
        await asyncio.sleep(0.05)
    assert sorted(int(letter["payload"]) for letter in found) == list(range(1, 20, 2))
    assert {(letter["error_type"], letter["error"], letter["tries"]) for letter in found} == {("E", "odd", 1)}
    invoker = f"Bearer {await api.token('inv')}"
    assert (await api.ask("POST", f"{path}:purge", Authorization=invoker))[0] == 403
    assert (await api.ask("GET", f"{path}:purge", Authorization=bearer))[0] == 405
    assert (await api.ask("POST", f"{path}:burn", Authorization=bearer))[0] == 404
    agent.says = lambda agent, invoke: InvocationAnswer(invoke.id, b"1")
    assert json.loads((await api.ask("POST", f"{path}:redrive", Authorization=bearer))[2]) == {"count": 10}
    await api.lab.until(lambda: len(agent.heard) >= 30)
    assert await letters() == []
    assert json.loads((await api.ask("POST", f"{path}:purge", Authorization=bearer))[2]) == {"count": 0}


async def test_a_damaged_file_of_events_keeps_the_api_servers_shut_until_it_is_moved_away(
    api: ApiLab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(function_api, "AGAIN_SECONDS", 0.05)
    await api.lab.agent("n1")
    await api.lab.function("thumb")
    bearer = f"Bearer {await api.token()}"
    await api.close()
    path = api.folder / "gateway" / "events.db"
    path.write_bytes(b"no database" * 1000)
    place = f"127.0.0.1:{api.port}"
    keeping = asyncio.ensure_future(function_api.keep_function_api([place], api.folder, api.lab.parts, api.lab.clock))
    try:
        await api.lab.until(lambda: "functions can't be served over HTTP" in caplog.text)
        assert await api.lab.invoke("thumb", b"1")  # all else goes on
        path.unlink()
        for _ in range(1200):
            try:
                status, _, body = await api.ask("POST", PATH, b"7", Authorization=bearer)
                break
            except OSError:
                await asyncio.sleep(0.05)
        assert (status, body) == (200, b"7")
        assert caplog.text.count("functions can't be served over HTTP") == 1
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
