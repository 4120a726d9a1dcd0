"""A VM whose replica takes over automatically: what people can't do with it, and what its replica accepts."""

from __future__ import annotations

from typing import Any

import pytest

from weft.kinds.fields.cluster.link import read_automatic
from weft.kinds.parts.convert_verb import refuse_guarded
from weft.kinds.parts.workload import WorkloadMarks
from weft.kinds.replica import REPLICA, ArmInput, HoldInput, PromoteInput
from weft.kinds.replication import REPLICATION
from weft.kinds.vm import VM, VmSpec
from weft.objects.errors import IllegalTransition


def test_the_allocation_of_a_guarded_vm_says_so() -> None:
    record = VM.workload
    assert record is not None
    for guard in ("", "begin", "hold"):
        assert record.allocate(VmSpec(image="tiny"), WorkloadMarks(guard=guard))["guard"] == guard  # type: ignore[arg-type]


def test_what_it_would_be_converted_to_ran_unguarded_so_it_is_refused() -> None:
    obj: dict[str, Any] = {"kind": "vm", "name": "web", "spec": {}, "marks": {"guard": "hold"}}
    with pytest.raises(IllegalTransition, match="takes over automatically") as refused:
        refuse_guarded(obj)
    assert "weft replication pause" in (refused.value.hint or "")


SPEC = {"of": "vm/web", "origin": "o"}


def arm(replica: dict[str, Any], arming: int, *, automatic: bool = True, **more: Any) -> dict[str, Any]:
    verb = REPLICA.verb("arm")
    assert verb is not None and verb.act is not None
    marks = {"role": "standby", "renewals": 7, "arming": 4, **replica}
    link = {"spec": {"grants": ["replicate", "take-over"], "witness": {"url": "https://x"}}}
    status = {"points": [{"number": 1}], **more.pop("status", {})}
    others = {"cluster/east": link, **more.pop("others", {})}
    obj = {
        "kind": "replica",
        "name": "web",
        "created_by": "cluster:east",
        "spec": more.pop("spec", SPEC),
        "marks": marks,
        "status": status,
        "others": others,
    }
    return verb.act(obj, ArmInput(origin=replica.get("asked_by", "o"), automatic=automatic, arming=arming))


def test_a_replica_takes_the_newest_word_and_counts_it_as_a_renewal() -> None:
    for arming in (4, 5):
        after = arm({}, arming)
        assert (after["automatic"], after["arming"], after["renewals"]) == (True, arming, 8)
    nothing: dict[str, Any] = {"cluster/east": {"spec": {"grants": []}}}
    assert arm({"automatic": True}, 5, automatic=False, others=nothing)["automatic"] is False


@pytest.mark.parametrize(
    ("replica", "arming", "more", "reason"),
    [
        ({}, 3, {}, "overtaken"),
        ({"role": "primary"}, 5, {}, "staleGeneration"),
        ({"asked_by": "other"}, 5, {}, "otherOrigin"),
        ({"restored": True}, 5, {}, "restored"),
        ({}, 5, {"others": {"vm/web": {"uid": "u"}}}, "nameTaken"),
        (
            {},
            5,
            {"spec": {**SPEC, "disks": {"root": 1, "data": 1}}, "others": {"volume/web-data": {"uid": "u"}}},
            "nameTaken",
        ),
        ({}, 5, {"others": {"cluster/east": {"spec": {"grants": ["replicate"]}}}}, "notGranted"),
        ({}, 5, {"others": {"cluster/east": {"spec": {"grants": ["take-over"]}}}}, "noWitness"),
        ({}, 5, {"status": {"points": []}}, "noPoint"),
    ],
)
def test_a_word_that_can_not_count_is_refused(
    replica: dict[str, Any], arming: int, more: dict[str, Any], reason: str
) -> None:
    with pytest.raises(IllegalTransition) as refused:
        arm(replica, arming, **more)
    assert refused.value.token == reason and refused.value.hint


def test_a_copy_of_a_restored_store_promises_nothing_to_its_source() -> None:
    verb = REPLICA.verb("renew")
    assert verb is not None and verb.act is not None
    obj = {"name": "web", "spec": {"origin": "o"}, "marks": {"role": "standby", "restored": True}}
    with pytest.raises(IllegalTransition) as refused:
        verb.act(obj, HoldInput(origin="o"))
    assert refused.value.token == "restored" and refused.value.hint


def test_people_promote_once_the_witness_was_asked() -> None:
    """In the first seconds of a link with a witness nobody knows yet whether its source answers there."""
    verb = REPLICA.verb("promote")
    assert verb is not None and verb.act is not None and verb.reads is not None
    point = {"number": 1, "snapshot": "p", "snapshot_uid": "u"}
    snapshot = {"name": "p", "uid": "u", "status": {"phase": "Ready", "workload_spec": {}, "disks": {}}}
    link: dict[str, Any] = {"spec": {"witness": {"url": "https://x"}}}
    obj: dict[str, Any] = {
        "name": "web",
        "created_by": "cluster:east",
        "spec": {"of": "vm/web", "origin": "o"},
        "marks": {"role": "standby"},
        "status": {"points": [point]},
        "others": {"snapshot/p": snapshot, "cluster/east": link},
    }
    assert ("cluster", "east") in verb.reads(obj, PromoteInput())
    with pytest.raises(IllegalTransition, match="hasn't answered yet") as refused:
        verb.act(obj, PromoteInput())
    assert refused.value.token == "primaryAnswers" and "--force" in (refused.value.hint or "")
    assert verb.act(obj, PromoteInput(force=True))["role"] == "primary"
    last = {**obj, "status": {"points": [{**point, "final": True}]}}
    assert verb.act(last, PromoteInput())["role"] == "primary"
    for reason, link_there in (("PrimarySilent", link), ("Unreachable", link), ("", {"spec": {}})):
        said = [{"type": "Witnessed", "reason": reason, "message": ""}] if reason else []
        there = {**obj, "conditions": said, "others": {**obj["others"], "cluster/east": link_there}}
        assert verb.act(there, PromoteInput())["role"] == "primary"


@pytest.mark.parametrize(
    ("phase", "refused"),
    [("Linked", True), ("Suspect", True), ("Refused", True), ("Unreachable", False), ("Pending", False), ("", False)],
)
def test_people_promote_beside_a_source_that_answers_only_once_it_handed_over_or_by_force(
    phase: str, refused: bool
) -> None:
    """The refusal says both what would write twice, and what would be lost."""
    verb = REPLICA.verb("promote")
    assert verb is not None and verb.act is not None
    points = [{"number": number, "snapshot": "p", "snapshot_uid": "u"} for number in (61, 62)]
    snapshot = {"name": "p", "uid": "u", "status": {"phase": "Ready", "workload_spec": {}, "disks": {}}}
    link = {"cluster/east": {"spec": {}, "status": {"phase": phase}}} if phase else {}
    obj: dict[str, Any] = {
        "name": "shop-copy",
        "created_by": "cluster:east",
        "spec": {"of": "vm/shop", "origin": "o"},
        "marks": {"role": "standby"},
        "status": {"points": points},
        "others": {"snapshot/p": snapshot, **link},
    }
    if refused:
        with pytest.raises(IllegalTransition) as told:
            verb.act(obj, PromoteInput())
        assert told.value.token == "primaryAnswers"
        assert "vm/shop may still run there, and both would write" in told.value.message
        assert "after point 62 would be lost" in told.value.message
        assert "hand-over" in str(told.value.hint) and "promote shop-copy --force" in str(told.value.hint)
    else:
        assert verb.act(obj, PromoteInput())["role"] == "primary"
    assert verb.act(obj, PromoteInput(force=True))["role"] == "primary"
    handed_over = {**obj, "status": {"points": [points[0], {**points[1], "final": True}]}}
    for point in (0, 61):
        assert verb.act(handed_over, PromoteInput(point=point))["role"] == "primary"
    taken_back = {**obj, "status": {"points": [{**points[0], "final": True}, points[1]]}}
    if refused:
        with pytest.raises(IllegalTransition):
            verb.act(taken_back, PromoteInput(point=61))


def test_a_vm_that_was_left_there_is_no_obstacle_since_it_goes_back() -> None:
    there = {"vm/web": {"uid": "u", "marks": {"fenced": "web"}}}
    assert arm({}, 5, status={"vm": "web", "vm_uid": "u"}, others=there)["automatic"] is True
    for uid, fenced in (("other", "web"), ("u", "")):
        there = {"vm/web": {"uid": uid, "marks": {"fenced": fenced}}}
        with pytest.raises(IllegalTransition, match="can't become vm/web"):
            arm({}, 5, status={"vm": "web", "vm_uid": "u"}, others=there)


def test_who_is_alone_says_so_only_where_somebody_could_take_over() -> None:
    verb = REPLICATION.verb("run-alone")
    assert verb is not None and verb.change is not None and verb.act is not None
    with pytest.raises(IllegalTransition):
        verb.act({"name": "web", "marks": {"guard": ""}}, None)
    obj = {"name": "web", "spec": {"automatic": True}, "marks": {"guard": "release"}}
    assert (verb.change(obj, None)["automatic"], verb.act(obj, None)["alone"]) == (False, True)


@pytest.mark.parametrize(
    ("said", "guard", "shown"),
    [
        ("NotTaken", "hold", "Releasing"),
        ("NotTaken", "", "Alone"),
        ("", "", "Alone"),
        ("Granted", "release", "Granted"),
        ("Alone", "", "Alone"),
    ],
)
def test_who_runs_alone_is_shown_so_before_the_condition_says_it(said: str, guard: str, shown: str) -> None:
    conditions = [{"type": "Automatic", "reason": said}] if said else []
    assert read_automatic({"actions": {"alone": True}, "marks": {"guard": guard}, "conditions": conditions}) == shown
    assert read_automatic({"marks": {"guard": guard}, "conditions": conditions}) == (said or "–")
