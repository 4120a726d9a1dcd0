"""A project's quota on invocations at once, at the gateway's real API servers: how many run, what is refused, and bad days."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from tests.scenario.function_api_lab import ApiLab, api_lab, do, read
from tests.scenario.functions_lab import FunctionsLab

from weft.contracts.store import Delete
from weft.kinds.quota import QuotaSpec, QuotaStatus, quota_key
from weft.objects.envelope import Envelope, merge_part
from weft.objects.errors import Throttled
from weft.objects.identity import new_uid
from weft.protocol.invocations import InvocationAnswer


@pytest.fixture(scope="module")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()  # the gateway's own


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[ApiLab]:
    """With a node that ends nothing by itself, and the functions one and two."""
    async with api_lab(tmp_path) as api:
        agent = await api.lab.agent("n1")
        agent.says = lambda agent, invoke: None
        for name in ("one", "two"):
            await api.lab.function(name, http="open")
        yield api


async def limit(lab: FunctionsLab, most: int | None, project: str = "default") -> None:
    """Set the quota's field, or delete the quota, and wait until the gateway has read that."""
    key = quota_key(project)
    if most is None:
        await lab.store.commit([Delete(key)])
    else:
        envelope = Envelope(kind="quota", name="project", uid=new_uid(), project=project)
        envelope.spec = merge_part(envelope.spec, QuotaSpec(function_concurrency=most))
        envelope.status = merge_part(envelope.status, QuotaStatus())
        await lab.put(envelope)

    def has_read() -> bool:
        item = lab.functions.cache.view.get(key)
        return (None if item is None else item.spec(QuotaSpec).function_concurrency) == most

    await lab.until(has_read)


async def refuse(lab: FunctionsLab, name: str) -> Throttled:
    with pytest.raises(Throttled) as caught:
        await lab.invoke(name)
    assert caught.value.token == "quotaExceeded"
    return caught.value


async def test_all_functions_of_a_project_share_what_runs_at_once(api: ApiLab) -> None:
    lab, agent = api.lab, api.lab.agents["n1"]
    await limit(lab, 3)
    calls = [asyncio.ensure_future(lab.invoke(name)) for name in ("one", "two", "one", "two", "one")]
    await lab.until(lambda: len(agent.invoked) == 3)
    done = [call for call in calls if call.done()]
    assert [str(type(call.exception()).__name__) for call in done] == ["Throttled"] * 2
    error = await refuse(lab, "two")
    assert error.message == "project default: function_concurrency: 3 of 3 used, 1 more requested"
    assert error.details == {
        part: {"function_concurrency": number} for part, number in (("used", 3), ("requested", 1), ("limit", 3))
    }
    assert error.retry_after_seconds == 1.0 and "weft quota show -p default" in (error.hint or "")
    agent.say(InvocationAnswer(agent.invoked[0].id, b"1"))
    await lab.until(lambda: sum(call.done() for call in calls) == 3)
    calls.append(asyncio.ensure_future(lab.invoke("two")))
    await lab.until(lambda: len(agent.invoked) == 4)
    await refuse(lab, "one")
    for call in calls:
        call.cancel()  # a caller that goes away frees nothing: its invocation still runs
    await refuse(lab, "one")
    counts = lab.read_metrics("one")
    assert counts.throttles >= 3


async def test_a_limit_below_what_runs_ends_nothing_and_counts_at_once(api: ApiLab) -> None:
    lab, agent = api.lab, api.lab.agents["n1"]
    calls = [asyncio.ensure_future(lab.invoke("one")) for _ in range(3)]
    await lab.until(lambda: len(agent.invoked) == 3)
    await limit(lab, 1)
    assert (await refuse(lab, "two")).details["used"] == {"function_concurrency": 3}
    await limit(lab, 1, project="other")
    for invoke in agent.invoked:
        agent.say(InvocationAnswer(invoke.id, b"7"))
    assert [(await call).payload for call in calls] == [b"7"] * 3
    await limit(lab, 0)
    await refuse(lab, "one")
    await limit(lab, None)
    agent.says = lambda agent, invoke: InvocationAnswer(invoke.id, b"8")
    assert (await lab.invoke("one")).payload == b"8"


async def test_the_next_gateway_counts_what_the_killed_one_began(api: ApiLab) -> None:
    lab, agent = api.lab, api.lab.agents["n1"]
    await limit(lab, 1)
    lost = asyncio.ensure_future(lab.invoke("one"))
    await lab.until(lambda: len(agent.invoked) == 1)
    await api.restart()
    await agent.stop()
    await agent.start()
    await lab.until(lambda: lab.serves(agent))
    await refuse(lab, "two")
    agent.say(InvocationAnswer(agent.invoked[0].id, b"1"))
    agent.says = lambda agent, invoke: InvocationAnswer(invoke.id, b"2")
    await lab.until(lambda: lab.functions.dispatcher.running(lab.functions.catalogue.find("default", "one").uid) == 0)
    assert (await lab.invoke("two")).payload == b"2"
    lost.cancel()


async def test_callers_are_told_as_lambda_tells_them_and_events_wait(api: ApiLab) -> None:
    lab, agent = api.lab, api.lab.agents["n1"]
    await limit(lab, 1)
    client = api.boto(await api.key(), retries={"total_max_attempts": 1, "mode": "standard"})
    under_way = asyncio.ensure_future(do(lambda: client.invoke(FunctionName="one", Payload=b"1")))
    await lab.until(lambda: len(agent.invoked) == 1)
    with pytest.raises(client.exceptions.TooManyRequestsException) as raised:
        await do(lambda: client.invoke(FunctionName="two"))
    told: dict[str, Any] = raised.value.response
    assert told["ResponseMetadata"]["HTTPStatusCode"] == 429
    assert told["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "1"
    assert "function_concurrency: 1 of 1 used" in told["Error"]["Message"]
    status, headers, _ = await api.ask("GET", "/url/default/two/")
    assert (status, headers["retry-after"]) == (429, "1")
    accepted = await do(lambda: client.invoke(FunctionName="two", InvocationType="Event", Payload=b'"later"'))
    assert accepted["StatusCode"] == 202
    agent.says = lambda agent, invoke: InvocationAnswer(invoke.id, invoke.payload)
    agent.say(InvocationAnswer(agent.invoked[0].id, b"2"))
    assert read(await under_way) == 2
    await lab.until(lambda: agent.invoked[-1].payload == b'"later"')
