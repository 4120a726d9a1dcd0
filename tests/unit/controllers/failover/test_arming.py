"""How a replica comes to take over automatically, and how it stops doing so: which step is next, and what people read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from weft.client.cluster.hold import ArmingAnswer
from weft.controllers.failover.arming import ArmingFacts, ArmingPlan, Placed, plan_arming, plan_step, read_arming_facts
from weft.controllers.failover.facts import Group
from weft.informer.view import Item, make_view
from weft.kinds.cluster import CLUSTER, ClusterSpec
from weft.kinds.parts.workload import WorkloadMarks
from weft.kinds.replication import REPLICATION, ReplicationActions, ReplicationMarks, ReplicationSpec
from weft.kinds.vm import VM, VmSpec
from weft.objects.envelope import decode_envelope, decode_part

SPEC = ReplicationSpec(of="vm/web", cluster="west", automatic=True)
ALONE = ReplicationActions(alone=True)
PLACE = Placed("n1", "", "")
OFF, ON = ArmingAnswer("done"), ArmingAnswer("done", "", True, 3)


def make_facts(guard: str = "", said: str = "", told: ArmingAnswer | None = None, **more: Any) -> ArmingFacts:
    marks = ReplicationMarks(guard=guard, arming=3)  # type: ignore[arg-type]
    on_node = {"begin": "begin", "": ""}.get(guard, "hold")
    facts = ArmingFacts(
        spec=SPEC,
        actions=ReplicationActions(),
        marks=marks,
        phase="Replicating",
        has_point=True,
        placed=[Placed("n1", on_node, said)],
        answer=told,
    )
    return replace(facts, **more)


def read(plan: ArmingPlan) -> tuple[str, str]:
    return plan.step, plan.condition.reason if plan.condition is not None else "-"


def test_nodes_show_that_they_can_then_they_hold_then_the_other_cluster_is_told() -> None:
    assert read(plan_arming(make_facts())) == ("begin", "Preparing")
    assert read(plan_arming(make_facts("begin"))) == ("", "Preparing")
    assert read(plan_arming(make_facts("begin", "held"))) == ("", "Preparing")  # a word from an earlier time
    assert read(plan_arming(make_facts("begin", "ready"))) == ("hold", "Preparing")
    assert read(plan_arming(make_facts("hold", "ready"))) == ("", "Preparing")
    assert read(plan_arming(make_facts("hold", "held"))) == ("on", "Preparing")
    assert read(plan_arming(make_facts("hold", "held", ArmingAnswer("silent", "no route")))) == ("on", "Preparing")
    armed = plan_arming(make_facts("hold", "held", ON))
    assert read(armed) == ("", "Armed")
    assert armed.condition is not None and armed.condition.status == "True"
    assert "for 38s" in armed.condition.message and "after 30s" in armed.condition.message


def test_a_copy_that_was_promoted_is_heard_of_also_where_nothing_takes_over() -> None:
    """As by a cluster that comes back: its VM ends before a point of it is refused."""
    off = replace(SPEC, automatic=False)
    plan = plan_arming(make_facts(spec=off, told=ArmingAnswer("promoted")))
    assert read(plan) == ("", "Left")
    assert read(plan_arming(make_facts(spec=off, told=OFF)))[1] != "Left"


def test_a_vm_that_is_nowhere_needs_no_node() -> None:
    for guard, step in (("begin", "hold"), ("hold", "on")):
        assert read(plan_arming(make_facts(guard, placed=[])))[0] == step


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spec": replace(SPEC, automatic=False)}, "--automatic turns it on"),
        ({"spec": replace(SPEC, paused=True)}, "is paused"),
        ({"actions": ReplicationActions(handover=True)}, "is handed over"),
        ({"deleting": True}, "is being deleted"),
        ({"has_vm": False}, "vm/web is gone"),
        ({"has_witness": False}, "weft cluster witness west URL"),
    ],
    ids=["off", "paused", "handed over", "deleted", "vm gone", "witness gone"],
)
def test_nodes_let_go_only_once_the_other_cluster_has_answered(change: dict[str, Any], said: str) -> None:
    released = plan_arming(make_facts("hold", "held", ON, **change))
    assert read(released) == ("release", "Releasing")
    assert released.condition is not None and said in released.condition.message
    assert read(plan_arming(make_facts("release", "held", **change))) == ("off", "Releasing")
    silent = plan_arming(make_facts("release", "held", ArmingAnswer("silent", "no route to west"), **change))
    assert read(silent) == ("off", "Releasing")
    assert silent.condition is not None and "no route to west" in silent.condition.message
    assert "weft replication run-alone" in silent.condition.message
    assert read(plan_arming(make_facts("release", "held", ArmingAnswer("refused", "forbidden"), **change)))[0] == "off"
    assert read(plan_arming(make_facts("release", "held", OFF, **change))) == ("end", "-")
    # Nothing was told before the nodes held it.
    assert plan_arming(make_facts("begin", "ready", **change)).step == "end"


def test_who_changes_their_mind_while_it_is_released_begins_again() -> None:
    assert plan_arming(make_facts("release", "held")).step == "off"
    assert plan_arming(make_facts("release", "held", OFF)).step == "end"


def test_a_copy_that_was_promoted_meanwhile_lets_nobody_go_before_the_vm_has_ended() -> None:
    for guard in ("hold", "release"):
        assert read(plan_arming(make_facts(guard, "held", ArmingAnswer("promoted")))) == ("", "Left")
    for change in ({"phase": "Stale"}, {"is_fenced": True}):
        assert read(plan_arming(make_facts("hold", "held", ON, **change))) == ("", "Left")
        ended = [Placed("n1", "hold", "held", at_rest=True)]
        assert plan_arming(make_facts("hold", "held", ON, placed=ended, **change)).step == "end"
        assert plan_arming(make_facts("hold", "held", ON, placed=[*ended, PLACE], **change)).step == ""


def test_nothing_takes_over_for_what_is_left_of_a_vm_that_migrated_to_another_cluster_nor_while_it_does() -> None:
    west = Item(CLUSTER.make("west", ClusterSpec(url="https://10.0.0.1", ca="c"), 1.0, uid="c", creator="user:x"))
    replication = Item(REPLICATION.make("web", SPEC, 1.0, uid="r", project="default", creator="user:x"))
    for marks, fenced, migrates in (
        (WorkloadMarks(departed="west/default/web"), True, False),
        (WorkloadMarks(arrives="web-m"), False, True),
        (WorkloadMarks(), False, False),
    ):
        view = make_view()
        vm = VM.make("web", VmSpec(image="i"), 1.0, uid="v", project="default", creator="user:x", marks=marks)
        view.put_item(vm.key, Item(vm))
        group = cast(Group, SimpleNamespace(item=replication, claim=None))
        facts = read_arming_facts(view, west, group, None, None)
        assert (facts.is_fenced, facts.migrates) == (fenced, migrates)
    assert plan_arming(make_facts(is_fenced=True)).step == ""
    assert plan_arming(make_facts(migrates=True)).step == ""
    assert plan_arming(make_facts("hold", "held", ON, migrates=True)).step == "release"


def test_what_is_missing_is_said() -> None:
    for facts, reason, said in (
        (make_facts(has_point=False), "Preparing", "no point yet"),
        (make_facts(is_witnessed=False), "NotConfirmed", "both clusters have to name"),
        (make_facts(has_witness=False), "Off", "weft cluster witness west"),
        (make_facts("begin", "no cgroup"), "NotGuarded", "n1 can't end the VM in time: no cgroup"),
        (make_facts("hold", "no cgroup", ON), "NotGuarded", "weft vm migrate"),
        (make_facts("hold", "held", ON, is_witnessed=False), "NotConfirmed", "nothing takes over until it does"),
        (
            make_facts("hold", "held", ArmingAnswer("refused", "forbidden")),
            "NotTaken",
            "west refuses to take over: forbidden",
        ),
    ):
        plan = plan_arming(facts)
        assert plan.condition is not None and plan.condition.status == "False"
        assert (plan.condition.reason, said in plan.condition.message) == (reason, True), plan.condition.message


def test_a_place_that_does_not_know_of_the_hold_gets_to_know_it() -> None:
    assert plan_arming(make_facts("hold", "held", ON, placed=[Placed("n2", "", "")])).step == "hold"


def test_a_later_turn_that_the_other_cluster_knows_is_outrun() -> None:
    later = ArmingAnswer("overtaken", "", True, 9)
    assert plan_arming(make_facts("hold", "held", later)).step == "hold"
    assert plan_arming(make_facts("release", "held", later)).step == "release"
    # This cluster's store is of an earlier time than what the other one was told.
    off = replace(SPEC, automatic=False)
    assert plan_arming(make_facts(spec=off, told=ArmingAnswer("done", "", True, 9))).step == "release"
    assert plan_arming(make_facts(spec=off, told=ArmingAnswer("done", "", False, 9))).step == ""


def test_people_who_are_sure_end_it_without_an_answer() -> None:
    alone: dict[str, Any] = {"spec": replace(SPEC, automatic=False), "actions": ALONE}
    assert plan_arming(make_facts("release", "held", ArmingAnswer("silent"), **alone)).step == "end"
    assert plan_arming(make_facts("hold", "held", **alone)).step == "release"  # a turn that the witness can be told of
    assert plan_arming(make_facts("release", "held", **alone)).step == "end"
    assert plan_arming(make_facts("release", "held", **alone, retired="asking")).step == "off"


def test_the_witness_s_word_that_nothing_is_granted_ends_the_hold_as_the_other_cluster_s_does() -> None:
    for told in (None, ArmingAnswer("silent", "no route"), ArmingAnswer("refused", "forbidden")):
        released = make_facts("release", "held", told)
        assert plan_arming(replace(released, retired="yes")).step == "end"
        assert plan_arming(replace(released, retired="asking")).step == "off"
        assert read(plan_arming(replace(released, retired="taken"))) == ("", "Granted")
    alone: dict[str, Any] = {"spec": replace(SPEC, automatic=False), "actions": ALONE}
    taken = plan_arming(make_facts("release", "held", **alone, retired="taken"))
    assert read(taken) == ("", "Granted"), "the copy runs, so the VM here doesn't run alone"


def test_a_vm_that_runs_alone_is_so_until_its_copy_cannot_take_over() -> None:
    alone: dict[str, Any] = {"spec": replace(SPEC, automatic=False), "actions": ALONE}
    assert read(plan_arming(make_facts(**alone))) == ("", "Alone")
    for change in ({"retired": "yes"}, {"has_witness": False}, {"told": ArmingAnswer("done", "", False, 3)}):
        assert plan_arming(make_facts(**alone, **change)).step == "settle"
    # The copy was told nothing since: what was on its way could still count.
    assert plan_arming(make_facts(**alone, told=ArmingAnswer("done", "", False, 2))).step == "release"
    assert plan_arming(make_facts(**alone, told=ArmingAnswer("done", "", True, 3))).step == "release"


@pytest.mark.parametrize(
    ("said", "is_settled", "is_alone"),
    [
        (None, False, True),
        (None, True, False),
        (ArmingAnswer("done"), False, False),
        (ArmingAnswer("silent"), False, True),
    ],
)
def test_who_answered_nothing_stays_asked(said: ArmingAnswer | None, is_settled: bool, is_alone: bool) -> None:
    view = make_view()
    spec, marks = ReplicationSpec(of="vm/web", cluster="west"), ReplicationMarks(guard="release", arming=4)
    made = REPLICATION.make("web", spec, 1.0, uid="r", project="default", actions=ALONE, marks=marks)
    view.put_item(made.key, Item(made))
    commit = plan_step(view, Item(made), ArmingPlan("end"), said, "witnesses", is_settled=is_settled)
    assert commit is not None
    after = decode_envelope(commit.writes[0].value, 1)  # type: ignore[union-attr]
    assert decode_part(after.marks, ReplicationMarks).guard == ""
    assert decode_part(after.actions, ReplicationActions).alone == is_alone
    assert [event.reason for event in commit.events] == (["RunsAlone"] if is_alone else [])


def test_a_replication_that_was_never_automatic_says_nothing_of_it() -> None:
    plan = plan_arming(make_facts(spec=replace(SPEC, automatic=False)))
    assert plan.step == "" and plan.condition is not None and not plan.condition.reason


def test_one_replication_of_a_vm_is_automatic_and_none_takes_the_hold_of_another_away() -> None:
    """Both would take over, and the end of the one would let the nodes go while the other's replica may take over."""
    plan = plan_arming(make_facts(rival="web-south"))
    assert read(plan) == ("", "Off")
    assert plan.condition is not None and "replication/web-south" in plan.condition.message
    view = make_view()
    vm = VM.make("web", VmSpec(image="tiny"), 1.0, uid="v", project="default", marks=WorkloadMarks(guard="hold"))
    view.put_item(vm.key, Item(vm))
    for name, guard in (("web-west", "release"), ("web-south", "hold")):
        spec, held = ReplicationSpec(of="vm/web", cluster=name), ReplicationMarks(guard=guard)  # type: ignore[arg-type]
        made = REPLICATION.make(name, spec, 1.0, uid=name, project="default", marks=held)
        view.put_item(made.key, Item(made))
    for name, step in (("web-west", "end"), ("web-west", "begin")):
        replication = view.get(f"/replication/default/{name}")
        assert replication is not None
        commit = plan_step(view, replication, ArmingPlan(step), None, "witnesses")  # type: ignore[arg-type]
        assert commit is not None
        written = {write.key: write for write in commit.writes}
        after = decode_part(decode_envelope(written[vm.key].value, 1).marks, WorkloadMarks)  # type: ignore[union-attr]
        assert after.guard == "hold"


def test_a_pause_is_over_only_once_no_node_holds_the_vm() -> None:
    paused = replace(SPEC, paused=True)
    for word, reason in (("held", "Releasing"), ("ready", "Off"), ("", "Off")):
        plan = plan_arming(make_facts(said=word, spec=paused))
        assert read(plan) == ("", reason)
    goal = REPLICATION.lifetime.goals["pause"]
    for reason, guard, is_reached in (
        ("Armed", "", False),
        ("Releasing", "", False),
        ("Releasing", "release", False),
        ("Off", "", True),
        ("", "", True),
    ):
        conditions = [{"type": "Automatic", "status": "False", "reason": reason}] if reason else []
        obj = {"marks": {"guard": guard}, "status": {"phase": "Paused"}, "conditions": conditions}
        assert goal.reached(obj) is is_reached
