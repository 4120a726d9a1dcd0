"""Gateways of several servers over one store and real TLS: an event is acknowledged when another one has it, too, which runs it
when its owner is gone, and not again when that returns."""

from __future__ import annotations

import asyncio
import sqlite3
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.gateway.test_function_events import Nodes, failed
from tests.scenario.server.test_full_disk_of_a_server import small_disk

from weft.client.context import Context
from weft.client.server import others as other_servers
from weft.contracts.clock import Clock, SystemClock
from weft.contracts.store import Delete, Put
from weft.gateway.event_copies import all_dead_letters
from weft.gateway.event_copies import copying as event_copying
from weft.gateway.event_copies import kept_copies as event_copies
from weft.gateway.event_copies.all_dead_letters import AllDeadLetters
from weft.gateway.event_copies.copying import Copying
from weft.gateway.event_copies.kept_copies import CopyAnswer, CopyBatch
from weft.gateway.event_copies.other_gateways import FIND_TAKEN, OtherGateways
from weft.gateway.event_copies.record import CopyRecords
from weft.gateway.function import lease as gateway_lease
from weft.gateway.function.invocation.call import Call, InvocationOutcome
from weft.gateway.function.lease import GatewayLease
from weft.gateway.function_events.backup import put_rows
from weft.gateway.function_events.dead_letters import DeadLetters
from weft.gateway.function_events.delivery import Deliveries
from weft.gateway.function_events.file import EventFile
from weft.gateway.function_events.queue import EventQueue
from weft.gateway.function_events.schedule_state import ScheduleState
from weft.gateway.lambda_api.answers import FAILED, answer_json, refuse, type_of
from weft.gateway.lambda_api.http import LambdaRequest, make_app
from weft.gateway.lambda_api.other_gateways import OtherGatewayApi
from weft.informer.view import View
from weft.kinds.function import FunctionSpec
from weft.kinds.server import SERVER, ServerSpec
from weft.launch.gateway.function_api import BOUNDS
from weft.launch.server.backup_events import gather_events
from weft.objects.envelope import Envelope, encode_envelope, merge_part
from weft.objects.errors import Unavailable, WeftError
from weft.objects.identity import SERVER_NAME, ServerIdentity, new_uid, object_key
from weft.protocol.function_counts import LEASE_PREFIX
from weft.protocol.server.presence import LEASE_PREFIX as SERVERS
from weft.protocol.server.presence import Presence, encode_presence
from weft.serving.answer import Answer
from weft.serving.server import HttpServer, listen, make_server_tls
from weft.store.memory import MemoryStore
from weft.trust.ca import Authority

KEY = b"k" * 32


def serve(ask: Callable[[LambdaRequest], Awaitable[Answer]], tls: ssl.SSLContext, clock: Clock) -> HttpServer:
    """Serve what ``ask`` answers to other gateways, on loopback."""

    async def answer(request: LambdaRequest) -> Answer:
        try:
            return await ask(request)
        except WeftError as problem:
            return answer_json(problem.to_dict(), "", type_of(problem)[0])

    http = HttpServer(make_app(answer, FAILED), [listen("127.0.0.1", 0)], tls, clock, BOUNDS, refuse, dated=False)
    http.start()
    return http


class Server:
    """One server's gateway, as far as events go."""

    def __init__(self, fabric: Fabric, name: str) -> None:
        self.fabric, self.name = fabric, name
        self.own, self.nodes = ServerIdentity(name, new_uid()), Nodes()
        self.state, self.is_there = fabric.folder / name, False
        self.path = self.state / "gateway" / "events.db"
        self.state.mkdir(exist_ok=True)
        (self.state / "server.json").write_bytes(msgspec.json.encode(self.own))
        (self.state / "ticket.key").write_bytes(KEY)
        (self.state / "ca.crt").write_text(fabric.ca)

    async def start(self) -> None:
        store, clock = self.fabric.store, self.fabric.clock
        self.file = EventFile(self.path)
        await self.file.open()
        self.others = OtherGateways(store, self.own, KEY, self.fabric.make_context, clock)
        self.gateway = self.others.name
        lease, queue = GatewayLease(store, self.gateway, bytes, clock), EventQueue(self.file)
        self.letters = DeadLetters(self.file)
        self.copying = Copying(self.file, queue, self.others, lease, CopyRecords(store), clock)
        fired = ScheduleState(store, self.file, self.gateway)
        self.deliveries = Deliveries(
            queue, self.letters, self.fabric.view, self.nodes, clock, fired, draw=lambda: 0.5, copying=self.copying
        )
        self.all_letters = AllDeadLetters(self.deliveries, self.others)
        records: Any = None
        api = OtherGatewayApi(self.others, self.copying.copies, self.all_letters, records)

        self.http = serve(api.answer, self.fabric.tls, clock)
        self.is_there = True
        self._tasks = [asyncio.ensure_future(work) for work in (self.deliveries.run(), self._serve(lease))]

    async def _serve(self, lease: GatewayLease) -> None:
        """Renew the leases of the server and its gateway."""
        self.place = f"127.0.0.1:{self.http.ports[0]}"
        while True:
            presence = encode_presence(Presence(self.own.uid, functions=self.place))
            await self.fabric.store.grant(SERVERS + self.name, self.name, 60, presence)
            if lease.is_wanted:
                await lease.renew()
            await asyncio.sleep(0.1)

    async def kill(self, *, leases: bool = True) -> None:
        """End it without a word; ``leases``: they lapse, too."""
        self.is_there = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.http.close()
        await self.file.close()
        self.others.close()
        if leases:
            await self.lapse()

    async def lapse(self) -> None:
        await self.fabric.store.release(SERVERS + self.name, self.name)
        await self.fabric.store.release(LEASE_PREFIX + self.gateway, self.gateway)

    async def accept(self, name: str = "f", payload: bytes = b'{"n":1}') -> str:
        call = Call(id=new_uid(), project="default", name=name, payload=payload)
        await self.deliveries.accept(call)
        return call.id

    @property
    def ran(self) -> list[str]:
        return [call.id for call in self.nodes.calls]

    async def find(self, where: str) -> set[str]:
        """The ids of the events that lie in a table of its file."""
        return {id for (id,) in await self.file.do(lambda db: db.execute(f"SELECT id FROM {where}").fetchall())}

    async def copied(self) -> set[str]:
        """The ids of the events that it has copies of."""
        return await self.find("copy")

    def has(self, where: str, *ids: str) -> Callable[[], Awaitable[bool]]:
        """Finds out whether exactly these lie there."""

        async def look() -> bool:
            return await self.find(where) == set(ids)

        return look


class Fabric:
    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, SystemClock()
        self.store = MemoryStore(self.clock)
        self.view = View(("function",))
        authority = Authority(folder, self.clock)
        self.ca = authority.ca
        self.tls = make_server_tls(*authority.renew_server([]))
        self.servers: list[Server] = []

    def make_context(self, url: str, _: ServerIdentity) -> Context:
        return Context(server=url, ca=self.ca, server_name=SERVER_NAME)

    async def add(self, name: str) -> Server:
        server = Server(self, name)
        self.servers.append(server)
        made = SERVER.make(name, ServerSpec(), 1.0)
        await self.store.commit([Put(made.key, encode_envelope(made))])
        await server.start()
        await until(lambda: server.copying.may_run())
        return server

    def function(self, name: str, **spec: Any) -> None:
        wish = msgspec.convert({"code": "c0" * 32, "handler": "a.b", **spec}, FunctionSpec)
        envelope = Envelope(kind="function", name=name, uid=f"uid-{name}", project="default")
        envelope.spec = merge_part(envelope.spec, wish)
        self.view.put(envelope.key, encode_envelope(envelope), 1)


async def until(true: Any) -> None:
    async with asyncio.timeout(10):
        while True:
            found = true()
            if found if not asyncio.iscoroutine(found) else await found:
                return
            await asyncio.sleep(0.01)


@pytest.fixture
async def fabric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fabric]:
    for module, name, value in (
        (event_copying, "LOOK_SECONDS", 0.05),
        (event_copying, "AGAIN_SECONDS", 0.05),
        (event_copying, "ACKNOWLEDGE_SECONDS", 0.5),
        (event_copying, "REST_SECONDS", 0.2),
        (other_servers, "REST_SECONDS", 0.2),
        (gateway_lease, "LEASE_SECONDS", 2.0),
    ):
        monkeypatch.setattr(module, name, value)
    fabric = Fabric(tmp_path)
    await fabric.store.open()
    fabric.function("f", max_concurrent=50)
    yield fabric
    for server in fabric.servers:
        if server.is_there:
            await server.kill()
    await fabric.store.close()


async def hang(call: Call) -> InvocationOutcome:
    await asyncio.Event().wait()
    raise AssertionError


async def make_two(fabric: Fabric) -> tuple[Server, Server]:
    """Two servers that have seen each other."""
    first, second = await fabric.add("s1"), await fabric.add("s2")
    await until(lambda: first.gateway in second.others.live and second.gateway in first.others.live)
    return first, second


async def test_only_a_gateway_with_events_and_another_server_has_a_record_and_a_lease(fabric: Fabric) -> None:
    first = await fabric.add("s1")
    id = await first.accept()
    await until(lambda: first.ran == [id])
    second = await fabric.add("s2")
    await until(lambda: second.gateway in first.others.live)
    await asyncio.sleep(0.2)
    assert (await fabric.store.list("/-copies/")).entries == []
    assert await fabric.store.leases(LEASE_PREFIX) == []
    first.nodes.says = hang
    id = await first.accept()
    assert await second.copied() == {id}
    assert {lease.name for lease in await fabric.store.leases(LEASE_PREFIX)} == {LEASE_PREFIX + first.gateway}


async def test_an_event_is_acknowledged_when_another_server_has_it_and_runs_there_when_its_own_is_killed(
    fabric: Fabric,
) -> None:
    first, second = await make_two(fabric)
    first.nodes.says = hang
    ids = set(await asyncio.gather(*(first.accept() for _ in range(40))))
    assert await second.copied() == ids and second.ran == []
    await first.kill()
    await until(lambda: set(second.ran) == ids)
    await until(second.has("event"))
    first.nodes = Nodes()
    await first.start()
    await until(lambda: first.copying.may_run())
    new = await first.accept()
    await until(lambda: first.ran == [new])
    await until(first.has("event"))
    assert len(second.ran) == len(ids)
    await until(second.has("taken"))


async def test_dead_letters_survive_their_server_too_and_are_not_twice_when_it_returns(fabric: Fabric) -> None:
    fabric.function("f", retries=0)
    first, second = await make_two(fabric)
    first.nodes.says = failed
    id = await first.accept()
    await until(lambda: first.letters.dead("default", "f", 10))
    await until(lambda: is_dead_copy(second, id))
    await first.kill()
    await until(lambda: second.letters.dead("default", "f", 10))
    await first.start()
    await until(first.has("event"))
    assert [letter.id for letter in await second.letters.dead("default", "f", 10)] == [id]
    assert await second.deliveries.redrive("default", "f") == 1
    await until(lambda: second.ran == [id])
    assert first.ran == [id]


async def test_dead_letters_of_all_servers_are_one_list_page_by_page(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_dead_letters, "MOST_LISTED", 2)
    fabric.function("f", retries=0)
    first, second = await make_two(fabric)
    ids = list[str]()
    for number in range(9):
        server = first if number % 3 else second
        server.nodes.says = failed
        ids.append(await server.accept())
        await until(lambda server=server: server.deliveries.find_dead(ids[-1]))
    for server in (first, second):
        listed = list[str]()
        while letters := (await server.all_letters.find("default", "f", listed[-1] if listed else "")).letters:
            listed += [letter.id for letter in letters]
        assert listed == ids[::-1]
    assert (await second.all_letters.act("redrive", "default", "f")).count == 9
    await until(lambda: len(first.ran) + len(second.ran) == 18)
    await second.kill(leases=False)
    assert (await first.all_letters.act("purge", "default", "f")).away == ["s2"]


async def is_dead_copy(server: Server, id: str) -> bool:
    rows = await server.file.do(lambda db: db.execute("SELECT event FROM copy WHERE id = ?", (id,)).fetchall())
    return bool(rows) and msgspec.msgpack.decode(rows[0][0])["dead_at"] is not None


async def test_what_is_done_leaves_its_copy_and_is_not_run_by_the_other(fabric: Fabric) -> None:
    first, second = await make_two(fabric)
    ids = {await first.accept() for _ in range(5)}
    await until(second.has("copy"))
    await first.kill()
    await until(lambda: fabric.store.get(f"/-copies/{first.gateway}"))
    await asyncio.sleep(0.3)
    assert set(first.ran) == ids and second.ran == []


async def test_an_invocation_that_its_caller_repeats_at_the_other_server_runs_once(fabric: Fabric) -> None:
    first, second = await make_two(fabric)
    first.nodes.says = hang
    call = Call(id=new_uid(), project="default", name="f", payload=b"1")
    await first.deliveries.accept(call)
    await first.kill(leases=False)  # its caller got no answer
    await second.deliveries.accept(call)
    await asyncio.sleep(0.1)
    assert second.ran == []
    await first.lapse()
    await until(lambda: second.ran == [call.id])
    await second.deliveries.accept(call)
    await asyncio.sleep(0.1)
    assert second.ran == [call.id]


async def test_copies_go_on_when_the_store_has_lost_the_record(fabric: Fabric) -> None:
    """As after a restore of an older one."""
    first, second = await make_two(fabric)
    first.nodes.says = hang
    ids = {await first.accept()}
    for _ in range(2):
        await first.kill(leases=False)
        await fabric.store.commit([Delete(f"/-copies/{first.gateway}")])
        await first.start()
        ids.add(await first.accept())
    assert await second.copied() == ids and second.ran == []


async def test_a_server_that_is_not_reached_at_its_address_has_no_copies(fabric: Fabric) -> None:
    """As one whose functions are served on loopback: there this server answers itself."""
    first, second = await make_two(fabric)
    first.nodes.says = hang
    at, second.place = second.place, first.place
    await until(lambda: first.others._urls == {"s2": f"https://{first.place}"})
    lone = await first.accept()
    assert not first.others.live
    assert await first.copied() == await second.copied() == set()
    second.place = at
    await until(second.has("copy", lone))


async def test_a_server_whose_answers_cannot_be_read_is_logged_once(
    fabric: Fabric, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = await make_two(fabric)
    first.nodes.says = hang
    id = await first.accept()
    await first.kill()
    await until(lambda: second.ran == [id])
    asked: list[str] = []

    async def garble(request: LambdaRequest) -> Answer:
        asked.append(request.path)
        return Answer(200, bytes([0xC1, len(asked)]) * len(asked))

    second.http.answer = make_app(garble, FAILED)
    await first.start()
    await until(lambda: len([path for path in asked if path == FIND_TAKEN]) > 5)
    said = [record.getMessage() for record in caplog.records if "gives no answer" in record.getMessage()]
    problem = "the gateway of server s2 gives no answer that can be read"
    assert sorted(said) == [f"copies of events: {problem}", f"events of other gateways: {problem}"]


async def test_a_server_that_froze_runs_nothing_until_it_knows_what_was_taken_over(fabric: Fabric) -> None:
    first, second = await make_two(fabric)
    started = asyncio.Event()

    async def wait(call: Call) -> InvocationOutcome:
        started.set()
        return await hang(call)

    first.nodes.says = wait
    fabric.function("g", max_concurrent=1)
    ids = {await first.accept("g") for _ in range(6)}  # one runs, the others wait
    await started.wait()
    before = len(first.ran)
    lease = first.copying._lease
    lease._renewed_at = float("-inf")
    lease._store = NoStore()
    await fabric.store.release(LEASE_PREFIX + first.gateway, first.gateway)
    await until(lambda: set(second.ran) == ids)
    first.nodes.says = lambda call: InvocationOutcome(id=call.id, payload=b"1")
    assert len(first.ran) == before
    lease._store = fabric.store
    await until(lambda: first.copying.may_run())
    await until(first.has("event WHERE held <> ''"))
    assert len(first.ran) == before and len(second.ran) == len(ids)


class NoStore:
    async def grant(self, *_: Any) -> None:
        return None


async def test_copies_go_to_a_third_server_when_the_second_is_gone(fabric: Fabric) -> None:
    servers = [await fabric.add(name) for name in ("s1", "s2", "s3")]
    await until(lambda: all(len(server.others.live) == 2 for server in servers))
    first, *rest = servers
    first.nodes.says = hang
    ids = {await first.accept() for _ in range(3)}
    (holder,) = [server for server in rest if await server.copied() >= ids]
    (other,) = [server for server in rest if server is not holder]
    await holder.kill(leases=False)  # nobody knows it yet
    ids.add(await first.accept())
    assert await other.copied() >= ids
    await holder.start()  # what it has is old, and is dropped
    await until(holder.has("copy"))


@pytest.mark.host
async def test_copies_go_to_a_third_server_while_the_disk_of_the_second_is_full(fabric: Fabric) -> None:
    with ExitStack() as disks:
        fill = {name: disks.enter_context(small_disk(fabric.folder / name, "8M")) for name in ("s1", "s2", "s3")}
        servers = [await fabric.add(name) for name in fill]
        await until(lambda: all(len(server.others.live) == 2 for server in servers))
        first, *rest = servers
        first.nodes.says = hang
        ids = {await first.accept()}
        (holder,) = [server for server in rest if await server.copied() >= ids]
        (other,) = [server for server in rest if server is not holder]
        free = fill[holder.name]()
        payload = b'"' + b"x" * 60_000 + b'"'
        ids |= {await first.accept(payload=payload) for _ in range(10)}
        assert await other.copied() >= ids
        free()
        free = fill[first.name]()
        with pytest.raises(Unavailable, match="events can't be stored now: database or disk is full"):
            for _ in range(100):
                ids.add(await first.accept(payload=payload))
        free()
        ids.add(await first.accept(payload=payload))
        assert await first.find("event") == ids
        await until(other.has("copy", *ids))
        for server in servers:
            await server.kill()


async def test_a_server_that_has_too_many_copies_takes_more_when_some_are_done(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await make_two(fabric)
    monkeypatch.setattr(event_copies, "MOST_COPIES", 3)
    ending = asyncio.Event()

    async def wait(call: Call) -> InvocationOutcome:
        await ending.wait()
        return InvocationOutcome(id=call.id, payload=b"1")

    first.nodes.says = wait
    for _ in range(3):
        await first.accept()
    with pytest.raises(Unavailable, match="keeps no more copies: it has 3 copies of this gateway's events already"):
        await first.accept()
    ending.set()
    await until(second.has("copy"))
    await first.accept()


async def test_while_a_second_server_hangs_events_are_refused_and_one_copy_is_enough_without_it(fabric: Fabric) -> None:
    first, second = await make_two(fabric)
    await second.kill(leases=False)
    with pytest.raises(Unavailable, match="no other server has a copy of the event yet: server s2 is away"):
        await first.accept()
    assert first.ran == [] or len(first.ran) == 1
    await second.lapse()
    await until(lambda: not first.others.live)
    first.nodes.says = hang
    id = await first.accept()
    await second.start()
    await until(second.has("copy", id))


async def test_events_that_a_removed_server_took_over_are_run_by_their_own(fabric: Fabric) -> None:
    first, second = await make_two(fabric)
    first.nodes.says = hang
    id = await first.accept()
    await first.kill()
    second.nodes.says = hang
    await until(lambda: second.ran == [id])
    await second.kill()
    first.nodes = Nodes()
    await first.start()
    await until(lambda: first.copying.may_run())
    await asyncio.sleep(0.2)
    assert first.ran == []  # the other may have done it
    await fabric.store.commit([Delete(object_key("server", None, "s2"))])
    await until(lambda: first.ran == [id])


async def test_a_backup_at_one_server_has_the_events_of_all_and_names_those_that_are_away(fabric: Fabric) -> None:
    servers = [await fabric.add(name) for name in ("s1", "s2", "s3")]
    await until(lambda: all(len(server.others.live) == 2 for server in servers))
    ids = set()
    for server in servers:
        server.nodes.says = hang
        ids |= {await server.accept() for _ in range(3)}
    assert await back_up(fabric, servers[0]) == (ids, [])
    await servers[2].kill(leases=False)
    assert await back_up(fabric, servers[0]) == (ids, ["s3"])


async def back_up(fabric: Fabric, server: Server) -> tuple[set[str], list[str]]:
    """The ids that a backup has, once restored in another folder, and the names of the servers that were away."""
    path = fabric.folder / f"restored-{new_uid()}" / "events.db"
    async with gather_events(server.state, fabric.store, fabric.clock) as events:
        await asyncio.to_thread(put_rows, path, events.read())
    with closing(sqlite3.connect(path)) as db:
        return {id for (id,) in db.execute("SELECT id FROM event")}, events.away


async def test_a_batch_of_an_era_that_is_over_is_not_kept(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "events.db")
    await file.open()
    held = event_copies.KeptCopies(file)

    async def keep(era: int, **more: Any) -> CopyAnswer:
        return await held.keep(CopyBatch(owner="o", era=era, **{"since": 1, "begins": False, "whole": False, **more}))

    assert not (await keep(1)).kept  # it lacks what came before
    assert (await keep(1, begins=True)).kept and (await keep(1)).kept
    assert not (await keep(2)).kept and (await keep(2, begins=True)).kept
    assert await keep(1, begins=True) == CopyAnswer(False, 2)
    (owner,) = await held.list_owners()
    await held.take_over(owner, 5)
    assert await keep(5, begins=True) == CopyAnswer(False, 5) and await held.list_owners() == []
    assert (await keep(6, begins=True)).kept
    await file.close()
