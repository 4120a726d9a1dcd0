"""Answers a Recommendation: decides on a workload as it is, or with changes, and places nothing. Its own present place counts as
free. Pure but for the snapshot, which is restored afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.disruption.budgets import Allowance, Budgets
from weft.informer.view import Item, View
from weft.informer.workloads import gang_of, spec_of
from weft.insight.course import choose_window
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocationSpec
from weft.kinds.decision import Verdict
from weft.kinds.fields.gang import read_gang
from weft.kinds.migration import MigrationForecast, MigrationSpec, MigrationWindow
from weft.kinds.node import NODES_BY_UID, SILENT_PHASES, NodeStatus
from weft.kinds.parts.workload import OUT_OF_REACH, WORKLOADS_BY_GANG
from weft.kinds.profile import ProfileStatus, name_profile
from weft.kinds.recommendation import (
    AssumedWorkload,
    GangPlace,
    MigrationQuery,
    RecommendationSpec,
    RecommendationStatus,
)
from weft.kinds.record import Kind
from weft.kinds.registry import find_kind
from weft.objects.envelope import Envelope, merge_part
from weft.objects.errors import InvalidInput, NotFound, WeftError
from weft.objects.identity import new_uid, object_key
from weft.objects.schema import read_strict
from weft.scheduler.allocation.lease import Opening, find_slot
from weft.scheduler.allocation.preempt import describe_kept, find_way, read_need
from weft.scheduler.allocation.preempt import describe_way as describe_victims
from weft.scheduler.allocation.replan import Asked, describe_other, replan
from weft.scheduler.constraint.relax import relax
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import explain
from weft.scheduler.gang.explain import explain_places, explain_refusal
from weft.scheduler.gang.placement import GangMember, find_places
from weft.scheduler.migration.checkpointing import has_choice
from weft.scheduler.migration.target import (
    MigrationCandidate,
    decide,
    describe_refusal,
    describe_way,
    read_migration_candidate,
)
from weft.scheduler.queue.waiting import list_queue
from weft.scheduler.recommendation.advice import advise
from weft.scheduler.recommendation.suggest import FabricCache, suggest
from weft.scheduler.reservation.placing import find_within, without_slot
from weft.scheduler.table.facts import name_workload
from weft.scheduler.table.snapshot import Snapshot
from weft.scheduler.table.trial import Trial
from weft.scheduler.workload.request import Candidate, Waiting, read_candidate, wants_place
from weft.transfer.history import foresee

LEAD_SECONDS = 60.0  # until the earliest start of a migration in a window, so that capacity is reserved by then
DAY_SECONDS = 86_400.0


def plan_recommendation(
    view: View, engine: Engine, question: Item, strategy: str, now: float, cache: FabricCache
) -> Commit:
    """Write the answer into ``question``'s status."""
    try:
        if question.spec(RecommendationSpec).subject == "queue":
            queue, count = list_queue(view, engine, strategy, now, question.envelope.project)
            status = RecommendationStatus(phase="Done", queue=queue, queued=count)
        else:
            status = answer(view, engine, question, strategy, now, cache)
    except WeftError as problem:
        message = f"{problem.message}; {problem.hint}" if problem.hint else problem.message
        status = RecommendationStatus(phase="Failed", reason=problem.token, message=message)
    status.at = now
    envelope = edit(question)
    envelope.status = merge_part(envelope.status, status)
    return Commit(question.key, [put(envelope)], [unchanged(question)])


def answer(
    view: View, engine: Engine, question: Item, strategy: str, now: float, cache: FabricCache
) -> RecommendationStatus:
    """Raises NotFound for a missing object, InvalidInput for an invalid spec."""
    spec = question.spec(RecommendationSpec)
    workload, places = _read_workload(view, question, spec)
    kept = bool(spec.instead_of)
    if spec.migration is not None:
        return _answer_migration(view, engine, workload, spec.workload, spec.migration, strategy, now)
    candidate = read_candidate(view, workload, strategy, [])
    if isinstance(candidate, Waiting):
        return RecommendationStatus(phase="Failed", reason=candidate.reason, message=candidate.message)
    snapshot, preempts = engine.snapshot, list[str]()
    rows = _read_nodes(engine, spec.nodes)
    at = places[0].spec(AllocationSpec) if places and not kept else None
    here, silence = (at.node, _find_silence(view, at, spec.workload)[1]) if at is not None else ("", "")
    fabric = cache.read(view, snapshot, now) if spec.suggest and here and not spec.changes else None
    with snapshot.trial() as trial:
        keys = [place.key for place in places]
        if kept:
            trial.keep_capacity(keys)
        else:
            trial.drop(*keys)
        _assume(view, engine, trial, question.envelope.project, spec.assumed, strategy)
        request, given_up = relax(candidate.request, snapshot)
        if spec_of(workload).reservation is not None:
            return _answer_within(view, engine, msgspec.structs.replace(candidate, request=request), here, now)
        members = [GangMember(request, workload.uid, spec.workload or "member 1")]
        members += _find_company(view, workload, strategy, snapshot)
        if len(members) > 1:
            joint = find_places(engine, members, solver_seconds=0.0)
            explain_each = explain_refusal if joint.rows is None else explain_places
            explanation = explain_each(engine, members, joint, also=rows)[0]
            chosen = None if joint.rows is None else joint.rows[0]
            with_it = [
                GangPlace(workload=member.name, node=snapshot.names[row])
                for member, row in zip(members[1:], (joint.rows or ())[1:], strict=False)
            ]
        else:
            chosen = engine.choose(request, workload.uid)
            explanation, with_it = explain(engine, request, workload.uid, chosen, also=rows), []
            need = read_need(request, workload.uid, spec_of(workload).lease, spec_of(workload).grace)
            if chosen is None and need.lease is not None:  # its capacity is counted over time
                found = find_slot(engine, request, workload.uid, need.lease, need.grace_seconds, now)
                chosen = found.row if isinstance(found, Opening) else None
            if chosen is None and need.lease is not None:
                chosen, preempts = _replan(view, engine, candidate, strategy, now)
            if chosen is None:
                protected: dict[Allowance, list[str]] = {}
                way = find_way(view, engine, need, now, Budgets(view), protected)
                if way is not None:  # once others have given way
                    chosen, preempts = way.row, describe_victims(way, workload.envelope.project)
                preempts += describe_kept(protected, workload.envelope.project)
            if chosen is not None and explanation.error:
                explanation = msgspec.structs.replace(explanation, error="", message="")
        return RecommendationStatus(
            phase="Done",
            reason=explanation.error,
            message=_describe_gang(with_it) or explanation.message,
            policy=request.strategy,
            basis=request.basis,
            nodes=explanation.nodes,
            current=here,
            best="" if chosen is None else snapshot.names[chosen],
            verdicts=_show(explanation.verdicts),
            refused_by=explanation.refused_by,
            advice=[] if chosen is not None else advise(engine, request),
            gang=with_it,
            notes=[*([silence] if silence else []), *preempts, *given_up, *explanation.warnings, *explanation.notes],
            suggestions=suggest(view, snapshot, fabric, workload, here, engine.fits(request), now) if fabric else [],
        )


def _replan(
    view: View, engine: Engine, candidate: Candidate, strategy: str, now: float
) -> tuple[int | None, list[str]]:
    """The node of a lease that fits once leases with deadlines run at other times, and a sentence on each of these."""
    spec = spec_of(candidate.workload)
    assert spec.lease is not None
    asked = Asked(candidate, spec.lease, spec.grace)
    found = replan(view, engine, lambda item: read_candidate(view, item, strategy, []), asked, now, Budgets(view))
    if found is None:
        return None, []
    return found.row, [describe_other(one, candidate.workload.envelope.project) for one in found.others]


def _assume(
    view: View,
    engine: Engine,
    trial: Trial,
    project: str | None,
    assumed: Sequence[AssumedWorkload],
    strategy: str,
) -> None:
    """Count these workloads as placed. Raises NotFound for a missing node, InvalidInput for an invalid spec."""
    rows = _read_nodes(engine, [one.node for one in assumed])
    for number, (one, row) in enumerate(zip(assumed, rows, strict=True)):
        spec = RecommendationSpec(kind=one.kind, changes=one.spec)
        kind = _find_kind(one.kind)
        item = Item(Envelope(kind=kind.name, name=f"assumed-{number}", uid=new_uid(), project=project))
        candidate = read_candidate(view, _with_spec(item, kind, spec), strategy, [])
        if not isinstance(candidate, Waiting):
            request, snapshot = relax(candidate.request, engine.snapshot)[0], engine.snapshot
            trial.put(f"assumed/{number}", snapshot.uids[row], request.amounts, engine.load(request, row))


def _answer_within(view: View, engine: Engine, candidate: Candidate, current: str, now: float) -> RecommendationStatus:
    """The slot of its reservation that it would get; only nodes with one count."""
    found = find_within(view, engine, candidate, now)
    status = RecommendationStatus(phase="Done", policy=candidate.request.strategy, current=current)
    if isinstance(found, Waiting):
        return msgspec.structs.replace(status, reason=found.reason, message=found.message)
    explanation = explain(engine, without_slot(candidate.request), candidate.workload.uid, found.row)
    chosen = [verdict for verdict in explanation.verdicts if verdict.outcome == "chosen"]
    return msgspec.structs.replace(
        status,
        nodes=explanation.nodes,
        best=engine.snapshot.names[found.row],
        verdicts=_show(chosen),
        notes=[found.note, *explanation.warnings, *explanation.notes],
    )


def _answer_migration(
    view: View, engine: Engine, workload: Item, what: str, query: MigrationQuery, strategy: str, now: float
) -> RecommendationStatus:
    """The node that it would migrate to. Raises NotFound for a missing node."""
    if query.to is not None and view.get(object_key("node", None, query.to)) is None:
        raise NotFound(f'node "{query.to}" not found', field="spec.migration.to", hint="weft node list")
    found = view.get(workload.key)
    spec = MigrationSpec(workload=what, to=query.to, mode=query.mode)
    migrating = read_migration_candidate(view, found or workload, spec, strategy, [])
    if isinstance(migrating, Waiting):
        return RecommendationStatus(phase="Failed", reason=migrating.reason, message=migrating.message)
    at = migrating.source.spec(AllocationSpec)
    reason, message = _find_silence(view, at, what)
    if message:
        return RecommendationStatus(phase="Failed", reason=reason, message=message)
    candidate, row, explanation = decide(engine, migrating)
    best = "" if row is None else engine.snapshot.names[row]
    forecast = foresee(
        view,
        workload.key,
        (at.node, best),
        mode="saved" if migrating.carried else query.mode,
        memory=at.resources.memory,
        bytes_per_second=query.bytes_per_second,
    )
    return RecommendationStatus(
        phase="Done",
        reason=explanation.error,
        message=describe_refusal(engine, migrating, explanation, query.to) if row is None else "",
        policy=candidate.request.strategy,
        nodes=explanation.nodes,
        current=at.node,
        best=best,
        verdicts=_show(explanation.verdicts),
        refused_by=explanation.refused_by,
        forecast=forecast if best else None,
        window=_choose_window(view, workload, forecast, now) if query.window else None,
        notes=_describe_way(view, migrating, spec, row, engine) if migrating.carried or has_choice(at) else [],
    )


def _find_silence(view: View, at: AllocationSpec, what: str) -> tuple[str, str]:
    """Why nothing migrates from its node, as reason and sentence; both empty if that sends heartbeats."""
    phase = next((node.status(NodeStatus).phase for node in view.find(NODES_BY_UID, at.node_uid)), "NotReady")
    if phase not in SILENT_PHASES:
        return "", ""
    autonomous, lost = OUT_OF_REACH
    message = f"{at.node} sends no heartbeat, so {what} can't leave it before it is back"
    return autonomous if phase == "Autonomous" else lost, message


def _choose_window(view: View, workload: Item, forecast: MigrationForecast, now: float) -> MigrationWindow:
    """When within a day its guest does least."""
    envelope = workload.envelope
    found = view.get(object_key("workloadprofile", envelope.project, name_profile(envelope.kind, envelope.name)))
    profile = found.status(ProfileStatus) if found is not None else None
    earliest = now + LEAD_SECONDS
    chosen = choose_window(profile, earliest, earliest + DAY_SECONDS, forecast.duration_seconds or 0.0)
    return MigrationWindow(start=chosen.start, end=chosen.end, quality=chosen.quality, reason=chosen.reason)


def _describe_way(
    view: View, migrating: MigrationCandidate, spec: MigrationSpec, row: int | None, engine: Engine
) -> list[str]:
    nodes = view.find(NODES_BY_UID, engine.snapshot.uids[row]) if row is not None else ()
    return [describe_way(view, migrating, spec, node)[1] for node in nodes]


def _find_company(view: View, workload: Item, strategy: str, snapshot: Snapshot) -> list[GangMember]:
    """The others of its gang that must be placed with it: those that wait, and copies of it for missing members. Members that have
    a place stay there."""
    spec = spec_of(workload)
    if spec.gang is None:
        return []
    others = [item for item in view.find(WORKLOADS_BY_GANG, gang_of(workload)) if item.uid != workload.uid]
    others = sorted((o for o in others if not o.deleting), key=lambda o: (o.envelope.created_at, o.envelope.name))
    count = max(read_gang(spec_of(item).gang or "")[1] for item in (workload, *others))
    placed = sum(1 for item in others if view.count(ALLOCATIONS_BY_WORKLOAD, item.uid))
    waiting = [item for item in others if wants_place(view, item)]
    wanted = count - 1 - placed
    found = []
    for number in range(wanted):
        there = number < len(waiting)
        item = waiting[number] if there else _copy(workload)
        candidate = read_candidate(view, item, strategy, [])
        name = name_workload(item.envelope.ref) if there else f"member {placed + number + 2}"
        if isinstance(candidate, Waiting):
            raise InvalidInput(f"gang {read_gang(spec.gang)[0]}: {name} can't be placed: {candidate.message}")
        found.append(GangMember(relax(candidate.request, snapshot)[0], item.uid, name))
    return found


def _copy(item: Item) -> Item:
    return Item(msgspec.structs.replace(item.envelope, uid=new_uid()))


def _describe_gang(places: Sequence[GangPlace]) -> str:
    names = [f"{place.workload} on {place.node}" for place in places]
    return f"together with {', '.join(names)}" if names else ""


def _show(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """``verdicts`` with "fits" in place of "chosen": nothing is placed."""
    return [msgspec.structs.replace(v, outcome="fits") if v.outcome == "chosen" else v for v in verdicts]


def _read_workload(view: View, question: Item, spec: RecommendationSpec) -> tuple[Item, list[Item]]:
    """The workload in question, with its changed spec, and the allocations that it has, or gets its volumes from."""
    word, _, name = spec.workload.partition("/")
    kind = _find_kind(word or spec.kind)
    project = question.envelope.project
    if not name:
        giver = _find(view, project, *spec.instead_of.split("/")) if spec.instead_of else None
        uid = giver.uid if giver is not None else new_uid()  # it has what that one has
        envelope = Envelope(kind=kind.name, name=question.envelope.name, uid=uid, project=project)
        return _with_spec(Item(envelope), kind, spec), view.find(ALLOCATIONS_BY_WORKLOAD, uid)
    found = _find(view, project, kind.name, name)
    return _with_spec(found, kind, spec), view.find(ALLOCATIONS_BY_WORKLOAD, found.uid)


def _find_kind(name: str) -> Kind:
    """Raises InvalidInput for a kind that isn't a workload's."""
    kind = find_kind(name)
    if kind.workload is None:
        raise InvalidInput(
            f"{kind.a_title} is not a workload", field="spec.workload", hint="name a workload, like vm/NAME"
        )
    return kind


def _find(view: View, project: str | None, kind: str, name: str) -> Item:
    found = view.get(object_key(find_kind(kind).name, project, name))
    if found is None:
        raise NotFound(f'{find_kind(kind).title} "{name}" not found')
    return found


def _with_spec(item: Item, kind: Kind, spec: RecommendationSpec) -> Item:
    """Leaves addresses and security groups out: placement doesn't depend on them."""
    old = msgspec.json.decode(item.envelope.spec)
    workload_spec = read_strict({**(old if isinstance(old, dict) else {}), **spec.changes}, kind.spec)
    if kind.admission.check is not None:
        kind.admission.check(workload_spec)
    workload_spec = msgspec.structs.replace(workload_spec, networks=[], security_groups=[])
    return Item(msgspec.structs.replace(item.envelope, spec=msgspec.Raw(msgspec.json.encode(workload_spec))))


def _read_nodes(engine: Engine, names: Sequence[str]) -> list[int]:
    rows = []
    for name in names:
        if name not in engine.snapshot.names:
            raise NotFound(f'node "{name}" not found')
        rows.append(engine.snapshot.names.index(name))
    return rows
