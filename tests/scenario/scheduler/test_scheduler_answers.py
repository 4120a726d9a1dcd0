"""What the scheduler answers when it is asked: where a workload would go, what would let it fit, how full the fabric is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.scenario.controllers_lab import GIB, EndsAs, Lab
from tests.scenario.scheduler.test_placement import cordon

from weft.kinds.node import NodeRuntime
from weft.kinds.recommendation import KEPT_SECONDS, RecommendationStatus
from weft.kinds.report import ReportStatus
from weft.objects.envelope import decode_part


async def ask(lab: Lab, name: str, **spec: Any) -> RecommendationStatus:
    await lab.put("recommendation", name, spec)
    return await answer_to(lab, name)


async def answer_to(lab: Lab, name: str) -> RecommendationStatus:
    while True:
        envelope = await lab.get(f"/recommendation/default/{name}")
        assert envelope is not None
        status = decode_part(envelope.status, RecommendationStatus)
        if status.phase != "Pending":
            return status
        await lab.pass_time(0.1)


async def test_a_workload_is_told_where_it_would_go_as_if_it_had_no_place(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("large", cpu=6.0, memory=12 * GIB)
        await lab.until_phase("large", "Running")
        await lab.put_vm("web", cpu=1.0)
        await lab.until_phase("web", "Running")
        said = await ask(lab, "alone", workload="vm/web")
        assert (said.phase, said.current, said.best) == ("Done", "n1", "n1")
        await lab.add_node("n2")
        await lab.pass_time(2)
        said = await ask(lab, "two", workload="vm/web")
        assert (said.current, said.best) == ("n1", "n2")
        scores = {verdict.node: verdict.score for verdict in said.verdicts}
        alone = await ask(lab, "large", workload="vm/large")
        # Without itself n1 holds the other one only, and n2 nothing.
        assert alone.best == "n2" and scores["n2"] is not None and scores["n1"] is not None
        assert scores["n2"] > scores["n1"]
        places = [place.node for place in await lab.allocations()]
        assert places == ["n1", "n1"]  # it was asked, and nothing was done


async def test_a_request_that_fits_nowhere_is_told_the_least_change_first(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", memory=4 * GIB)
        await lab.add_node("n2", memory=6 * GIB)
        await lab.add_node("n3", memory=32 * GIB)
        await lab.change("/node/-/n3", cordon(True))  # type: ignore[arg-type]
        await lab.put_vm("web", memory=1 * GIB, node=None)
        await lab.until_phase("web", "Running")
        said = await ask(lab, "more", workload="vm/web", changes={"memory": "8G"})
        assert (said.phase, said.best, said.reason) == ("Done", "", "insufficientResources")
        first = said.advice[0]
        assert (first.node, first.changes) == ("n2", {"memory": 6 * GIB})
        assert "uncordon n3" in " ".join(advice.command for advice in said.advice)
        # It is true: with the change it fits there, and with a little more it doesn't.
        assert (await ask(lab, "least", workload="vm/web", changes=first.changes)).best == "n2"
        assert (await ask(lab, "over", workload="vm/web", changes={"memory": 6 * GIB + 2**20})).best == ""


async def test_what_is_not_there_yet_can_be_asked_about(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.pass_time(2)
        said = await ask(lab, "might", changes={"image": "tiny", "cpu": 2, "memory": "1G"}, nodes=["n1"])
        assert (said.phase, said.current, said.best) == ("Done", "", "n1")
        assert (await ask(lab, "typo", changes={"image": "tiny", "memry": "1G"})).message.startswith(
            "spec.memry is not a field; did you mean spec.memory?"
        )
        wish = {"image": "tiny", "constraint": "name=n1 OR storge=nvme"}
        assert (await ask(lab, "meant", changes=wish)).notes == ["no node has storge; did you mean storage?"]
        assert (await ask(lab, "gone", workload="vm/nobody")).message == 'VM "nobody" not found'
        assert "imageNotReady" in (await ask(lab, "image", changes={"image": "none"})).reason
        assert (await ask(lab, "where", changes={"image": "tiny"}, nodes=["n9"])).reason == "notFound"


async def test_a_move_to_a_node_that_is_not_there_is_answered_so(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web", node=None)
        await lab.until_phase("web", "Running")
        said = await ask(lab, "away", workload="vm/web", migration={"to": "n9"})
        assert (said.phase, said.reason) == ("Failed", "notFound") and 'node "n9" not found' in said.message


async def test_of_a_gang_all_are_answered_for_those_that_are_there_and_those_that_would_be(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2"):
            await lab.add_node(name, cpu=8.0)
        await lab.pass_time(2)
        wish = {"image": "tiny", "cpu": 6, "gang": "web:3"}
        said = await ask(lab, "none", changes=wish)
        assert (said.best, said.reason, said.gang) == ("", "insufficientResources", [])
        assert said.message.startswith("gang web: member 3 has no place when 2 of the others are placed: needs 6 cpu")
        await lab.add_node("n3", cpu=8.0)
        await lab.put_vm("a", gang="web:3", cpu=6.0)
        await lab.until_refused("a", "gangIncomplete")
        said = await ask(lab, "all", changes=wish)
        assert {said.best, *(place.node for place in said.gang)} == {"n1", "n2", "n3"}
        assert [place.workload for place in said.gang] == ["vm/a", "member 3"]
        said = await ask(lab, "member", workload="vm/a")
        assert said.best and [place.workload for place in said.gang] == ["member 2", "member 3"]
        assert await lab.allocations() == []  # it was asked, and nothing was done
        await lab.put_vm("b", gang="web:3", cpu=6.0)
        await lab.put_vm("c", gang="web:3", cpu=6.0)
        for name in ("a", "b", "c"):
            await lab.until_phase(name, "Running")
        # Those that have a place stay: only this one is asked about.
        said = await ask(lab, "placed", workload="vm/a")
        assert said.best == said.current != "" and said.gang == []


async def test_an_answer_is_taken_away_when_it_is_old(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await ask(lab, "once", changes={"image": "tiny"})
        await lab.pass_time(KEPT_SECONDS / 2)
        assert await lab.get("/recommendation/default/once") is not None
        await lab.pass_time(KEPT_SECONDS)
        assert await lab.get("/recommendation/default/once") is None


async def test_a_report_counts_what_is_placed_and_what_waits(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        runs = [NodeRuntime(name="crun", kinds=["container"], isolations=["container"])]
        for name in ("n1", "n2"):
            (await lab.add_node(name, runtimes=runs)).program = lambda spec: EndsAs(1.0)
        await lab.put_vm("web", cpu=2.0, memory=2 * GIB)
        await lab.until_phase("web", "Running")
        await lab.put_vm("huge", cpu=500.0)
        await lab.until_refused("huge", "insufficientResources")
        await lab.put_container("try", once=True, restart="never")
        await lab.until_phase("try", "Stopped", kind="container")  # it takes nothing any more, and counts no more
        await lab.put("report", "now", {"subject": "capacity"}, project=None)
        status = ReportStatus()
        while status.phase == "Pending":
            await lab.pass_time(0.1)
            envelope = await lab.get("/report/-/now")
            assert envelope is not None
            status = decode_part(envelope.status, ReportStatus)
        assert (status.node_count, status.usable, status.placed) == (2, 2, 1)
        cpu = next(use for use in status.resources if use.resource == "cpu")
        assert (cpu.allocated, cpu.capacity, cpu.largest_free) == (2.0, 16.0, 8.0)
        assert [(one.reason, one.count, one.first) for one in status.waiting] == [
            ("insufficientResources", 1, ["vm/huge"])
        ]
        assert sum(node.workloads for node in status.nodes) == 1 and status.nodes[0].shares["cpu"] == 25.0
