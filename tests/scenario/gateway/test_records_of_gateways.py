"""The log and the metrics of a function that ran at the gateways of two servers: each shows both, and names one that is away; what
a gateway may not answer is left out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.functions_lab import FunctionsLab, PretendAgent, functions_lab
from tests.scenario.gateway.test_functions_streams import ticket
from tests.scenario.gateway.test_queued_copies import serve
from tests.scenario.gateway_lab import KEY

from weft.cli.logs.reader import Reader
from weft.client.context import Context
from weft.client.server import others as other_servers
from weft.contracts.clock import SystemClock
from weft.contracts.store import Delete, Put
from weft.gateway.event_copies.other_gateways import OtherGateways
from weft.gateway.function.invocation.call import InvocationOutcome
from weft.gateway.function.record import all_gateways
from weft.gateway.function.record.all_gateways import LINES, METRICS, LinesQuery
from weft.gateway.lambda_api.http import LambdaRequest
from weft.kinds.server import SERVER, ServerSpec
from weft.objects.envelope import encode_envelope
from weft.objects.errors import Forbidden, WeftError
from weft.objects.identity import SERVER_NAME, ServerIdentity, new_uid, object_key
from weft.protocol.invocations import Printed
from weft.protocol.server.presence import LEASE_PREFIX, Presence, encode_presence
from weft.serving.answer import Answer
from weft.serving.server import make_server_tls
from weft.store.memory import MemoryStore
from weft.trust.ca import Authority
from weft.trust.tickets import sign_gateway_ticket


class Fabric:
    """``first`` is asked by clients; ``second`` by the first. ``says``: what the second answers instead of the truth."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.says = folder, SystemClock(), b""
        self.store = MemoryStore(self.clock)
        self.authority = Authority(folder, self.clock)
        self.tls = make_server_tls(*self.authority.renew_server([]))

    async def begin(self, stack: AsyncExitStack) -> None:
        self.labs: list[FunctionsLab] = []
        self.agents: list[PretendAgent] = []
        for name in ("s1", "s2"):
            made = SERVER.make(name, ServerSpec(), 1.0)
            await self.store.open()
            await self.store.commit([Put(made.key, encode_envelope(made))])
            own, folder = ServerIdentity(name, new_uid()), self.folder / name
            folder.mkdir()
            others = OtherGateways(self.store, own, KEY, self._make_context, self.clock)
            stack.callback(others.close)
            lab = await stack.enter_async_context(functions_lab(folder, self.store, others))
            self.labs.append(lab)
            if not self.agents:
                await lab.base()
            self.agents.append(await lab.agent(f"n-{name}"))
            http = serve(self._answer(lab), self.tls, self.clock)
            stack.push_async_callback(http.close)
            presence = Presence(own.uid, functions=f"127.0.0.1:{http.ports[0]}")
            await self.store.grant(LEASE_PREFIX + name, name, 600, encode_presence(presence))
        self.function = await self.labs[0].function("hello")
        self.digest = (await self.labs[0].status("hello")).digest

    def _make_context(self, url: str, _: ServerIdentity) -> Context:
        return Context(server=url, ca=self.authority.ca, server_name=SERVER_NAME)

    def _answer(self, lab: FunctionsLab) -> Any:
        async def answer(request: LambdaRequest) -> Answer:
            assert lab.parts.gateways is not None
            given = await lab.parts.gateways.answer(request)
            return Answer(200, self.says, ()) if self.says else given

        return answer

    async def print(self, number: int, text: str) -> None:
        """At the gateway of this number."""
        lab = self.labs[number]
        before = len(lab.functions.printed.read(self.function.uid))
        self.agents[number].say(Printed(self.digest, "i", f"{text}\n".encode(), "id"))
        await lab.until(lambda: len(lab.functions.printed.read(self.function.uid)) > before)

    async def read(self, verb: str, **given: Any) -> tuple[bytes, bytes]:
        client = await self.labs[0].gateway_lab.connect(ticket(self.labs[0], self.function, verb, **given))
        out, err, end = await client.rest()
        client.close()
        assert end is not None and end.json() == {"code": 0}
        return out, err


@pytest.fixture
async def fabric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fabric]:
    monkeypatch.setattr(all_gateways, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(other_servers, "REST_SECONDS", 0.0)
    async with AsyncExitStack() as stack:
        fabric = Fabric(tmp_path)
        await fabric.begin(stack)
        yield fabric


def words(out: bytes) -> list[str]:
    return [line.split()[2].decode() for line in out.splitlines()]


async def test_the_lines_of_both_are_merged_by_time_and_followed(fabric: Fabric) -> None:
    for number, text in ((0, "a"), (1, "b"), (0, "c"), (1, "d")):
        await fabric.print(number, text)
    assert [words((await fabric.read("logs", **given))[0]) for given in ({}, {"tail": 3}, {"since": 100.0})] == [
        ["a", "b", "c", "d"],
        ["b", "c", "d"],
        ["a", "b", "c", "d"],
    ]
    out, err = await fabric.read("logs", aggregate=True, filter="b", tail=5)
    assert [one["message"] for one in map(msgspec.json.decode, out.splitlines())] == ["id b"] and err == b""
    client = await fabric.labs[0].gateway_lab.connect(
        ticket(fabric.labs[0], fabric.function, "logs", follow=True, tail=1)
    )
    assert (frame := await client.receive()) is not None and words(frame.payload) == ["d"]
    for number, text in ((1, "e"), (0, "f"), (1, "g")):
        await fabric.print(number, text)
        assert (frame := await client.receive()) is not None and words(frame.payload) == [text]
    client.close()


async def test_the_counts_of_both_are_added_up(fabric: Fabric) -> None:
    for number, seconds in ((0, 0.1), (1, 0.2), (1, 0.3)):
        functions = fabric.labs[number].functions
        await fabric.labs[number].until(lambda functions=functions: functions.catalogue.functions("default") != [])  # type: ignore[misc]
        function = functions.catalogue.find("default", "hello")
        functions.record.arrived(function, functions.catalogue.resolve(function, ""))
        outcome = InvocationOutcome(new_uid(), b"{}", version="", node="n", start="warm", seconds=seconds)
        functions.record.ended(function, outcome, fabric.digest, seconds)
    told = msgspec.json.decode((await fabric.read("metrics"))[0])
    assert (told["invocations"], sum(told["starts"].values()), told["most_concurrent"], told["away"]) == (3, 3, 1, [])
    assert (told["duration"]["mean"], told["duration"]["most"]) == (200.0, 300.0)


@pytest.mark.parametrize(
    "says",
    [
        b"garbage",
        b"\x91" * 100_000,
        msgspec.msgpack.encode({"counts": "many"}),
        msgspec.msgpack.encode([1, 2]),
        b" " * (other_servers.MOST_BYTES + 1),
        None,
    ],
    ids=["garbage", "deep", "shape", "numbers", "huge", "gone"],
)
async def test_a_server_that_is_away_or_answers_what_it_may_not_is_named(fabric: Fabric, says: bytes | None) -> None:
    await fabric.print(0, "here")
    await fabric.print(1, "there")
    if says is None:
        await fabric.store.release(LEASE_PREFIX + "s2", "s2")
    fabric.says = says or b""
    out, err = await fabric.read("logs")
    assert words(out) == ["here"]
    assert err == b"warning: server s2 is away: what lies only there is missing\n"
    assert msgspec.json.decode((await fabric.read("metrics"))[0])["away"] == ["s2"]
    said: list[str] = []
    session: Any = type("Session", (), {"notify": lambda _, text: said.append(text)})()
    reader = Reader(session, fabric.function.ref, {"follow": False}, alone=True)  # type: ignore[arg-type]
    reader._take(2, err)
    assert said == [err.decode().rstrip()] and reader.lines.empty()


async def test_lines_that_are_none_are_left_out(fabric: Fabric) -> None:
    await fabric.print(0, "here")
    line = b"2999-01-01T00:00:00.000Z id there\n"
    fabric.says = msgspec.msgpack.encode([line[:-1], line + line, b"", line, b"x" * 100_000 + b"\n"])
    assert words((await fabric.read("logs"))[0]) == ["here", "there"]


async def test_only_gateways_ask_and_only_for_functions(fabric: Fabric) -> None:
    first, second = fabric.labs
    assert first.others is not None and second.parts.gateways is not None
    for path, body in ((METRICS, "../../ca.key"), (LINES, LinesQuery("../logs")), (LINES, 5), (METRICS, None)):
        found, away = await first.others.ask_all(path, lambda _, body=body: body, Any)  # type: ignore[misc]
        assert (found, away) == ({}, ["s2"])
    request = LambdaRequest("POST", METRICS, "", {}, msgspec.msgpack.encode(fabric.function.uid), "127.0.0.1")
    with pytest.raises(WeftError, match="ticket"):
        await second.parts.gateways.answer(request)


async def test_a_gateway_of_a_server_that_was_removed_is_not_answered(fabric: Fabric) -> None:
    own, other = (lab.others for lab in fabric.labs)
    assert own is not None and other is not None
    shown = sign_gateway_ticket(KEY, other.name, own.name, fabric.clock.now())
    assert await own.identify(shown) == other.name  # it wasn't known here: the store was asked
    await fabric.store.commit([Delete(object_key(SERVER.name, None, "s2"))])
    await fabric.store.release(LEASE_PREFIX + "s2", "s2")
    await own.refresh()
    with pytest.raises(Forbidden, match="was removed"):
        await own.identify(shown)
