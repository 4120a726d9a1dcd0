"""The verbs of a function that a ticket opens a stream for: invoke, logs, metrics; and what is refused there."""

from __future__ import annotations

import asyncio
import base64
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from tests.scenario.functions_lab import MIB, FunctionsLab, functions_lab
from tests.scenario.gateway_lab import KEY, Client

from weft.cli.verbs.function import describe_metrics
from weft.client.context import Context
from weft.client.http import Http
from weft.edge.server.handover import send_messages
from weft.gateway.function.invocation.call import Call
from weft.gateway.function.record.output_log import stamp
from weft.objects.envelope import Envelope
from weft.objects.errors import InvalidInput, Unavailable
from weft.protocol.devices import MOST_MESSAGE_BYTES, MOST_MESSAGES, DeviceMessage
from weft.protocol.frames import Frame, FrameType
from weft.protocol.invocations import Count, InvocationAnswer, Printed
from weft.trust.tickets import sign_ticket


def ticket(lab: FunctionsLab, function: Envelope, verb: str, node: str = "", **given: Any) -> str:
    """``node``: the uid of one whose devices' messages come."""
    workload = {"kind": "function", "project": "default", "name": function.name, "uid": function.uid}
    claims = {
        "node_uid": "",
        "allocation": "",
        "guest_id": "",
        "verb": verb,
        "input": given,
        "workload": workload,
        "expires": lab.clock.now() + 60,
        "subject": "ann",
        "nonce": uuid.uuid4().hex,
        **({"device_node": node} if node else {}),
    }
    return sign_ticket(KEY, claims)


async def call(lab: FunctionsLab, function: Envelope, payload: bytes = b"", **given: Any) -> tuple[bytes, Frame]:
    client = await lab.gateway_lab.connect(ticket(lab, function, "invoke", **given))
    if payload:
        await client.send(FrameType.DATA_IN, payload)
    await client.send(FrameType.END_IN)
    return await ending(client)


async def ending(client: Client) -> tuple[bytes, Frame]:
    out, _, end = await client.rest()
    client.close()
    assert end is not None
    return out, end


async def test_invoke_gives_the_answer_and_how_it_was(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agent = await lab.agent("n1")
        hello = await lab.function("hello")
        large = b'"' + b"x" * (6 * MIB - 2) + b'"'
        out, end = await call(lab, hello, large)
        assert out == large and end.type == FrameType.EXIT
        told = end.json()
        assert (told["code"], told["version"], told["node"], told["start"]) == (0, "$LATEST", "n1", "warm")
        assert told["requestId"] == agent.invoked[-1].id
        out, end = await call(lab, hello)
        assert out == b"{}" and agent.invoked[-1].payload == b"{}"  # nothing given is an empty event
        agent.says = lambda agent, invoke: InvocationAnswer(
            invoke.id, b'{"errorType":"ValueError"}', "Unhandled", "ValueError", tail=b"last words\n"
        )
        out, end = await call(lab, hello, b"1", tail=True, timeout=2.0)
        assert agent.invoked[-1].seconds == 2.0
        told = end.json()
        assert out == b'{"errorType":"ValueError"}' and (told["code"], told["errorType"]) == (1, "ValueError")
        assert base64.b64decode(told["tail"]) == b"last words\n"


async def test_what_is_refused_comes_as_an_error(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        await lab.agent("n1")
        hello = await lab.function("hello", max_concurrent=0)
        assert (await call(lab, hello))[1].error().token == "tooManyRequests"
        assert (await call(lab, hello, qualifier="9"))[1].error().token == "functionNotFound"
        assert (await call(lab, hello, qualifier="9", later=True))[1].error().token == "functionNotFound"
        assert (await call(lab, hello, b"x" * (6 * MIB + 1)))[1].error().token == "tooLarge"
        assert (await call(lab, hello, later=True))[1].error().token == "unavailable"  # the file of events isn't open
        assert (await call(lab, hello, timeout=-1))[1].error().token == "invalidInput"
        client = await lab.gateway_lab.connect(ticket(lab, hello, "exec"))
        assert (await ending(client))[1].error().token == "notServed"


async def test_messages_of_devices_are_queued_under_their_own_ids_for_the_node_s_function(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        await lab.agent("n1")
        hello = await lab.function("hello")
        heard: list[Call] = []

        class Events:
            async def accept(self, call: Call) -> None:
                heard.append(call)

        lab.parts.streams._events = Events()
        context = Context(server="https://a:1", ca=lab.gateway_lab.authority.ca, others=["https://b:1"])
        client: Any = SimpleNamespace(context=context, http=Http(context))

        def send(messages: list[DeviceMessage], node: str = "uid-n1") -> None:
            shown = {"address": f"127.0.0.1:{lab.gateway_lab.port}", "ticket": ticket(lab, hello, "invoke", node=node)}
            send_messages(client, shown, messages)

        messages = [
            DeviceMessage(str(uuid.uuid4()), "weft/default/fridge/event", "default", "fridge", 5.0, {"alarm": n})
            for n in range(3)
        ]
        await asyncio.to_thread(send, messages)
        assert [(one.id, one.name, one.node) for one in heard] == [(one.id, "hello", "uid-n1") for one in messages]
        assert msgspec.json.decode(heard[1].payload, type=DeviceMessage) == messages[1]
        with pytest.raises(InvalidInput, match="not an id"):
            await asyncio.to_thread(send, [msgspec.structs.replace(messages[0], id="../1")])
        for wrong in ({"project": "plant"}, {"data": {"x": "y" * MOST_MESSAGE_BYTES}}):
            with pytest.raises(InvalidInput, match=r"larger than|another project"):
                await asyncio.to_thread(send, [messages[0], msgspec.structs.replace(messages[1], **wrong)])
        with pytest.raises(InvalidInput, match="messages"):
            await asyncio.to_thread(send, messages * MOST_MESSAGES)
        assert len(heard) == 3
        with pytest.raises(Unavailable, match=r"the functions' gateway at 127.0.0.1:1 can't be reached"):
            send_messages(client, {"address": "127.0.0.1:1", "ticket": "t"}, messages)
        assert client.http.endpoints.in_turn()[0].url == "https://b:1"  # the next ticket is that server's


async def test_logs_and_metrics(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agent = await lab.agent("n1")
        hello = await lab.function("hello")
        digest = (await lab.status("hello")).digest
        await call(lab, hello)
        agent.say(Printed(digest, "i1", b"first\nsecond\n", "id-1"))
        await lab.until(lambda: len(lab.functions.printed.read(hello.uid)) == 2)
        out, end = await ending(await lab.gateway_lab.connect(ticket(lab, hello, "logs", tail=1)))
        assert out.split()[1:] == [b"id-1", b"second"] and end.json() == {"code": 0}
        client = await lab.gateway_lab.connect(ticket(lab, hello, "logs", follow=True, since=100.0))
        assert (frame := await client.receive()) is not None and frame.payload.count(b"\n") == 2
        agent.say(Printed(digest, "i1", b"third\n"))
        assert (frame := await client.receive()) is not None and frame.payload.endswith(b" - third\n")
        client.close()
        await lab.until(lambda: not lab.functions.printed._followers)
        out, _ = await ending(await lab.gateway_lab.connect(ticket(lab, hello, "metrics")))
        told = msgspec.json.decode(out)
        assert (told["function"], told["invocations"], told["starts"]) == ("hello", 1, {"warm": 1})
        agent.stand(**{digest: Count(1, 2, 3), "ab" * 32: Count(7, 7, 7)})
        await lab.agent("n2")
        await lab.until(lambda: lab.functions.agents.fleet.nodes[agent.uid].ready(digest) == 3)
        out, _ = await ending(await lab.gateway_lab.connect(ticket(lab, hello, "metrics")))
        told = msgspec.json.decode(out)
        assert told["instances"] == [{"node": "n1", "busy": 1, "idle": 2, "ready": 3, "prepared": True}]
        lines = "\n".join(describe_metrics(told | {"starts": {"warm": 3, "clone": 1}}, lab.clock.now()))
        assert "3 warm, 1 clone (25 % waited for an instance to start)" in lines
        assert lines.splitlines()[-1].split() == ["n1", "1", "2", "3", "yes"]


async def test_what_is_printed_while_there_is_no_gateway_is_written_down_by_the_next_and_once(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agent = await lab.agent("n1")
        hello = await lab.function("hello")
        digest = (await lab.status("hello")).digest
        agent.say(Printed(digest, "i1", b"before\n", "id-1"))
        await lab.until(lambda: not agent.printed)
        await agent.stop()
        agent.say(Printed(digest, "i1", b"meanwhile\n", "id-1"))
        await lab.restart()
        agent.away_seconds = 60.0
        latest = stamp(lab.clock.now() - 59.0).encode()
        await agent.start()
        await lab.until(lambda: not agent.printed)
        before, meanwhile = lab.functions.printed.read(hello.uid)
        assert before.endswith(b" id-1 before\n") and meanwhile.endswith(b" id-1 meanwhile\n") and meanwhile < latest
        agent.say(Printed(digest, "i1", b"after\n", "id-1"))
        unsaid = dict(agent.printed)
        await lab.until(lambda: not agent.printed)
        agent.printed = unsaid  # as if the connection was lost just before that word
        agent.lose()
        await lab.until(lambda: not agent.printed)
        assert [line.split()[2] for line in lab.functions.printed.read(hello.uid)] == [
            b"before",
            b"meanwhile",
            b"after",
        ]


async def test_aliases_share_invocations_by_their_weights(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agent = await lab.agent("n1")
        hello = await lab.function("hello", aliases={"prod": {"1": 0.75, "2": 0.25}})
        for number in (1, 2):
            spec = {"code": f"c{number}" * 32, "handler": "app.handler", "isolation": "process"}
            await lab.version(hello, number, **spec)
        await lab.until(lambda: lab.functions.cache.view.get("/functionversion/default/hello-2") is not None)
        seen = [(await lab.invoke("hello", qualifier="prod")).version for _ in range(200)]
        assert set(seen) == {"1", "2"} and 120 < seen.count("1") < 180
        outcome = await lab.invoke("hello", qualifier="2")
        assert outcome.version == "2" and agent.invoked[-1].arn.endswith(":function:hello:2")
        recipe = agent.recipes[agent.invoked[-1].digest]
        assert recipe.version == "2" and recipe.code is not None and recipe.code.sha256 == "c2" * 32
