"""Constraints and preferences with the controllers at work: named ones that come and change, and wishes given up."""

from __future__ import annotations

from pathlib import Path

from tests.scenario.controllers_lab import GIB, Lab

from weft.contracts.store import Delete
from weft.kinds.constraint import ConstraintSpec, ConstraintStatus
from weft.kinds.decision import DecisionSpec
from weft.objects.envelope import Envelope, decode_part, merge_part


async def add_node(lab: Lab, name: str, **labels: str) -> None:
    await lab.add_node(name)
    await label(lab, name, **labels)


async def label(lab: Lab, node: str, **labels: str) -> None:
    def change(envelope: Envelope) -> None:
        envelope.labels = labels

    await lab.change(f"/node/-/{node}", change)


async def decision_of(lab: Lab, name: str) -> DecisionSpec:
    envelope = await lab.get(f"/decision/default/vm.{name}")
    assert envelope is not None
    return decode_part(envelope.spec, DecisionSpec)


async def test_a_constraint_places_and_a_label_lets_in_who_waited(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab, "n1", storage="hdd")
        await add_node(lab, "n2", storage="nvme")
        await lab.pass_time(1)
        await lab.put_vm("db", constraint="storage=nvme,memory>=8GB")
        await lab.until_phase("db", "Running")
        assert (await lab.status("db")).node == "n2"
        spec = await decision_of(lab, "db")
        assert {v.node: v.reason for v in spec.verdicts if v.outcome == "refused"} == {
            "n1": "storage is hdd, wanted nvme"
        }

        await lab.put_vm("edge", constraint="loction=edge")
        await lab.until_refused("edge", "noAvailableAgents")
        spec = await decision_of(lab, "edge")
        assert spec.refused_by == {"constraint": 2}
        assert spec.notes == ["no node has loction; did you mean location?"]
        assert "ConstraintWarning" in lab.journal.reasons("edge")
        await label(lab, "n1", storage="hdd", loction="edge")
        await lab.until_phase("edge", "Running")
        assert (await lab.status("edge")).node == "n1"


async def test_a_constraint_of_another_project_places_while_it_is_shared_and_what_was_placed_keeps_it(
    tmp_path: Path,
) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab, "n1", storage="hdd")
        await add_node(lab, "n2", storage="nvme")
        await lab.put("constraint", "fast", ConstraintSpec(expression="storage=nvme"), project="physics")
        await lab.put("constraint", "fast", ConstraintSpec(expression="storage=hdd"))  # its own of that name
        for name in ("fast", "none"):
            await lab.put_vm(name, constraint=f"@physics/{name}")
            await lab.until_refused(name, "constraintNotReady")
        told = [(await lab.status(name)).message for name in ("fast", "none")]
        assert told[0] == 'constraint "physics/fast" does not exist, or is not shared with project default'
        assert told[1] == told[0].replace("fast", "none")

        async def share(*projects: str) -> None:
            def change(envelope: Envelope) -> None:
                spec = ConstraintSpec(expression="storage=nvme", shared_with=list(projects))
                envelope.spec = merge_part(envelope.spec, spec)
                envelope.generation += 1

            await lab.change("/constraint/physics/fast", change)

        await share("default")
        await lab.until_phase("fast", "Running", 3)
        assert (await lab.status("fast")).node == "n2"
        await lab.put_vm("soft", prefer=["@physics/fast;weight=1"], strategy="best_fit")
        await lab.until_phase("soft", "Running")
        assert (await lab.status("soft")).node == "n2"

        await share("other")
        await lab.put_vm("late", prefer=["@physics/fast"])
        await lab.until_refused("late", "constraintNotReady")
        entries = (await lab.store.list("/allocation/")).entries
        await lab.store.commit([Delete(entry.key) for entry in entries])  # as when their node is given up

        async def anew() -> bool:
            return [one.incarnation for one in await lab.allocations()] == [2, 2]

        await lab.until(anew)
        assert {one.node for one in await lab.allocations()} == {"n2"}


async def test_a_named_constraint_is_waited_for_and_a_change_of_it_counts(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab, "n1", storage="nvme", zone="a")
        await add_node(lab, "n2", storage="nvme", zone="b")
        await lab.put_vm("db", constraint="@fast-disk AND @near", prefer=["@near"])
        await lab.until_refused("db", "constraintNotReady")
        assert (await lab.status("db")).message == 'constraint "fast-disk" does not exist'
        await lab.put("constraint", "fast-disk", ConstraintSpec(expression="storage=ssd"))
        await lab.put("constraint", "near", ConstraintSpec(expression="zone=b", soft=True, weight=1.0))
        await lab.until_refused("db", "noAvailableAgents")

        def mend(envelope: Envelope) -> None:
            envelope.spec = merge_part(envelope.spec, ConstraintSpec(expression="storage=nvme"))
            envelope.generation += 1

        await lab.change("/constraint/default/fast-disk", mend)
        await lab.until_phase("db", "Running")
        assert (await lab.status("db")).node == "n2"
        chosen = (await decision_of(lab, "db")).verdicts[0]
        assert [term.name for term in chosen.terms][-1] == "zone=b"


async def test_two_named_constraints_that_clash_are_said_to(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab, "n1", zone="a")
        await lab.put("constraint", "west", ConstraintSpec(expression="zone=a"))
        await lab.put("constraint", "east", ConstraintSpec(expression="zone=b"))
        await lab.put_vm("torn", constraint="@west,@east")
        await lab.until_refused("torn", "constraintNotReady")
        said = (await lab.status("torn")).message
        assert "zone=a (character 1 of constraint west) and zone=b (character 1 of constraint east)" in said


async def test_a_stored_expression_that_cannot_be_read_keeps_its_vm_waiting_and_nobody_else(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab, "n1", zone="a")
        await lab.put("constraint", "tomorrow", ConstraintSpec(expression="zone ~ a"))
        await lab.put_vm("odd", constraint="zone ~~ a")
        await lab.put_vm("named", constraint="@tomorrow")
        await lab.until_refused("odd", "constraintNotReady")
        await lab.until_refused("named", "constraintNotReady")
        assert (await lab.status("named")).message == "constraint tomorrow: character 6: '~' is not an operator"
        await lab.put_vm("plain")
        await lab.until_phase("plain", "Running")


async def test_a_preference_is_given_up_when_room_is_scarce_and_that_is_told(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab, "n1", zone="a")
        await add_node(lab, "n2", zone="b")
        wishes = ["zone=a;weight=1", "zone=b;weight=0.1;priority=3"]
        await lab.put_vm("early", memory=GIB, prefer=wishes)
        await lab.until_phase("early", "Running")
        assert (await lab.status("early")).node == "n1"
        assert (await decision_of(lab, "early")).notes == []
        await lab.put_vm("big", memory=14 * GIB, node="n2")
        await lab.until_phase("big", "Running")
        await lab.put_vm("more", memory=13 * GIB, node="n1")
        await lab.until_phase("more", "Running")
        await lab.put_vm("late", prefer=wishes)
        await lab.until_phase("late", "Running")
        notes = (await decision_of(lab, "late")).notes
        assert notes == [
            "preference zone=a was given up: 88% of the fabric's memory is allocated, and priority 0 counts up to 80%"
        ]
        assert "PreferenceGivenUp" in lab.journal.reasons("late")
        terms = [term.name for term in (await decision_of(lab, "late")).verdicts[0].terms]
        assert terms[-1] == "zone=b"


async def test_a_constraint_says_how_many_nodes_meet_it_now(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab, "n1", zone="a")
        await add_node(lab, "n2", zone="b")
        await lab.put("constraint", "west", ConstraintSpec(expression="zone=a,memory.free>1P"))

        async def says(expected: ConstraintStatus) -> bool:
            envelope = await lab.get("/constraint/default/west")
            return envelope is not None and decode_part(envelope.status, ConstraintStatus) == expected

        await lab.until(lambda: says(ConstraintStatus(meeting=1, nodes=2, names=["n1"])))
        await label(lab, "n2", zone="a")
        await lab.until(lambda: says(ConstraintStatus(meeting=2, nodes=2, names=["n1", "n2"])))
        await lab.nodes["n1"].die()
        await lab.until(lambda: says(ConstraintStatus(meeting=1, nodes=1, names=["n2"])), 90)
