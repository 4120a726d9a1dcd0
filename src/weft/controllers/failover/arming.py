"""How a replication's replica comes to take over automatically, and how it stops doing so. Pure.

A replica may take over only while each node that may run the VM ends it in time. So nodes show first that they can (``begin``),
then they hold the VM (``hold``), and only then the other cluster is told. Back: the other cluster is told first; only its
answer lets the nodes go (``release``). Each step is one commit, and what was told has a number, so that nothing that was late
counts after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from weft.client.cluster.hold import ArmingAnswer
from weft.contracts.journal import Event
from weft.controllers.failover.facts import Group
from weft.failover.primary import is_confirmed, is_retired
from weft.failover.timing import CLUSTERS
from weft.informer.commit import Commit, Draft, edit, put, unchanged
from weft.informer.view import Item, View
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocationReport, AllocationSpec, is_at_rest
from weft.kinds.cluster import ClusterSpec
from weft.kinds.fields.allocated_migration import is_between_clusters
from weft.kinds.fields.cluster.link import (
    ALONE,
    ARMED,
    GRANTED,
    LEFT,
    NOT_CONFIRMED,
    NOT_GUARDED,
    NOT_TAKEN,
    OFF,
    PREPARING,
    RELEASING,
    TURNED_OFF,
)
from weft.kinds.node import NODES_BY_UID, NodeReport
from weft.kinds.parts.workload import WorkloadMarks
from weft.kinds.replication import (
    REPLICATIONS_BY_SUBJECT,
    ReplicationActions,
    ReplicationMarks,
    ReplicationSpec,
    ReplicationStatus,
    subject_of,
)
from weft.objects.envelope import Condition, merge_part
from weft.objects.errors import WeftError
from weft.objects.quantity import format_duration
from weft.protocol.failover.claim import Newer
from weft.protocol.failover.guarded import HELD, READY
from weft.protocol.failover.witness import WitnessAnswer

ArmingStep = Literal["", "begin", "hold", "on", "release", "off", "end", "settle"]
_OVER = "Stale"  # the replica was promoted


class Placed(msgspec.Struct, frozen=True):
    """An allocation of the VM."""

    node: str
    guard: str  # of its spec
    word: str  # by its node: ready, held, why it can't be held, or ""
    at_rest: bool = False  # nothing of it runs, nor will


class ArmingFacts(msgspec.Struct, frozen=True, kw_only=True):
    spec: ReplicationSpec
    actions: ReplicationActions
    marks: ReplicationMarks
    phase: str
    has_point: bool
    deleting: bool = False
    has_vm: bool = True  # the VM that it was made for
    is_fenced: bool = False  # the VM was left to another cluster, or has migrated to one
    migrates: bool = False  # the VM is on its way to another cluster, or from there
    rival: str = ""  # another replication that has its nodes hold the VM, or begin to
    has_witness: bool = True
    is_witnessed: bool = True  # the witness promises, and knows both clusters
    retired: Literal["", "yes", "asking", "taken"] = ""  # by the witness: see ``_read_retired``
    placed: Sequence[Placed] = ()
    answer: ArmingAnswer | None = None  # what the other cluster answered to this very turn


class ArmingPlan(msgspec.Struct, frozen=True):
    step: ArmingStep = ""
    condition: Condition | None = None  # None: as it is; one without a reason: it has none


def read_arming_facts(
    view: View,
    cluster: Item,
    group: Group,
    answered: WitnessAnswer | WeftError | None,
    answer: ArmingAnswer | None,
    asked_as: Item | None = None,
) -> ArmingFacts:
    """``asked_as``: the replication when the witness was asked."""
    item = group.item
    spec, status = item.spec(ReplicationSpec), item.status(ReplicationStatus)
    vm = view.get(subject_of(item))
    same = vm is not None and status.workload_uid in ("", vm.uid)
    return ArmingFacts(
        spec=spec,
        actions=item.actions(ReplicationActions),
        marks=item.marks(ReplicationMarks),
        phase=status.phase,
        has_point=status.point is not None,
        deleting=item.deleting,
        has_vm=same and vm is not None and not vm.deleting,
        is_fenced=same and vm is not None and bool(vm.marks(WorkloadMarks).fenced or vm.marks(WorkloadMarks).departed),
        migrates=same and vm is not None and _is_between_clusters(view, vm),
        rival=next((one.envelope.name for one in _list_rivals(view, item)), ""),
        has_witness=cluster.spec(ClusterSpec).witness is not None,
        is_witnessed=isinstance(answered, WitnessAnswer) and is_confirmed(group.claim, answered),
        retired=_read_retired(group, asked_as, answered),
        placed=[_read_placed(view, one, vm.uid) for one in view.find(ALLOCATIONS_BY_WORKLOAD, vm.uid)]
        if same and vm is not None
        else [],
        answer=answer,
    )


def _read_retired(
    group: Group, asked_as: Item | None, answered: WitnessAnswer | WeftError | None
) -> Literal["", "yes", "asking", "taken"]:
    """Whether the witness has on disk that no copy of an earlier turn takes over: yes; asking, it wasn't asked in this
    turn yet; taken, it granted a take-over before; "": it says nothing."""
    turn = group.item.marks(ReplicationMarks).arming
    if not isinstance(answered, WitnessAnswer):
        return ""
    if isinstance(answered.answer, Newer):
        return "taken"
    if asked_as is None or asked_as.marks(ReplicationMarks).arming != turn or _is_held(asked_as):
        return "asking"
    return "yes" if is_retired(group.claim, answered, turn) else ""


def _is_held(replication: Item) -> bool:
    return replication.marks(ReplicationMarks).guard == "hold"


def _list_rivals(view: View, replication: Item) -> list[Item]:
    """Other replications of the same VM that have a guard of their own."""
    there = view.find(REPLICATIONS_BY_SUBJECT, subject_of(replication))
    return [one for one in there if one.uid != replication.uid and one.marks(ReplicationMarks).guard]


def _is_between_clusters(view: View, workload: Item) -> bool:
    places = [one.spec(AllocationSpec) for one in view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid)]
    return bool(workload.marks(WorkloadMarks).arrives) or any(is_between_clusters(one.migration) for one in places)


def _read_placed(view: View, allocation: Item, uid: str) -> Placed:
    spec = allocation.spec(AllocationSpec)
    nodes = view.find(NODES_BY_UID, spec.node_uid)
    word = next((node.report(NodeReport).guards.get(uid, "") for node in nodes), "")
    return Placed(spec.node, spec.guard, word, is_at_rest(spec, allocation.report(AllocationReport)))


def plan_arming(facts: ArmingFacts) -> ArmingPlan:
    guard, alone, west = facts.marks.guard, facts.actions.alone, facts.spec.cluster
    why_not = _explain_off(facts)
    if facts.phase == _OVER or facts.is_fenced:
        if guard and all(one.at_rest for one in facts.placed):
            return ArmingPlan("end")
        return (
            _plan_note("False", LEFT, f"the VM was left to {west}: nothing takes over from here") if guard else _quiet()
        )
    match guard:
        case "":
            return _plan_unguarded(facts, why_not)
        case "begin" if why_not or alone:
            return ArmingPlan("end")
        case "begin":
            if (plan := _find_unready(facts, READY)) is not None:
                return plan
            return _preparing("hold", "its nodes can end the VM in time, and hold it from now on")
        case "hold" if why_not or alone:
            return _releasing("release", f"waits for {west} to answer that it takes over nothing", why_not)
        case "hold":
            return _plan_held(facts)
        case _:
            return _plan_release(facts, why_not)


def _explain_off(facts: ArmingFacts) -> str:
    """Why nothing shall take over, or ""."""
    spec = facts.spec
    if not spec.automatic:
        return f"{TURNED_OFF}: weft replication set NAME --automatic turns it on"
    if facts.deleting:
        return "the replication is being deleted"
    if spec.paused:
        return "the replication is paused: weft replication resume NAME"
    if facts.actions.handover:
        return "the VM is handed over by people: weft replica promote there, or weft replication take-back here"
    if not facts.has_vm:
        return f"{spec.of} is gone"
    if facts.migrates:
        return f"{spec.of} migrates to another cluster, or comes from there: wait for that"
    if not facts.has_witness:
        return (
            f"the link has no witness, which a take-over needs: weft cluster witness {spec.cluster} URL --token TOKEN"
        )
    return ""


def _plan_unguarded(facts: ArmingFacts, why_not: str) -> ArmingPlan:
    west = facts.spec.cluster
    if facts.answer is not None and facts.answer.outcome == "promoted":
        return _plan_note("False", LEFT, f"{west} has promoted its copy: the VM here ends, and stays stopped")
    if facts.answer is not None and facts.answer.automatic:  # this store is older than what the other cluster was told
        return _releasing("release", f"{west} may take over, by a later state of this cluster than the present one", "")
    if facts.actions.alone:
        answer = facts.answer
        if answer is not None and 0 < answer.arming < facts.marks.arming:  # a word that is still on its way could count
            return _releasing("release", f"{west} answers again: now it learns that nothing takes over", "")
        if answer is not None or facts.retired == "yes" or not facts.has_witness:
            return ArmingPlan("settle")
        message = (
            f"the VM runs without the word of {west}, as people asked, and automatic is off; neither {west} nor the witness "
            "has answered yet that the copy there takes over no more"
        )
        return _plan_note("False", ALONE, message)
    if why_not:
        if holding := [one.node for one in facts.placed if one.word == HELD and not one.guard]:
            return _releasing("", f"{', '.join(holding)} doesn't let the VM go yet", why_not)
        return _plan_note("False", OFF, why_not) if facts.spec.automatic else _quiet()
    if facts.rival:
        message = f"replication/{facts.rival} of the same VM has its nodes hold it: two clusters would take over"
        return _plan_note("False", OFF, message)
    if not facts.has_point:
        return _preparing("", "the replica has no point yet")
    if not facts.is_witnessed:
        message = "the witness doesn't promise this cluster anything yet: both clusters have to name this one as primary to it"
        return _plan_note("False", NOT_CONFIRMED, message)
    return _preparing("begin", "its nodes find out whether they can end the VM in time")


def _plan_held(facts: ArmingFacts) -> ArmingPlan:
    west, answer = facts.spec.cluster, facts.answer
    if any(one.guard != "hold" for one in facts.placed):
        return ArmingPlan("hold")
    if answer is None or answer.outcome == "silent":
        if (plan := _find_unready(facts, HELD)) is not None:
            return plan
        waits = answer.message if answer is not None else "it learns it now"
        return _preparing("on", f"{west} doesn't know yet that it may take over: {waits}")
    if answer.outcome == "promoted":
        return _plan_note("False", LEFT, f"{west} has promoted its copy: the VM here ends, and stays stopped")
    if answer.outcome == "overtaken":
        return _preparing("hold", f"{west} knows a later turn of this cluster")
    if answer.outcome == "refused":
        message = f"{west} refuses to take over: {answer.message}"
        return ArmingPlan("on", _make("False", NOT_TAKEN, message))
    if not facts.is_witnessed:
        message = "the witness doesn't confirm this cluster as primary now, so it helps no other: nothing takes over until it does"
        return _plan_note("False", NOT_CONFIRMED, message)
    if problems := _list_problems(facts, HELD):
        return _plan_note("False", NOT_GUARDED, "; ".join(problems))
    lease, promise = format_duration(CLUSTERS.lease), format_duration(CLUSTERS.promise)
    message = (
        f"{west} takes over once neither it nor the witness has heard of this cluster for {promise}; cut off from both, this "
        f"cluster ends the VM after {lease}"
    )
    return _plan_note("True", ARMED, message)


def _plan_release(facts: ArmingFacts, why: str) -> ArmingPlan:
    west, answer = facts.spec.cluster, facts.answer
    if answer is not None and answer.outcome == "done":
        return ArmingPlan("end")
    if facts.retired == "yes":
        return ArmingPlan("end")
    if facts.retired == "taken" and (answer is None or answer.outcome in ("silent", "refused")):
        message = (
            f"the witness let {west} take over: the VM here is held until {west} has answered that it didn't, and gave "
            "that back"
        )
        return _plan_note("False", GRANTED, message)
    if facts.actions.alone and facts.retired != "asking":
        return ArmingPlan("end")
    if answer is not None and answer.outcome == "overtaken":
        return ArmingPlan("release")
    if answer is not None and answer.outcome == "promoted":
        return _plan_note("False", LEFT, f"{west} has promoted its copy: the VM here ends, and stays stopped")
    waits = f"waits for {west} or the witness to answer that nothing takes over; the VM runs as before"
    if answer is not None and answer.message:
        waits += f" ({answer.message}). If its copy runs nowhere and never will: weft replication run-alone NAME"
    return _releasing("off", waits, why)


def _find_unready(facts: ArmingFacts, word: str) -> ArmingPlan | None:
    if not (problems := _list_problems(facts, word)):
        return None
    cannot = any(one.word not in ("", READY, HELD) for one in facts.placed)
    return _plan_note("False", NOT_GUARDED if cannot else PREPARING, "; ".join(problems))


def _list_problems(facts: ArmingFacts, word: str) -> list[str]:
    """Problems of the nodes that haven't said ``word`` of the VM."""
    found = []
    for one in facts.placed:
        if one.word == word:
            continue
        if one.word in ("", READY, HELD):
            found.append(f"{one.node} doesn't hold the VM yet")
        else:
            found.append(f"{one.node} can't end the VM in time: {one.word}; weft vm migrate takes it to another node")
    return found


def _make(status: Literal["True", "False"], reason: str, message: str) -> Condition:
    return Condition("Automatic", status, reason, message)


def _plan_note(status: Literal["True", "False"], reason: str, message: str) -> ArmingPlan:
    return ArmingPlan("", _make(status, reason, message))


def _preparing(step: ArmingStep, message: str) -> ArmingPlan:
    return ArmingPlan(step, _make("False", PREPARING, message))


def _releasing(step: ArmingStep, message: str, why: str) -> ArmingPlan:
    return ArmingPlan(step, _make("False", RELEASING, f"{message} ({why})" if why else message))


def _quiet() -> ArmingPlan:
    return ArmingPlan("", _make("False", "", ""))


def plan_step(
    view: View,
    replication: Item,
    plan: ArmingPlan,
    answer: ArmingAnswer | None,
    source: str,
    *,
    is_settled: bool = False,
) -> Commit | None:
    """The commit of a step; None for what is told to the other cluster. ``is_settled``: the witness answered instead.
    The VM is among what it relies on, so that no allocation is
    made beside it that doesn't know of the step."""
    spec, asked, marks = (
        replication.spec(ReplicationSpec),
        replication.actions(ReplicationActions),
        replication.marks(ReplicationMarks),
    )
    known = max(marks.arming, answer.arming if answer is not None else 0)
    events, is_alone = list[Event](), asked.alone
    guard: Literal["", "begin", "hold"] | None = None  # of the VM; None: as it is
    match plan.step:
        case "begin":
            marks, guard = replace(marks, guard="begin"), "begin"
        case "hold":
            marks, guard = ReplicationMarks(guard="hold", arming=known + 1), "hold"
        case "release":
            marks, guard = ReplicationMarks(guard="release", arming=known + 1), None
        case "end":
            is_answered = is_settled or (answer is not None and answer.outcome == "done")
            marks, guard = replace(marks, guard=""), ""
            is_alone = asked.alone and not is_answered
            if is_alone:
                message = (
                    f"{spec.of} runs without the word of {spec.cluster}, as people asked, and automatic is off: its copy "
                    "must run nowhere"
                )
                events.append(Event("Warning", "RunsAlone", message, replication.envelope.ref, source))
        case "settle":
            is_alone = False
        case _:
            return None
    draft = Draft()
    settled = None if is_alone == asked.alone else replace(asked, alone=is_alone)
    draft.change(replication, actions=settled, marks=marks)
    vm = view.get(subject_of(replication))
    same = vm is not None and replication.status(ReplicationStatus).workload_uid in ("", vm.uid)
    if vm is not None and same and guard is not None:
        _guard_workload(draft, view, vm, _find_strongest(guard, _list_rivals(view, replication)))
    return draft.commit(replication.key, events)


def _find_strongest(guard: Literal["", "begin", "hold"], rivals: Sequence[Item]) -> Literal["", "begin", "hold"]:
    """The order to nodes that suits all replications of the VM together: none takes away what another needs."""
    needed = {guard, *(one.marks(ReplicationMarks).guard for one in rivals)}
    if needed & {"hold", "release"}:
        return "hold"
    return "begin" if "begin" in needed else ""


def _guard_workload(draft: Draft, view: View, workload: Item, guard: Literal["", "begin", "hold"]) -> None:
    draft.change(workload, marks=replace(workload.marks(WorkloadMarks), guard=guard))
    for allocation in view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid):
        spec = allocation.spec(AllocationSpec)
        if spec.guard != guard:
            envelope = edit(allocation)
            envelope.spec = merge_part(envelope.spec, replace(spec, guard=guard))
            envelope.generation += 1
            draft.writes.append(put(envelope))
        draft.preconditions.append(unchanged(allocation))
