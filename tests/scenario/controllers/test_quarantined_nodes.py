"""A node on which the starts of different workloads fail gets no workloads for a while."""

from __future__ import annotations

from pathlib import Path

import msgspec
from tests.scenario.controllers_lab import Lab, PretendNode

from weft.cli.node.scheduling import describe_scheduling
from weft.kinds.decision import DecisionSpec
from weft.kinds.node import NODE, NodeSpec, NodeStatus, Quarantine
from weft.objects.envelope import Envelope, decode_part, merge_part


async def read_quarantine(lab: Lab, name: str = "n1") -> Quarantine | None:
    node = await lab.get(f"/node/-/{name}")
    assert node is not None
    return decode_part(node.status, NodeStatus).quarantine


async def make_lab(lab: Lab) -> PretendNode:
    """Three nodes, the image tiny running on the second; nothing starts on the first."""
    broken = await lab.add_node("n1")
    await lab.add_node("n2")
    await lab.add_node("n3")
    broken.fails_at = lambda spec: "boot"
    await lab.put_vm("good", cpu=1.0, node="n2")
    await lab.until_phase("good", "Running")
    return broken


async def fail_on_n1(lab: Lab, *names: str, **spec: object) -> None:
    for name in names:
        await lab.put_vm(name, cpu=0.5, node="n1", **spec)
    for name in names:
        await lab.until_phase(name, "Failed")
    await lab.pass_time(3.0)


async def test_a_node_where_three_workloads_fail_to_start_gets_no_more_until_one_starts(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        broken = await make_lab(lab)
        await fail_on_n1(lab, "one", "two")
        assert await read_quarantine(lab) is None
        await fail_on_n1(lab, "three")
        first = await read_quarantine(lab)
        assert first is not None and first.workloads == 3 and first.until == first.since + 600.0
        node = msgspec.json.decode(msgspec.json.encode(await lab.get("/node/-/n1")))
        (status,) = [column.value for column in NODE.display.columns if column.title == "STATUS"]
        assert status(node) == "Quarantined"
        lines = dict(describe_scheduling(node, [], {}))
        assert lines["quarantined"].endswith("once the cause is gone: weft node uncordon n1")
        (condition,) = [one for one in node["conditions"] if one["type"] == "StartsGuests"]
        assert "vm/three of project default (boot: driverFailed)" in condition["message"]
        await lab.put_vm("pinned", cpu=0.5, node="n1")
        await lab.until_refused("pinned", "noAvailableAgents")
        decided = await lab.get("/decision/default/vm.pinned")
        assert decided is not None
        spec = decode_part(decided.spec, DecisionSpec)
        assert {v.node: v.reason for v in spec.verdicts}["n1"] == "quarantined: the starts of 3 workloads failed there"
        assert spec.refused_by == {"quarantine": 1, "node": 2}

        await lab.kill_controllers()
        lab.start_controllers("others")
        await lab.pass_time(300.0)
        assert await read_quarantine(lab) == first
        await lab.until_phase("pinned", "Failed", 400.0)  # placed on probation
        again = await read_quarantine(lab)
        assert again is not None and again.on_probation
        await fail_on_n1(lab, "five", "six")
        second = await read_quarantine(lab)
        assert second is not None and second.times == 2 and second.until == second.since + 1200.0

        broken.fails_at = lambda spec: ""
        page = await lab.store.list(f"/allocation/-/{broken.uid}.")
        await broken.act(page.entries[0].key)  # its agent tries again
        await lab.pass_time(5.0)
        assert await read_quarantine(lab) is None
        told = ["NodeQuarantined", "NodeQuarantineEnded"]
        assert [reason for reason in lab.journal.reasons("n1") if "Quarantine" in reason] == told * 2


async def test_uncordon_ends_a_quarantine_and_what_failed_before_does_not_count_again(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await make_lab(lab)
        await fail_on_n1(lab, "one", "two", "three")
        verb = next(verb for verb in NODE.verbs if verb.name == "uncordon")

        def uncordon(envelope: Envelope) -> None:
            spec = msgspec.to_builtins(decode_part(envelope.spec, NodeSpec))
            status = msgspec.to_builtins(decode_part(envelope.status, NodeStatus))
            assert verb.act is not None
            acted = verb.act({"spec": spec, "status": status, "now": lab.clock.now()}, None)
            envelope.actions = merge_part(envelope.actions, acted)
            envelope.generation += 1

        assert await read_quarantine(lab) is not None
        await lab.change("/node/-/n1", uncordon)
        await lab.pass_time(5.0)
        await fail_on_n1(lab, "four", "five")
        assert await read_quarantine(lab) is None
        await fail_on_n1(lab, "six")
        assert await read_quarantine(lab) is not None


async def test_an_image_that_starts_nowhere_and_failures_on_most_nodes_quarantine_no_further_node(
    tmp_path: Path,
) -> None:
    async with Lab(tmp_path) as lab:
        await make_lab(lab)
        await lab.put_image("bad")
        await fail_on_n1(lab, "one", "two", "three", "four", image="bad")
        assert await read_quarantine(lab) is None
        await fail_on_n1(lab, "five", "six")  # the bad image, and two workloads whose image runs elsewhere
        assert await read_quarantine(lab) is not None
        lab.nodes["n3"].fails_at = lambda spec: "boot"
        for name in ("a", "b", "c"):
            await lab.put_vm(name, cpu=0.5, node="n3")
            await lab.until_phase(name, "Failed")
        await lab.pass_time(5.0)
        assert await read_quarantine(lab, "n3") is None  # at most one in three
