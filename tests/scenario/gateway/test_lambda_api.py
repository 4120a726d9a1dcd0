"""boto3 against the function gateways: what it asks is served as Lambda would, and refused as Lambda would."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import uvloop
from botocore.exceptions import BotoCoreError, ClientError
from tests.scenario.controllers_lab import VirtualClock
from tests.scenario.function_api_lab import ApiLab, api_lab, do, read

from weft.gateway.function import dispatcher
from weft.gateway.function.invocation import late_results
from weft.protocol.invocations import InvocationAnswer, InvocationRefused, Invoke
from weft.serving import server
from weft.trust.access_keys import place_of_access_key
from weft.trust.seal import make_seal_key, open_seal_keys


@pytest.fixture(scope="module")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()  # the gateway's own


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[ApiLab]:
    async with api_lab(tmp_path) as lab:
        yield lab


async def make(api: ApiLab, **spec: Any) -> Any:
    """An agent, a function thumb, and a client with a key of its own."""
    await api.lab.agent("n1")
    await api.lab.function("thumb", **spec)
    return api.boto(await api.key())


def refusal(raised: pytest.ExceptionInfo[ClientError]) -> tuple[int, str, str]:
    told = raised.value.response
    return told["ResponseMetadata"]["HTTPStatusCode"], told["Error"]["Code"], told["Error"]["Message"]


async def test_boto3_invokes_and_gets_the_answer_with_what_belongs_to_it(api: ApiLab) -> None:
    client = await make(api)
    agent = api.lab.agents["n1"]
    agent.says = lambda agent, invoke: InvocationAnswer(invoke.id, invoke.payload, tail=b"x" * 5000 + b"\nlast line\n")
    context = base64.b64encode('{"custom": {"a": "b", "name": "Zoë"}}\n'.encode()).decode()
    told = await do(
        lambda: client.invoke(
            FunctionName="thumb", Payload=b'{"n": 1}', LogType="Tail", ClientContext=context, Qualifier="$LATEST"
        )
    )
    assert (told["StatusCode"], read(told), told["ExecutedVersion"]) == (200, {"n": 1}, "$LATEST")
    assert base64.b64decode(told["LogResult"]).endswith(b"x\nlast line\n") and len(told["LogResult"]) < 5500
    asked = agent.invoked[0]
    assert asked.id == told["ResponseMetadata"]["RequestId"] and asked.tail
    assert asked.client_context == '{"custom":{"a":"b","name":"Zo\\u00eb"}}'
    assert "FunctionError" not in told
    longest = b'{"a":"' + b"x" * (2687 - 8) + b'"}'
    await do(lambda: client.invoke(FunctionName="thumb", ClientContext=base64.b64encode(longest).decode()))
    assert agent.invoked[1].client_context == longest.decode()
    assert read(await do(lambda: client.invoke(FunctionName="thumb"))) == {}


@pytest.mark.parametrize(
    "name",
    [
        "thumb",
        "arn:weft:lambda:weft:default:function:thumb",
        "arn:aws:lambda:weft:default:function:thumb:$LATEST",
        "default:function:thumb",
        "thumb:$LATEST",
    ],
)
async def test_a_function_goes_by_all_its_names(api: ApiLab, name: str) -> None:
    client = await make(api)
    assert read(await do(lambda: client.invoke(FunctionName=name, Payload=b"7"))) == 7


@pytest.mark.parametrize("error", ["Handled", "Unhandled"])
async def test_a_functions_own_error_is_told_as_lambda_tells_it(api: ApiLab, error: Any) -> None:
    client = await make(api)
    said = b'{"errorMessage":"no","errorType":"ValueError"}'
    api.lab.agents["n1"].says = lambda agent, invoke: InvocationAnswer(
        invoke.id, said, error=error, error_type="ValueError"
    )
    told = await do(lambda: client.invoke(FunctionName="thumb"))
    assert (told["StatusCode"], told["FunctionError"], read(told)["errorType"]) == (200, error, "ValueError")


async def test_what_can_not_run_is_refused_by_lambdas_types(api: ApiLab) -> None:
    client = await make(api, max_concurrent=1)
    agent = api.lab.agents["n1"]
    with pytest.raises(client.exceptions.ResourceNotFoundException) as raised:
        await do(lambda: client.invoke(FunctionName="nobody"))
    assert refusal(raised)[0] == 404
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        await do(lambda: client.invoke(FunctionName="thumb", Qualifier="7"))
    for bad in (b"{", b"\xff", b"{} {}"):
        with pytest.raises(client.exceptions.InvalidRequestContentException):
            await do(lambda bad=bad: client.invoke(FunctionName="thumb", Payload=bad))
    longest = b'{"a":"' + b"x" * (2687 - 8) + b'"}'
    for bad in (
        b"",
        b"{",
        b"[]",
        b'"a"',
        b'{"a":"\xff"}',
        b" " + longest,
        b'{"a":' * 400 + b"1" + b"}" * 400 + b"x",
        b"[" * 2600,
    ):
        context = base64.b64encode(bad).decode() or "!!"
        with pytest.raises(client.exceptions.InvalidRequestContentException):
            await do(lambda context=context: client.invoke(FunctionName="thumb", ClientContext=context))
    with pytest.raises(ClientError) as raised:
        await do(lambda: client.invoke(FunctionName="thumb", Payload=b'"' + b"x" * 6 * 2**20 + b'"'))
    assert refusal(raised)[0] == 413
    with pytest.raises(ClientError) as raised:
        await do(lambda: client.create_function(FunctionName="a", Role="r", Code={"ZipFile": b"x"}))
    assert "weft function create" in refusal(raised)[2]
    agent.says = lambda agent, invoke: InvocationRefused(invoke.id, "insufficientResources", "no memory")
    with pytest.raises(ClientError) as raised:
        await do(lambda: client.invoke(FunctionName="thumb"))
    assert refusal(raised)[:2] == (503, "ServiceUnavailableException") and "no memory" in refusal(raised)[2]
    agent.says = lambda agent, invoke: None
    under_way = asyncio.ensure_future(do(lambda: client.invoke(FunctionName="thumb", Payload=b"1")))
    await api.lab.until(lambda: bool(agent.begun))
    with pytest.raises(client.exceptions.TooManyRequestsException) as raised:
        await do(lambda: client.invoke(FunctionName="thumb"))
    assert "1 of at most 1 invocations run" in refusal(raised)[2]
    agent.say(InvocationAnswer(next(iter(agent.begun)), b"2"))
    assert read(await under_way) == 2


async def test_what_was_lost_on_a_node_is_not_run_again_by_the_sdks_own_retries(api: ApiLab) -> None:
    await make(api)
    client = api.boto(await api.key("retrying"), retries={"max_attempts": 4, "mode": "standard"})
    agent = api.lab.agents["n1"]

    def lose(agent: Any, invoke: Invoke) -> None:
        agent.begun.clear()  # as an agent that was killed
        agent.lose()

    agent.says = lose
    with pytest.raises(ClientError) as raised:
        await do(lambda: client.invoke(FunctionName="thumb"))
    assert refusal(raised)[:2] == (502, "InvocationLostException")
    assert raised.value.response["ResponseMetadata"]["RetryAttempts"] >= 1 and len(agent.invoked) == 1


async def test_a_retry_after_the_sdk_gave_up_waiting_gets_the_first_ones_answer(api: ApiLab) -> None:
    await make(api)
    client = api.boto(await api.key("hasty"), read_timeout=1, retries={"max_attempts": 8, "mode": "standard"})
    agent, sent = api.lab.agents["n1"], SimpleQueue[str]()
    client.meta.events.register("before-send.lambda.Invoke", lambda request, **_: sent.put(request.url))
    agent.says = lambda agent, invoke: None
    asked = asyncio.ensure_future(do(lambda: client.invoke(FunctionName="thumb", Payload=b"1")))
    await api.lab.until(lambda: bool(agent.begun) and sent.qsize() > 1)
    agent.say(InvocationAnswer(agent.invoked[0].id, b'"once"'))
    assert read(await asked) == "once" and len(agent.invoked) == 1


async def test_functions_are_looked_at_and_waited_for(api: ApiLab) -> None:
    client = await make(api, env={"A": "b"}, memory=512 * 2**20, timeout=3.0, description="small pictures")
    await api.lab.function("other")
    whole = await do(lambda: client.get_function(FunctionName="thumb"))
    told = whole["Configuration"]
    assert (told["FunctionName"], told["State"], told["LastUpdateStatus"]) == ("thumb", "Active", "Successful")
    assert (told["MemorySize"], told["Timeout"], told["Runtime"], told["Handler"]) == (
        512,
        3,
        "python3.11",
        "app.handler",
    )
    assert told["FunctionArn"] == "arn:weft:lambda:weft:default:function:thumb" and told["Environment"][
        "Variables"
    ] == {"A": "b"}
    assert whole["Concurrency"]["ReservedConcurrentExecutions"] == 50
    assert (await do(lambda: client.get_function_configuration(FunctionName="thumb")))[
        "Description"
    ] == "small pictures"
    pages = await do(lambda: list(client.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 1})))
    names = [found["FunctionName"] for page in pages for found in page["Functions"]]
    assert names == ["other", "thumb"]
    for waiter in (
        "function_exists",
        "function_active",
        "function_active_v2",
        "function_updated",
        "function_updated_v2",
    ):
        await do(lambda waiter=waiter: client.get_waiter(waiter).wait(FunctionName="thumb"))
    versions = await do(lambda: client.list_versions_by_function(FunctionName="thumb"))
    assert [v["Version"] for v in versions["Versions"]] == ["$LATEST"]
    assert (await do(lambda: client.list_aliases(FunctionName="thumb")))["Aliases"] == []
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        await do(lambda: client.get_function(FunctionName="nobody"))
    assert (await do(lambda: client.invoke(FunctionName="thumb", InvocationType="DryRun")))["StatusCode"] == 204
    assert api.lab.agents["n1"].invoked == []


async def test_an_event_is_accepted_and_run(api: ApiLab) -> None:
    client = await make(api)
    told = await do(lambda: client.invoke(FunctionName="thumb", InvocationType="Event", Payload=b'{"n":1}'))
    assert told["StatusCode"] == 202 and told["Payload"].read() == b""
    agent = api.lab.agents["n1"]
    await api.lab.until(lambda: len(agent.heard) == 1)
    assert agent.invoked[0].payload == b'{"n":1}' and agent.invoked[0].id == told["ResponseMetadata"]["RequestId"]
    with pytest.raises(ClientError) as raised:
        big = b'"' + b"x" * 256 * 1024 + b'"'
        await do(lambda: client.invoke(FunctionName="thumb", InvocationType="Event", Payload=big))
    assert refusal(raised)[0] == 413


async def test_who_may_not_is_refused_and_nothing_runs(api: ApiLab) -> None:
    await make(api)
    key_id, secret = await api.key("good")
    lab, agent = api.lab, api.lab.agents["n1"]

    async def refused(client: Any, name: str = "thumb") -> tuple[int, str, str]:
        with pytest.raises(ClientError) as raised:
            await do(lambda: client.invoke(FunctionName=name))
        return refusal(raised)

    assert (await refused(api.boto((key_id, secret + "x"))))[:2] == (403, "InvalidSignatureException")
    assert (await refused(api.boto(("WEFT" + "A" * 16, secret))))[:2] == (403, "UnrecognizedClientException")
    status, code, said = await refused(api.boto((key_id, secret), region="eu-central-1"))
    assert (status, code) == (403, "InvalidSignatureException") and "this is 'weft'" in said
    other = api.boto(await api.key("other", project="lab"))
    assert (await refused(other))[:2] == (404, "ResourceNotFoundException")  # lab has no such function
    arn = "arn:weft:lambda:weft:default:function:thumb"
    assert (await refused(other, arn))[:2] == (403, "AccessDeniedException")
    viewer = api.boto(await api.key("viewer", role="viewer"))
    assert (await refused(viewer))[:2] == (403, "AccessDeniedException")
    assert (await do(lambda: viewer.get_function(FunctionName="thumb")))["Configuration"]["State"] == "Active"
    late = api.boto(await api.key("late", expires_at=lab.clock.now() - 1))
    assert (await refused(late))[2].startswith("token late has expired")
    gone = api.boto(await api.key("gone"))
    assert read(await do(lambda: gone.invoke(FunctionName="thumb"))) == {}
    await api.drop_token("gone")
    assert (await refused(gone))[1] == "UnrecognizedClientException"
    assert len(agent.invoked) == 1


async def test_a_bearer_token_will_do_as_well(api: ApiLab) -> None:
    await make(api)
    path = "/2015-03-31/functions/thumb/invocations"
    invoker, viewer = await api.token("eve"), await api.token("vic", role="viewer")
    status, headers, body = await api.ask("POST", path, b'{"n":2}', Authorization=f"Bearer {invoker}")
    assert (status, json.loads(body), headers["x-amz-executed-version"]) == (200, {"n": 2}, "$LATEST")
    for bad, code in (
        (f"Bearer {viewer}", "AccessDeniedException"),
        (f"Bearer {invoker}x", "MissingAuthenticationTokenException"),
        (f"Bearer weft_none_{'0' * 64}", "MissingAuthenticationTokenException"),
        (f"Basic {invoker}", "MissingAuthenticationTokenException"),
        ("AWS4-HMAC-SHA256 nonsense", "IncompleteSignatureException"),
    ):
        status, headers, _ = await api.ask("POST", path, b"{}", Authorization=bad)
        assert headers["x-amzn-errortype"] == code and status in (400, 403), bad
    status, headers, _ = await api.ask("POST", path, b"{}")
    assert (status, headers["x-amzn-errortype"]) == (403, "MissingAuthenticationTokenException")
    assert len(api.lab.agents["n1"].invoked) == 1


async def lose_the_gateway(api: ApiLab, *back: str) -> VirtualClock:
    """The next one knows nothing of this one; the agents of the nodes ``back`` find it. Its time stands still until it is moved."""
    for agent in api.lab.agents.values():
        await agent.stop()
    clock = api.lab.their_clock = VirtualClock()
    await api.restart()
    for name in back:
        await start(api, name)
    return clock


async def start(api: ApiLab, name: str) -> None:
    agent = api.lab.agents[name]
    await agent.start()
    await api.lab.until(lambda: api.lab.serves(agent))


async def ended(clock: VirtualClock, asked: asyncio.Future[Any]) -> Any:
    """What ``asked`` comes to while time goes on, a step for each look."""
    async with asyncio.timeout(60):
        while not asked.done():
            clock.advance(late_results.STEP_SECONDS)
            await asyncio.sleep(0.01)
    return await asked


async def until_one_waits(api: ApiLab, clock: VirtualClock) -> None:
    """A call has come to a gateway whose time stands still, and waits for nodes: nobody else looks as often for anything."""
    await api.lab.until(lambda: clock.next_in() <= late_results.STEP_SECONDS)


@pytest.mark.parametrize("answered", ["before", "after"])
async def test_what_a_killed_gateway_began_is_not_run_again_by_the_sdks_retries(
    api: ApiLab, monkeypatch: pytest.MonkeyPatch, answered: str
) -> None:
    monkeypatch.setattr(server, "CLOSING_SECONDS", 0.1)
    await make(api)
    agent = api.lab.agents["n1"]
    agent.says = lambda agent, invoke: None
    client = api.boto(await api.key("patient"), retries={"max_attempts": 8, "mode": "standard"})
    asked = asyncio.ensure_future(do(lambda: client.invoke(FunctionName="thumb", Payload=b"1")))
    await api.lab.until(lambda: bool(agent.begun))
    id = agent.invoked[0].id
    if answered == "before":  # while there is no gateway to hear it
        agent.answers[id] = InvocationAnswer(id, b'"once"')
    clock = await lose_the_gateway(api)
    await until_one_waits(api, clock)
    await start(api, "n1")
    clock.advance(late_results.STEP_SECONDS)  # its node is back
    if answered == "after":
        await until_one_waits(api, clock)
        agent.say(InvocationAnswer(id, b'"once"'))
    told = await ended(clock, asked)
    assert read(told) == "once" and told["ResponseMetadata"]["RequestId"] == id and len(agent.invoked) == 1
    agent.says = lambda agent, invoke: InvocationAnswer(invoke.id, b'"anew"')
    again = asyncio.ensure_future(do(lambda: client.invoke(FunctionName="thumb", Payload=b"1")))
    assert read(await ended(clock, again)) == "anew"


async def test_a_retry_is_not_run_elsewhere_while_the_node_that_may_have_it_is_not_back(
    api: ApiLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CLOSING_SECONDS", 0.1)
    await make(api)
    first, second = api.lab.agents["n1"], await api.lab.agent("n2")
    for agent in (first, second):
        agent.says = lambda agent, invoke: None
    client = api.boto(await api.key("patient"), retries={"max_attempts": 5, "mode": "standard"})
    asked = asyncio.ensure_future(do(lambda: client.invoke(FunctionName="thumb", Payload=b"1")))
    await api.lab.until(lambda: bool(first.begun or second.begun))
    there, other = ("n1", "n2") if first.begun else ("n2", "n1")
    clock = await lose_the_gateway(api, other)
    await until_one_waits(api, clock)
    clock.advance(late_results.GATHER_SECONDS)
    with pytest.raises(ClientError) as raised:
        await asked
    assert refusal(raised)[:2] == (502, "InvocationLostException") and f"{there} isn't back" in refusal(raised)[2]
    assert len(first.invoked) + len(second.invoked) == 1


async def test_the_next_gateway_runs_no_more_at_once_though_one_node_is_heard_late(
    api: ApiLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CLOSING_SECONDS", 0.1)
    await make(api, max_concurrent=1)
    first, second = api.lab.agents["n1"], await api.lab.agent("n2")
    for agent in (first, second):
        agent.says = lambda agent, invoke: None
    client = api.boto(await api.key("once"), retries={"total_max_attempts": 1, "mode": "standard"})
    lost = asyncio.ensure_future(do(lambda: client.invoke(FunctionName="thumb", Payload=b"1")))
    await api.lab.until(lambda: bool(first.begun or second.begun))
    there, other = ("n1", "n2") if first.begun else ("n2", "n1")
    clock = await lose_the_gateway(api, other)
    with pytest.raises((ClientError, BotoCoreError)):
        await lost
    asked = asyncio.ensure_future(do(lambda: client.invoke(FunctionName="thumb", Payload=b"2")))
    await until_one_waits(api, clock)
    clock.advance(dispatcher.ALL_SECONDS - 1)
    await until_one_waits(api, clock)
    await start(api, there)
    with pytest.raises(ClientError) as raised:
        await ended(clock, asked)
    assert refusal(raised)[:2] == (429, "TooManyRequestsException")
    assert len(first.invoked) + len(second.invoked) == 1


async def test_an_event_is_accepted_once_whichever_gateway_its_attempts_come_to(api: ApiLab) -> None:
    await make(api)
    api.lab.agents["n1"].says = lambda agent, invoke: None
    token = await api.token("again")
    path = "/2015-03-31/functions/thumb/invocations"
    sent = {"Authorization": f"Bearer {token}", "X-Amz-Invocation-Type": "Event", "amz-sdk-invocation-id": "i"}
    ids = []
    for attempt in (1, 2):
        status, headers, _ = await api.ask(
            "POST", path, b"1", **sent, **{"amz-sdk-request": f"attempt={attempt}; max=3"}
        )
        assert status == 202
        ids.append(headers["x-amzn-requestid"])
        if attempt == 1:
            await api.restart()
    assert ids[0] == ids[1]


async def test_an_access_key_signs_through_a_rotation_of_the_sealing_key_and_after_it(api: ApiLab) -> None:
    """One of an earlier release, whose secret isn't stored, and one whose is: the gateway follows the file of the API server."""
    keys = open_seal_keys(api.folder)
    (former,), new = keys.keys, make_seal_key()
    await make(api)
    of_before = await api.key("of-before")
    client = api.boto(of_before)
    for step in ([former], [former, new], [new, former]):
        keys.keep(step)
        assert read(await do(lambda: client.invoke(FunctionName="thumb", Payload=b"1"))) == 1
    sealed = keys.seal(of_before[1].encode(), place_of_access_key(of_before[0]))
    await api.drop_token("of-before")
    await api.key("of-before", key_id=of_before[0], sealed=sealed)
    keys.keep([new])
    assert read(await do(lambda: client.invoke(FunctionName="thumb", Payload=b"2"))) == 2
    other = api.boto((of_before[0], of_before[1][::-1]))
    with pytest.raises(ClientError) as raised:
        await do(lambda: other.invoke(FunctionName="thumb"))
    assert refusal(raised)[:2] == (403, "InvalidSignatureException")
