"""Invocations through a gateway over real TLS, to agents that only pretend: where they go, what is refused, and bad days."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.controllers_lab import VirtualClock
from tests.scenario.functions_lab import MIB, FunctionsLab, PretendAgent, answer, functions_lab
from tests.scenario.gateway_lab import KEY

from weft.contracts.store import Page
from weft.gateway.function.dispatcher import ALL_SECONDS, CHECK_SECONDS
from weft.gateway.function.instance import local_functions, snapshots
from weft.gateway.function.record.counts_file import CountsFile
from weft.kinds.function import FunctionStatus
from weft.objects.envelope import decode_envelope, merge_part
from weft.objects.errors import NotFound, Throttled, TooLarge, Unavailable, Unplaceable, WeftError
from weft.objects.identity import object_key
from weft.protocol.function_counts import LEASE_PREFIX, read_counts
from weft.protocol.invocations import (
    Count,
    InvocationAnswer,
    InvocationRefused,
    Invoke,
    Prepare,
    Prepared,
    ServeLocally,
)
from weft.store.memory import MemoryStore
from weft.trust.tickets import check_blob_ticket


class SlowToList(MemoryStore):
    """Lists when ``lists`` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.lists = asyncio.Event()
        self.lists.set()

    async def list(self, prefix: str, *, limit: int = 0, after: str | None = None) -> Page:
        await self.lists.wait()
        return await super().list(prefix, limit=limit, after=after)


async def begin_one(lab: FunctionsLab, **spec: Any) -> tuple[PretendAgent, asyncio.Future[Any]]:
    """A node with a call of the function ``hello`` that it has begun and doesn't end by itself."""
    await lab.base()
    agent = await lab.agent("n1")
    await lab.function("hello", **spec)
    agent.says = lambda agent, invoke: None
    call = asyncio.ensure_future(lab.invoke("hello"))
    await lab.until(lambda: len(agent.invoked) == 1)
    return agent, call


async def restart_without_n2(lab: FunctionsLab) -> VirtualClock:
    """A gateway that begins anew, by a clock of its own, when ``hello`` is there: of its two nodes it hears n1 alone."""
    await lab.base()
    here, away = await lab.agent("n1"), await lab.agent("n2")
    await lab.function("hello")
    await here.stop()
    await away.stop()
    clock = lab.their_clock = VirtualClock()
    await lab.restart()
    await here.start()
    await lab.until(lambda: lab.serves(here))
    return clock


async def test_a_function_is_prepared_once_and_then_invoked(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agent = await lab.agent("n1")
        await lab.function("hello")
        status = await lab.status("hello")
        assert (status.phase, status.reason, status.nodes, status.observed_generation) == ("Ready", "", ["n1"], 1)
        assert status.serving is not None and agent.prepared == [status.digest]
        outcome = await lab.invoke("hello", b'{"n":1}', tail=True, client_context="e30=")
        assert (outcome.payload, outcome.error, outcome.node, outcome.version) == (b'{"n":1}', "", "n1", "$LATEST")
        told = agent.invoked[0]
        assert (told.digest, told.seconds, told.tail, told.client_context) == (status.digest, 30.0, True, "e30=")
        assert told.arn == "arn:weft:lambda:weft:default:function:hello"
        recipe = agent.recipes[status.digest]
        assert recipe.base is not None and recipe.base.ticket and recipe.code is not None and recipe.code.ticket
        await lab.until(lambda: agent.heard == [outcome.id])


async def test_what_is_not_there_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.gateway.function.dispatcher.BEGIN_SECONDS", 0.5)  # no node is there
    async with functions_lab(tmp_path) as lab:
        with pytest.raises(NotFound) as refused:
            await lab.invoke("nothing")
        assert refused.value.token == "functionNotFound"
        await lab.function("early", wait=False)
        status = await lab.until_reason("early", "baseNotReady")
        assert status.phase == "Pending" and "weft image build python3-11" in status.message
        with pytest.raises(Unavailable) as unready:
            await lab.invoke("early")
        assert unready.value.token == "functionNotReady" and "python3-11" in unready.value.message
        await lab.base()  # no node yet
        await lab.agent("n1")
        await lab.until_phase("early", "Ready")
        with pytest.raises(NotFound, match='no alias "prod"'):
            await lab.invoke("early", qualifier="prod")
        with pytest.raises(NotFound, match="no version 7"):
            await lab.invoke("early", qualifier="7")
        with pytest.raises(TooLarge):
            await lab.invoke("early", b"x" * (6 * MIB + 1))


async def test_concurrency_is_exact(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agent = await lab.agent("n1")
        await lab.function("hello", max_concurrent=3)
        agent.says = lambda agent, invoke: None
        calls = [asyncio.ensure_future(lab.invoke("hello")) for _ in range(5)]
        await lab.until(lambda: len(agent.invoked) == 3)
        done = [call for call in calls if call.done()]
        assert len(done) == 2
        for call in done:
            with pytest.raises(Throttled, match="3 of at most 3 invocations run"):
                call.result()
        agent.say(InvocationAnswer(agent.invoked[0].id, b"1"))
        await lab.until(lambda: sum(call.done() for call in calls) == 3)
        agent.says = lambda agent, invoke: InvocationAnswer(invoke.id, b"2")
        assert (await lab.invoke("hello")).payload == b"2"
        calls[-1].cancel()
        for invoke in agent.invoked[1:3]:
            agent.say(InvocationAnswer(invoke.id, b"1"))
        await lab.until(
            lambda: lab.functions.dispatcher.running(lab.functions.catalogue.find("default", "hello").uid) == 0
        )
        assert len(agent.invoked) == 4  # none twice
        await asyncio.gather(*calls, return_exceptions=True)


async def test_a_caller_that_goes_away_frees_nothing_before_its_invocation_ends(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        agent, call = await begin_one(lab, max_concurrent=1)
        call.cancel()
        with pytest.raises(Throttled):
            await lab.invoke("hello")
        agent.say(InvocationAnswer(agent.invoked[0].id, b"1"))
        agent.says = lambda agent, invoke: InvocationAnswer(invoke.id, b"2")
        await lab.until(lambda: agent.invoked[0].id in agent.heard)
        assert (await lab.invoke("hello")).payload == b"2"


async def test_a_warm_instance_comes_first_and_a_refusal_leads_on(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agents = [await lab.agent(name) for name in ("n1", "n2", "n3")]
        await lab.function("hello")
        digest = (await lab.status("hello")).digest
        agents[2].stand(**{digest: Count(idle=1)})
        await lab.until(lambda: bool(lab.functions.agents.fleet.nodes[agents[2].uid].instances))
        assert [(await lab.invoke("hello")).node for _ in range(3)] == ["n3"] * 3
        agents[2].says = lambda agent, invoke: InvocationRefused(invoke.id, "insufficientResources", "no memory left")
        outcome = await lab.invoke("hello")
        assert outcome.node in ("n1", "n2")
        for agent in agents:
            agent.says = lambda agent, invoke: InvocationRefused(
                invoke.id, "insufficientResources", "needs 256.0 MiB, 100.0 MiB are free"
            )
        with pytest.raises(Unplaceable) as refused:
            await lab.invoke("hello")
        assert refused.value.token == "insufficientResources"
        for name in ("n1", "n2", "n3"):
            assert f"{name}: needs 256.0 MiB" in refused.value.message
        counts = lab.read_metrics("hello")
        assert counts.refused == {"insufficientResources": 1} and counts.invocations == 5


async def test_a_constraint_is_hard_and_an_isolation_that_no_node_runs_is_named(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        await lab.agent("n1", zone="a")
        await lab.agent("n2", zone="b")
        await lab.function("picky", constraint="zone=b")
        assert [(await lab.invoke("picky")).node for _ in range(3)] == ["n2"] * 3
        await lab.function("boxed", isolation="container", wait=False)
        status = await lab.until_reason("boxed", "noAvailableAgents")
        assert "n1 can't run isolation container: no crun" in status.message
        await lab.function("never", constraint="gpu.memory>=8GB", wait=False)
        status = await lab.until_reason("never", "noAvailableAgents")
        assert status.phase == "Pending" and "not meeting its constraint" in status.message


async def test_answers_come_over_a_connection_that_was_lost(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agent = await lab.agent("n1")
        await lab.function("hello")
        agent.says = lambda agent, invoke: None
        calls = [asyncio.ensure_future(lab.invoke("hello")) for _ in range(2)]
        await lab.until(lambda: len(agent.invoked) == 2)
        agent.lose()
        agent.begun.pop(agent.invoked[1].id)  # of this one it knows nothing more
        await lab.until(lambda: agent.channels == 2)
        with pytest.raises(Unavailable) as lost:
            await calls[1]
        assert lost.value.token == "invocationLost" and "it may have run" in lost.value.message
        agent.say(InvocationAnswer(agent.invoked[0].id, b"late"))
        agent.say(InvocationAnswer(agent.invoked[0].id, b"twice"))
        assert (await calls[0]).payload == b"late"
        assert len(agent.invoked) == 2
        await lab.until(lambda: agent.heard.count(agent.invoked[0].id) == 2)


async def test_an_answer_given_while_the_connection_was_away_arrives_with_the_next(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agent = await lab.agent("n1")
        await lab.function("hello")

        def lose_and_answer(agent: PretendAgent, invoke: Invoke) -> None:
            agent.lose()
            agent.answers[invoke.id] = InvocationAnswer(invoke.id, b"kept")

        agent.says = lose_and_answer
        assert (await lab.invoke("hello")).payload == b"kept"
        assert len(agent.invoked) == 1


async def test_an_agent_that_was_killed_loses_what_it_had_and_nothing_runs_twice(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        agent, call = await begin_one(lab)
        await agent.stop()
        agent.begun.clear()
        await agent.start()
        with pytest.raises(Unavailable, match="no longer knows this invocation"):
            await call
        await lab.until(lambda: lab.serves(agent))
        agent.says = lambda agent, invoke: InvocationAnswer(invoke.id, b"again")
        assert (await lab.invoke("hello")).payload == b"again"
        assert len(agent.invoked) == 2


async def test_a_gateway_that_was_killed_reads_all_again_and_prepares_nothing_twice(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        agent, call = await begin_one(lab, max_concurrent=1)
        before = agent.invoked[0].id
        await lab.restart()
        call.cancel()
        await agent.stop()
        await agent.start()
        await lab.until(lambda: lab.serves(agent))
        with pytest.raises(Throttled):  # what runs there still counts
            await lab.invoke("hello")
        agent.say(InvocationAnswer(before, b"to nobody"))
        await lab.until(lambda: before in agent.heard)
        agent.says = lambda agent, invoke: InvocationAnswer(invoke.id, b"new")
        assert (await lab.invoke("hello")).payload == b"new"
        assert len(agent.prepared) == 1 and len(agent.invoked) == 2


async def test_new_code_serves_once_it_is_ready_and_never_if_it_does_not_come_up(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agent = await lab.agent("n1")
        await lab.function("hello")
        first = (await lab.status("hello")).digest
        agent.prepares = lambda prepare: Prepared(
            prepare.id,
            error_type="Runtime.ImportModuleError",
            message="No module named 'x'\nTraceback\n  app.py line 1",
        )
        await lab.change("hello", code="c1" * 32)
        while (status := await lab.status("hello")).observed_generation != 2:
            await asyncio.sleep(0.01)
        assert (status.phase, status.reason, status.digest) == ("Ready", "Runtime.ImportModuleError", first)
        assert status.message == "No module named 'x'" and status.trace == ["Traceback", "  app.py line 1"]
        await lab.invoke("hello")
        assert agent.invoked[-1].digest == first
        waiting: list[str] = []
        agent.prepares = lambda prepare: (
            waiting.append(prepare.id),
            Prepared(prepare.id, done=False, message="unpacking"),
        )[1]
        await lab.change("hello", code="c2" * 32)
        await lab.until(lambda: bool(waiting))
        while "unpacking" not in (await lab.status("hello")).message:
            await asyncio.sleep(0.01)
        await lab.invoke("hello")
        assert agent.invoked[-1].digest == first
        agent.say(Prepared(waiting[0]))
        while (status := await lab.status("hello")).observed_generation != 3:
            await asyncio.sleep(0.01)
        assert status.digest != first and status.reason == ""
        await lab.invoke("hello")
        assert agent.invoked[-1].digest == status.digest


async def test_code_that_does_not_come_up_fails_with_what_it_said(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agents = [await lab.agent(name) for name in ("n1", "n2")]
        for agent in agents:
            agent.prepares = lambda prepare: Prepared(
                prepare.id, error_type="Runtime.ExitError", message="exit status 3"
            )
        await lab.function("bad", wait=False)
        status = await lab.until_phase("bad", "Failed")
        assert (status.reason, status.message) == ("Runtime.ExitError", "exit status 3")
        assert sum(len(agent.prepared) for agent in agents) == 1  # the next node would say the same


async def test_a_node_that_cannot_prepare_is_passed_over(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agents = [await lab.agent(name) for name in ("n1", "n2")]
        agents[0].prepares = lambda prepare: InvocationRefused(prepare.id, "insufficientResources", "no room")
        agents[1].prepares = lambda prepare: Prepared(prepare.id, error_type="fetchFailed", message="no route")
        await lab.function("hello", wait=False)
        status = await lab.until_reason("hello", "noAvailableAgents")
        assert "n1: no room" in status.message and "n2: no route" in status.message
        agents[1].prepares = lambda prepare: Prepared(prepare.id)
        await lab.until_phase("hello", "Ready")


async def test_a_silent_agent_is_given_up_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.gateway.function.dispatcher.GRACE_SECONDS", 0.3)
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agent = await lab.agent("n1")
        await lab.function("hello", timeout=0.2)
        agent.says = lambda agent, invoke: None
        with pytest.raises(WeftError) as lost:
            await lab.invoke("hello")
        assert lost.value.token == "invocationLost" and "didn't answer in time" in lost.value.message
        agent.say(InvocationAnswer(agent.invoked[0].id, b"very late"))
        await lab.until(lambda: agent.invoked[0].id in agent.heard)


async def test_a_call_that_comes_before_the_gateway_has_read_anything_waits_a_moment(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agent = await lab.agent("n1")
        await lab.function("hello")
        await agent.stop()
        await lab.restart()
        call = asyncio.ensure_future(lab.invoke("hello", b"1"))
        await asyncio.sleep(0.1)
        await agent.start()
        assert (await call).payload == b"1"


async def test_what_runs_counts_though_its_node_says_so_before_the_gateway_has_read_the_functions(
    tmp_path: Path,
) -> None:
    store = SlowToList()
    async with functions_lab(tmp_path, store) as lab:
        agent, lost = await begin_one(lab, max_concurrent=1)
        await agent.stop()
        store.lists.clear()
        await lab.restart()
        lost.cancel()
        await agent.start()
        await lab.until(lambda: agent.channels == 2)
        await asyncio.sleep(0.2)  # by then the gateway has what it said
        store.lists.set()
        with pytest.raises(Throttled):
            await lab.invoke("hello")


async def test_a_node_that_is_not_heard_holds_a_new_gateways_calls_up_for_a_while_only(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        clock = await restart_without_n2(lab)
        call = asyncio.ensure_future(lab.invoke("hello", b"1"))
        await lab.until(lambda: clock.next_in() <= CHECK_SECONDS / 5)
        clock.advance(ALL_SECONDS)
        assert (await call).node == "n1"


async def test_a_gateway_that_began_long_ago_waits_for_no_node_that_it_never_heard(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        clock = await restart_without_n2(lab)
        clock.advance(ALL_SECONDS)
        assert (await asyncio.wait_for(lab.invoke("hello", b"1"), 60)).node == "n1"


async def test_nodes_let_go_of_what_nothing_names_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.gateway.function.service.SWEEP_SECONDS", 0.1)
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agent = await lab.agent("n1")
        await lab.function("hello")
        first = (await lab.status("hello")).digest
        await lab.invoke("hello")
        await lab.change("hello", memory=512 * MIB)
        await lab.until(lambda: len(agent.prepared) == 2)
        await lab.until(lambda: agent.dropped == [first])
        assert (await lab.invoke("hello")).payload == b"{}" and agent.dropped == [first]
        await lab.delete("hello")
        await lab.until(lambda: agent.dropped == [first, agent.prepared[1]])
        assert lab.functions.catalogue.version_of(first) is None
        with pytest.raises(NotFound):
            await lab.invoke("hello")


async def test_nodes_let_go_at_once_of_a_function_that_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.gateway.function.service.SWEEP_SECONDS", 3600.0)
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agent = await lab.agent("n1")
        await lab.function("hello")
        await lab.function("other")
        digest = (await lab.status("hello")).digest
        await lab.delete("hello")
        await lab.until(lambda: agent.dropped == [digest])
        assert (await lab.invoke("other")).payload == b"{}" and agent.dropped == [digest]


async def test_how_instances_are_kept_is_told_to_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.gateway.function.service.CHECK_SECONDS", 0.1)
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agent = await lab.agent("n1")
        await lab.function("kept", keep_alive="90s", ready=3)
        await lab.until(lambda: any(keep.ready == 3 and keep.idle_seconds == 90 for keep in agent.kept))
        await lab.function("auto")
        await lab.invoke("auto")
        digest = (await lab.status("auto")).digest
        await lab.until(lambda: any(k.digest == digest and (k.idle_seconds, k.ready) == (600, 0) for k in agent.kept))
        agent.kept.clear()
        await agent.stop()
        await agent.start()  # what it was told is gone with it
        await lab.until(lambda: any(keep.ready == 3 for keep in agent.kept))


async def test_a_node_that_has_it_prepared_goes_before_one_that_has_more_room(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agents = {name: await lab.agent(name) for name in ("n1", "n2", "n3")}
        await lab.function("hello")
        (prepared,) = (agent for agent in agents.values() if agent.prepared)
        for agent in agents.values():
            agent.says = lambda agent, invoke: None
        calls = [asyncio.ensure_future(lab.invoke("hello")) for _ in range(4)]
        await lab.until(lambda: sum(len(agent.invoked) for agent in agents.values()) == 4)
        assert len(prepared.invoked) == 4  # though each takes of its room
        for invoke in prepared.invoked:
            prepared.say(InvocationAnswer(invoke.id, b"1"))
        await asyncio.gather(*calls)


def image_node(agent: PretendAgent, tags: dict[str, str]) -> None:
    """Its registry says what tags mean; what has a digest comes up."""

    def prepares(prepare: Prepare) -> Prepared:
        recipe = agent.recipes[prepare.digest]
        return Prepared(prepare.id, image=tags[recipe.image]) if recipe.is_open else Prepared(prepare.id, seconds=0.1)

    agent.prepares = prepares


async def test_a_tag_is_pinned_when_a_function_is_made_and_looked_up_again_only_when_asked(tmp_path: Path) -> None:
    tags = {"r.test/own:1": "sha256:" + "1" * 64, "r.test/own:2": "sha256:" + "2" * 64}
    async with functions_lab(tmp_path) as lab:
        for name in ("n1", "n2"):
            image_node(await lab.agent(name), tags)
        spec = {"image": "r.test/own:1", "code": "", "code_size": 0, "handler": "", "registry_secret": "reg"}
        made = await lab.function("own", **spec)
        first = await lab.status("own")
        pinned = f"r.test/own:1@sha256:{'1' * 64}"
        assert first.image == pinned and first.serving is not None and first.serving.image == "r.test/own:1"

        async def runs() -> set[str]:
            """The images of what is invoked, on each node."""
            found = set()
            for agent in lab.agents.values():
                agent.says = lambda agent, invoke: InvocationRefused(invoke.id, "insufficientResources", "full")
                await lab.invoke("own")
                recipe = agent.recipes[agent.invoked[-1].digest]
                assert recipe.registry_secret == "reg" and recipe.registry_ticket
                found.add(recipe.image)
                agent.says = answer
            return found

        tags["r.test/own:1"] = "sha256:" + "9" * 64  # somebody pushes
        assert await runs() == {pinned}
        await lab.version(made, 1, **{**spec, "image": first.image, "isolation": "process"})
        await lab.change("own", memory=512 * MIB)
        await lab.until_moved("own", first)
        assert (await lab.status("own")).image == pinned  # another size is no reason to run other code
        await lab.restart()
        for agent in lab.agents.values():
            await agent.stop()
            await agent.start()
        await lab.until(lambda: all(lab.serves(agent) for agent in lab.agents.values()))
        assert await runs() == {pinned}
        before = await lab.status("own")
        await lab.ask("own", pulls=1)
        await lab.until_moved("own", before)
        assert (await lab.status("own")).image == f"r.test/own:1@sha256:{'9' * 64}"
        before = await lab.status("own")
        await lab.change("own", image="r.test/own:2")
        await lab.until_moved("own", before)
        assert await runs() == {f"r.test/own:2@sha256:{'2' * 64}"}
        assert (await lab.invoke("own", qualifier="1")).version == "1"
        assert any(
            agent.invoked[-1].digest in agent.recipes and agent.recipes[agent.invoked[-1].digest].image == pinned
            for agent in lab.agents.values()
        )


async def test_an_image_that_cant_be_looked_up_says_why_and_what_served_goes_on(tmp_path: Path) -> None:
    tags = {"r.test/own:1": "sha256:" + "1" * 64}
    async with functions_lab(tmp_path) as lab:
        agent = await lab.agent("n1")
        image_node(agent, tags)
        await lab.function("own", image="r.test/own:1", code="", code_size=0, handler="")
        agent.prepares = lambda prepare: Prepared(prepare.id, True, "imageGone", "r.test has no own:2")
        await lab.change("own", image="r.test/own:2")
        status = await lab.until_reason("own", "noAvailableAgents")
        assert "n1: r.test has no own:2" in status.message and status.image.startswith("r.test/own:1@")
        await lab.invoke("own")


async def test_an_image_that_the_fabric_holds_is_known_at_once_and_comes_from_the_server(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        agent = await lab.agent("n1")
        wish = {"image": "own", "code": "", "code_size": 0, "handler": ""}
        await lab.function("early", wait=False, **wish)
        await lab.until_reason("early", "imageNotReady")
        await lab.function("wrong", wait=False, **{**wish, "image": "tiny"})
        await lab.image("tiny", format="qcow2")
        assert "a disk for VMs" in (await lab.until_reason("wrong", "wrongImage")).message
        digest = "sha256:" + "7" * 64
        await lab.image("own", sha256="0a" * 32, digest=digest, format="oci", size=3 * MIB)
        await lab.until_phase("early", "Ready")
        outcome = await lab.invoke("early")
        assert outcome.node == "n1"
        (recipe,) = agent.recipes.values()
        assert recipe.image == f"own@{digest}" and not recipe.is_open and recipe.archive is not None
        assert (recipe.archive.sha256, recipe.archive.size) == ("0a" * 32, 3 * MIB)
        check_blob_ticket(KEY, recipe.archive.ticket, recipe.archive.sha256, agent.uid, lab.clock.now())


async def test_a_function_waits_for_the_image_that_another_project_shares_and_for_no_other_of_its_name(
    tmp_path: Path,
) -> None:
    async with functions_lab(tmp_path) as lab:
        agent = await lab.agent("n1")
        await lab.function("early", wait=False, image="physics/own", code="", code_size=0, handler="")
        await lab.image("own", sha256="0b" * 32, digest="sha256:" + "8" * 64, format="oci", size=MIB)
        assert "physics/own does not exist" in (await lab.until_reason("early", "imageNotReady")).message
        digest = "sha256:" + "7" * 64
        await lab.image("own", project="physics", sha256="0a" * 32, digest=digest, format="oci", size=3 * MIB)
        await lab.until_phase("early", "Ready")
        assert (await lab.invoke("early")).node == "n1"
        (recipe,) = agent.recipes.values()
        assert recipe.image == f"physics/own@{digest}" and recipe.archive is not None
        assert recipe.archive.sha256 == "0a" * 32 and recipe.registry_secret == ""


async def test_a_machine_is_prepared_on_the_next_node_before_the_first_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "CHECK_SECONDS", 0.05)
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        agents = [await lab.agent(f"n{number}") for number in range(1, 4)]
        for agent in agents:
            agent.standing = msgspec.structs.replace(agent.standing, isolations={"vm": "", "process": ""})
            agent.say(agent.standing)
        await lab.until(lambda: all(lab.functions.agents.fleet.nodes[one.uid].runs("vm") for one in agents))
        await lab.function("boxed", isolation="vm", memory=256 * MIB)
        await lab.function("plain", memory=256 * MIB)
        home = next(agent for agent in agents if agent.prepared)
        for name in ("boxed", "plain"):
            await lab.invoke(name)
        digests = {name: (await lab.status(name)).digest for name in ("boxed", "plain")}
        await asyncio.sleep(0.3)
        assert [agent for agent in agents if digests["boxed"] in agent.prepared] == [home], (
            "there is room enough at home"
        )

        nexts = [agent for agent in agents if agent is not home]
        for agent in nexts:  # the first that is asked can't, and the other is asked then
            agent.prepares = lambda prepare: InvocationRefused(prepare.id, "notServed", "no machines any more")
        home.standing = msgspec.structs.replace(home.standing, free_memory=300 * MIB)
        home.say(home.standing)
        await lab.until(lambda: all(agent.prepared == [digests["boxed"]] for agent in nexts))
        await asyncio.sleep(0.3)
        assert all(agent.prepared == [digests["boxed"]] for agent in nexts), "who couldn't is left in peace"
        assert digests["plain"] not in nexts[0].prepared + nexts[1].prepared

        await lab.function("other", isolation="vm", memory=256 * MIB, wait=False)
        for agent in nexts:
            agent.prepares = lambda prepare: Prepared(prepare.id, seconds=0.1)
        await lab.until_phase("other", "Ready")
        await lab.invoke("other")
        other = (await lab.status("other")).digest
        for agent in agents:
            agent.standing = msgspec.structs.replace(agent.standing, free_memory=300 * MIB)
            agent.say(agent.standing)
        await lab.until(lambda: sum(other in agent.prepared for agent in agents) >= 2)
        before = next(agent for agent in agents if other in agent.prepared)
        before.standing = msgspec.structs.replace(before.standing, free_memory=0)
        before.says = lambda agent, invoke: InvocationRefused(invoke.id, "insufficientResources", "full")
        before.say(before.standing)
        outcome = await lab.invoke("other")
        there = next(agent for agent in agents if agent.name == outcome.node)
        assert there is not before and other in there.standing.recipes, "it went where it needn't boot"


async def test_what_is_counted_goes_on_over_restarts_of_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.gateway.function.service.WRITE_SECONDS", 0.05)
    monkeypatch.setattr("weft.gateway.function.service.REPORT_SECONDS", 0.05)
    async with functions_lab(tmp_path) as lab:

        async def recorded(invocations: int, errors: int) -> None:
            """For the history of metrics, beside the lease of this gateway."""
            for _ in range(600):
                found = [read_counts(one.digest) for one in await lab.store.leases(LEASE_PREFIX, digests=True)]
                if [(one[function.uid].invocations, one[function.uid].errors) for one in found] == [
                    (invocations, errors)
                ]:
                    return
                await asyncio.sleep(0.05)
            raise AssertionError(f"it has {found}")

        await lab.base()
        agent = await lab.agent("n1")
        function = await lab.function("hello")
        await recorded(0, 0)
        for _ in range(3):
            await lab.invoke("hello")
        await recorded(3, 0)
        kept = CountsFile(tmp_path / "gw" / "counts")
        await lab.until(lambda: (found := kept.read(function.uid)) is not None and found.duration.count == 3)
        before = lab.read_metrics("hello")
        await lab.restart()
        await agent.stop()
        await agent.start()
        await lab.until(lambda: lab.serves(agent))
        await recorded(0, 0)  # a counter begins again: what was lost with the gateway would else be a step back
        await lab.invoke("hello")
        await recorded(1, 0)
        told = lab.read_metrics("hello")
        assert (before.invocations, told.invocations, told.since) == (3, 4, before.since)
        assert told.starts == {"warm": 4} and told.latency.most >= before.latency.most
        agent.says = lambda agent, invoke: InvocationAnswer(invoke.id, b"{}", error="Unhandled", error_type="KeyError")
        await lab.invoke("hello")
        await recorded(2, 1)


async def test_a_node_gets_the_functions_that_name_it_and_keeps_one_whose_code_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_functions, "CHECK_SECONDS", 0.02)
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        here, other = await lab.agent("n1"), await lab.agent("n2")
        await lab.until(lambda: bool(here.listed))
        assert here.listed[-1] == ServeLocally()  # what an earlier server said is over
        made = await lab.function("label", local_nodes=["n1"], local_secret="door", max_concurrent=3)
        await lab.until(lambda: bool(here.listed[-1].functions))
        (local,) = here.listed[-1].functions
        before = await lab.status("label")
        assert (local.uid, local.recipe.digest, local.secret, local.most) == (made.uid, before.digest, "door", 3)
        assert local.recipe.code is not None
        check_blob_ticket(KEY, local.recipe.code.ticket, local.recipe.code.sha256, here.uid, lab.clock.now())
        await lab.change("label", handler="app.other")
        await lab.until_moved("label", before)
        await lab.until(lambda: here.listed[-1].functions[0].recipe.handler == "app.other")
        count = len(here.listed)
        here.lose()
        await lab.until(lambda: len(here.listed) == count + 1)
        assert here.listed[-1].functions[0].recipe.handler == "app.other"
        await lab.image("python3-11", phase="Fetching")
        await lab.until(lambda: here.listed[-1] == ServeLocally([], [made.uid], {made.uid: "door"}))
        await lab.change("label", local_nodes=[], local_secret=None)
        await lab.until(lambda: here.listed[-1] == ServeLocally())
        await lab.change("label", local_nodes=["n3"], local_secret="door")
        await lab._until_status("label", lambda status: status.named_nodes == ["n1", "n3"])
        await lab.change("label", local_nodes=["n1"])
        await lab._until_status("label", lambda status: status.named_nodes == ["n3", "n1"])
        await lab.change("label", local_nodes=[], local_secret=None)
        await lab.image("python3-11")
        await lab._until_status("label", lambda status: status.phase == "Ready" and not status.reason)
        assert (await lab.status("label")).named_nodes == ["n3", "n1"]
        assert all(one == ServeLocally() for one in other.listed)


async def test_a_function_says_which_of_its_own_nodes_are_away_until_they_are_back(tmp_path: Path) -> None:
    async with functions_lab(tmp_path) as lab:
        await lab.base()
        for name in ("n1", "n2"):
            await lab.agent(name)
        own = {"local_nodes": ["n2"], "local_secret": "door"}
        assert not (await _get_ready(lab, "before", **own)).away_nodes
        await _set_phase(lab, "n2", "Autonomous")
        assert (await _get_ready(lab, "label", **own)).away_nodes == ["n2"]
        assert not (await _get_ready(lab, "far")).away_nodes
        assert not (await lab.status("before")).away_nodes, "the node has it, and serves it"
        await lab.change("before", description="newer")
        await lab._until_status("before", lambda status: status.away_nodes == ["n2"])
        await _set_phase(lab, "n2", "NotReady")
        await lab.restart()
        await lab.until(lambda: bool(lab.functions.cache.epoch))
        assert (await lab.status("label")).away_nodes == ["n2"]
        await _set_phase(lab, "n2", "Ready")
        for name in ("label", "before"):
            await lab._until_status(name, lambda status: status.phase == "Ready" and not status.away_nodes)


async def _get_ready(lab: FunctionsLab, name: str, **spec: Any) -> FunctionStatus:
    await lab.function(name, **spec)
    return await lab.status(name)


async def _set_phase(lab: FunctionsLab, node: str, phase: str) -> None:
    entry = await lab.store.get(object_key("node", None, node))
    assert entry is not None
    envelope = decode_envelope(entry.value, entry.revision)
    envelope.status = merge_part(envelope.status, {"phase": phase})
    revision = await lab.put(envelope)
    await lab.functions.cache.reached(revision)


def test_a_tainted_node_keeps_only_functions_that_tolerate_its_taints() -> None:
    assert local_functions.may_serve([], []) and local_functions.may_serve(["shop=b"], ["shop"])
    assert not local_functions.may_serve(["shop=b", "gpu"], ["shop"])
