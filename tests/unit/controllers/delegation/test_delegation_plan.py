"""What a linked cluster is asked about a delegation, and what becomes of its status, whatever that cluster says."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.controllers.delegation.plan import Act, Delegated, Seen, plan_turn, plan_unreachable, read_seen
from weft.kinds.cluster import ClusterStatus
from weft.kinds.delegation import DELEGATION, DelegationActions, DelegationSpec, DelegationStatus, mark_workload
from weft.objects.errors import Forbidden, IllegalTransition, InvalidInput, NotFound, Unavailable, WeftError

SPEC = DelegationSpec(cluster="west", workload="vm", template={"image": "tiny"})
MARK = mark_workload({}, SPEC.template)
SENT = DelegationStatus(
    phase="Running", begun=True, uid="w", sent=MARK, project="lab", phase_there="Running", ready=True
)
THERE = Seen("w", "Running", "w1", "10.0.0.7", ready=True)
CHANGED = msgspec.structs.replace(SPEC, template={"image": "tiny", "memory": "1G"})


def make(
    status: DelegationStatus = SENT,
    spec: DelegationSpec = SPEC,
    asked: DelegationActions | None = None,
    **more: Any,
) -> Delegated:
    given = {"key": "k", "uid": "u", "name": "web", "deleting": False, "labels": {}, "project": "lab"}
    return Delegated(spec=spec, actions=asked or DelegationActions(), status=status, **{**given, **more})


def act_of(one: Delegated, seen: Seen | None) -> Act | None:
    return plan_turn(one, {"web": seen} if seen is not None else {}).act


def test_nothing_is_sent_before_it_is_noted_that_it_may_have_been() -> None:
    turn = plan_turn(make(DelegationStatus()), {})
    assert turn.act is None and turn.end(None) == (DelegationStatus(begun=True, project="lab"), False)
    act = act_of(make(DelegationStatus(begun=True)), None)
    assert act is not None and act.manifest["spec"] == {"image": "tiny"} and act.manifest["project"] == "lab"


def test_what_an_unheard_answer_made_there_is_taken_over_not_made_twice() -> None:
    """The server died between the request and the note of its answer."""
    one = make(DelegationStatus(begun=True))
    turn = plan_turn(one, {"web": THERE})
    assert turn.act is not None and turn.act.what == "put"  # to an object that is there: a change at most
    status, over = turn.end(THERE)
    assert (status.uid, status.phase, status.sent, over) == ("w", "Running", MARK, False)
    assert act_of(make(status), THERE) is None


def test_what_another_delegation_left_there_is_taken_over_only_if_people_say_so() -> None:
    one = make(DelegationStatus())
    turn = plan_turn(one, {"web": THERE})
    status, over = turn.end(None)
    assert turn.act is None and not over and not status.begun
    assert (status.phase, status.reason, status.uid) == ("Failed", "runsAlready", "")
    assert "adopt" in status.message and status.refused == MARK
    assert plan_turn(make(status), {}).begins, "it is gone there, and the name is free"
    ends = plan_turn(make(status, deleting=True), {"web": THERE})
    assert ends.end(None)[1] and ends.act is None, "it goes here, and nothing is deleted there"
    adopts = make(status, msgspec.structs.replace(SPEC, adopt=True))
    assert adopts.attempt != status.refused, "the wait for it begins anew"
    turn = plan_turn(adopts, {"web": THERE})
    assert turn.begins and turn.end(None)[0].begun
    act = act_of(make(turn.end(None)[0], adopts.spec), THERE)
    assert act is not None and act.what == "put" and "adopt" not in act.manifest["spec"]


@pytest.mark.parametrize("phase", ["Running", "Starting", "Stopped"])
def test_what_was_there_and_is_gone_is_not_made_again_by_itself(phase: str) -> None:
    turn = plan_turn(make(msgspec.structs.replace(SENT, phase=phase, phase_there=phase)), {})
    assert turn.act is None
    gone = turn.end(None)[0]
    assert (gone.phase, gone.absent, gone.ready) == ("Gone", True, False)
    again = make(gone, asked=DelegationActions(resends=1))
    assert act_of(again, None) is not None
    status, _ = plan_turn(again, {}).end(Seen("x", "Pending"))
    assert (status.phase, status.uid, status.resent, status.absent) == ("Starting", "x", 1, False)


@pytest.mark.parametrize(("there", "phase"), [("Succeeded", "Done"), ("Done", "Done"), ("Failed", "Failed")])
def test_what_ended_there_stays_so_when_it_is_cleaned_up_also_over_an_outage(there: str, phase: str) -> None:
    ended = plan_unreachable(
        make(msgspec.structs.replace(SENT, phase=phase, phase_there=there)), ClusterStatus(phase="Unreachable")
    )
    assert ended.phase == "Unknown"
    status, over = plan_turn(make(ended), {}).end(None)
    assert (status.phase, status.absent, over) == (phase, True, False)
    assert act_of(make(status, CHANGED), None) is None  # people say that it runs again
    assert act_of(make(status, asked=DelegationActions(resends=1)), None) is not None


@pytest.mark.parametrize("change", [{"spec": CHANGED}, {"labels": {"app": "shop"}}])
def test_a_change_is_sent_once_and_counts_when_the_next_list_has_it(change: dict[str, Any]) -> None:
    one = make(**change)
    act = act_of(one, THERE)
    assert act is not None and act.what == "put"
    status, _ = plan_turn(one, {"web": THERE}).end(THERE)
    assert not status.ready  # the answer may be of before
    assert act_of(make(status, **change), THERE) is None
    assert plan_turn(make(status, **change), {"web": THERE}).end(None)[0].ready


def test_what_was_sent_is_looked_for_where_it_was_sent() -> None:
    began = make(DelegationStatus(begun=True, project="lab"))
    act = act_of(began, None)
    assert act is not None and act.project == "lab"


def test_of_two_that_have_one_name_there_the_second_takes_nothing() -> None:
    second = make(DelegationStatus(), rival="another delegation")
    turn = plan_turn(second, {"web": THERE})
    assert turn.act is None and turn.end(None)[0].reason == "nameTaken"
    assert plan_turn(make(rival="another delegation", deleting=True), {}).end(None)[1] is False


def test_it_is_over_only_once_the_cluster_says_that_it_has_it_no_more() -> None:
    gone = make(deleting=True)
    turn = plan_turn(gone, {"web": THERE})
    assert turn.act is not None and (turn.act.what, turn.act.uid) == ("delete", "w")
    assert not turn.end(msgspec.structs.replace(THERE, deleting=True))[1]
    assert not plan_turn(gone, {"web": msgspec.structs.replace(THERE, deleting=True)}).end(None)[1]
    assert not plan_turn(gone, Forbidden("no")).end(None)[1]
    assert not plan_turn(gone, None).end(None)[1]
    assert not gone.is_over
    assert plan_turn(gone, {}).end(None)[1]
    assert not plan_turn(gone, {}).end(None, sure=False)[1]  # a request may still arrive
    assert make(DelegationStatus(), deleting=True).is_over  # nothing was ever sent
    assert make(asked=DelegationActions(abandoned=True), deleting=True).is_over


def test_one_made_while_its_predecessor_is_still_ending_there_begins_once_that_is_gone() -> None:
    status, over = plan_turn(make(DelegationStatus()), {"web": msgspec.structs.replace(THERE, deleting=True)}).end(None)
    assert (status.phase, status.uid, over) == ("Deleting", "", False)
    assert plan_turn(make(status), {}).begins


def test_an_abandoned_one_is_neither_changed_nor_deleted() -> None:
    left = DelegationActions(abandoned=True)
    for one in (make(asked=left, labels={"a": "b"}), make(asked=left, deleting=True)):
        assert act_of(one, THERE) is None and act_of(one, None) is None


@pytest.mark.parametrize(
    ("said", "reason", "phase"),
    [
        (Forbidden("no", details={"permission": "vm:update"}), "notGranted", "Running"),
        (Forbidden("more than the quota"), "refused", "Running"),
        (NotFound("vm web not found"), "nameTaken", "Running"),
        (NotFound("image tiny not found", field="spec.image"), "refused", "Running"),
        (InvalidInput("x" * 9999, field="spec.memory"), "refused", "Running"),
    ],
)
def test_a_refused_change_leaves_what_runs_and_is_tried_again(said: WeftError, reason: str, phase: str) -> None:
    one = make(spec=CHANGED)
    status, over = plan_turn(one, {"web": THERE}).end(said)
    assert (status.reason, status.phase, status.sent, over) == (reason, phase, MARK, False)
    assert len(status.message) < 400
    assert act_of(make(status, CHANGED), THERE) is not None


def test_a_silence_changes_nothing_until_the_link_says_so() -> None:
    assert plan_turn(make(spec=CHANGED), {"web": THERE}).end(Unavailable("no"))[0] == SENT
    unlisted = plan_turn(make(), InvalidInput("too long", reason="answerTooLong")).end(None)[0]
    assert (unlisted.phase, unlisted.reason, unlisted.ready) == ("Unknown", "cantBeAsked", False)
    assert plan_unreachable(make(), ClusterStatus(phase="Unreachable")).phase == "Unknown"
    assert plan_unreachable(make(DelegationStatus()), ClusterStatus(phase="Suspect")).phase == "Pending"
    assert "no project" in plan_turn(make(project=""), None).end(None)[0].message


@pytest.mark.parametrize("hostile", [None, 7, [], {}, "\x1b[31m" * 9999, {"phase": {}}, "\n\r\0"])
def test_words_of_a_hostile_cluster_are_cut_and_printable(hostile: Any) -> None:
    names = ("phase", "node", "address", "message")
    for obj in ({"uid": hostile, "status": hostile}, {"uid": "w", "status": dict.fromkeys(names, hostile)}):
        status, _ = plan_turn(make(), {"web": read_seen(obj)}).end(None)
        for text in (status.uid, status.phase_there, status.node, status.address, status.message):
            assert isinstance(text, str) and len(text) <= 300 and (text.isprintable() or not text)


@pytest.mark.parametrize(
    ("changes", "reached", "failed"),
    [
        ({}, True, False),
        ({"ready": False}, False, False),
        ({"sent": "older"}, False, False),
        ({"sent": "older", "refused": MARK, "reason": "refused"}, False, True),
        ({"sent": "older", "refused": "older", "reason": "refused", "phase": "Failed"}, False, False),
        ({"sent": "", "refused": MARK, "reason": "runsAlready"}, False, True),
        ({"sent": "", "refused": f"{MARK}+adopt", "reason": "runsAlready"}, False, False),
        ({"phase": "Failed", "ready": False}, False, True),
        ({"phase": "Failed", "ready": False, "absent": True}, False, True),
        ({"phase": "Gone", "ready": False, "absent": True, "sent": "older"}, False, True),
        ({"phase": "Gone", "ready": False, "absent": True, "resent": -1}, False, False),  # being created there again
        ({"phase": "Done", "ready": False, "absent": True}, True, False),
    ],
)
def test_a_command_ends_by_what_became_of_the_present_spec(
    changes: dict[str, Any], reached: bool, failed: bool
) -> None:
    status = msgspec.to_builtins(msgspec.structs.replace(SENT, **changes))
    obj = {"kind": "delegation", "name": "web", "generation": 3, "spec": msgspec.to_builtins(SPEC), "status": status}
    goal = DELEGATION.lifetime.goals["create"]
    assert DELEGATION.lifetime.find_failure is not None
    assert goal.reached(obj) is reached
    assert (DELEGATION.lifetime.find_failure(obj, "delegation/web", goal) is not None) is failed


@pytest.mark.parametrize(("phase", "why"), [("Unknown", "isn't known"), ("Running", "still has it")])
def test_a_resend_claims_only_what_is_known_of_the_other_cluster(phase: str, why: str) -> None:
    resend = DELEGATION.verb("resend")
    assert resend is not None and resend.act is not None
    obj = {"kind": "delegation", "name": "web", "spec": {}, "status": {"phase": phase, "absent": False}}
    with pytest.raises(IllegalTransition, match=why):
        resend.act(obj, None)
