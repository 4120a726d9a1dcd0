"""Answers a Recommendation: decides on a workload as it is, or as it might be, over the nodes as they are, and places
nothing. Its own present place counts as free. Pure but for the snapshot, which is afterwards what it was before."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.client.commit import Commit, edit, put, unchanged
from weft.client.indexes import ALLOCATIONS_BY_WORKLOAD
from weft.client.view import Item, View
from weft.kinds.allocation import AllocationSpec
from weft.kinds.decision import Verdict
from weft.kinds.recommendation import RecommendationSpec, RecommendationStatus
from weft.kinds.record import Kind
from weft.kinds.registry import find_kind
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Envelope, merge_part
from weft.objects.errors import InvalidInput, NotFound, WeftError
from weft.objects.identity import new_uid, object_key
from weft.objects.schema import read_strict
from weft.scheduler.advice import advise
from weft.scheduler.cycle import Engine
from weft.scheduler.explain import explain
from weft.scheduler.prefer import relax
from weft.scheduler.request import Waiting, read_candidate
from weft.scheduler.snapshot import without


def plan_recommendation(view: View, engine: Engine, question: Item, strategy: str, now: float) -> Commit:
    """Write the answer into ``question``'s status."""
    try:
        status = answer(view, engine, question, strategy)
    except WeftError as problem:
        message = f"{problem.message}; {problem.hint}" if problem.hint else problem.message
        status = RecommendationStatus(phase="Failed", reason=problem.token, message=message)
    status.at = now
    envelope = edit(question)
    envelope.status = merge_part(envelope.status, status)
    return Commit(question.key, [put(envelope)], [unchanged(question)])


def answer(view: View, engine: Engine, question: Item, strategy: str) -> RecommendationStatus:
    """Raises NotFound for what isn't there, InvalidInput for a wish that is none."""
    spec = question.spec(RecommendationSpec)
    workload, places = _read_workload(view, question, spec)
    candidate = read_candidate(view, workload, strategy, [])
    if isinstance(candidate, Waiting):
        return RecommendationStatus(phase="Failed", reason=candidate.reason, message=candidate.message)
    snapshot = engine.snapshot
    rows = _read_nodes(engine, spec.nodes)
    with without(snapshot, [place.key for place in places]):
        request, _ = relax(candidate.request, snapshot)
        chosen = engine.choose(request, workload.uid)
        explanation = explain(engine, request, workload.uid, chosen, also=rows)
        return RecommendationStatus(
            phase="Done",
            reason=explanation.error,
            message=explanation.message,
            policy=request.strategy,
            nodes=explanation.nodes,
            current=places[0].spec(AllocationSpec).node if places else "",
            best="" if chosen is None else snapshot.names[chosen],
            verdicts=_told(explanation.verdicts),
            refused_by=explanation.refused_by,
            advice=[] if chosen is not None else advise(engine, request),
        )


def _told(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """What would be chosen is not chosen."""
    return [msgspec.structs.replace(v, outcome="fits") if v.outcome == "chosen" else v for v in verdicts]


def _read_workload(view: View, question: Item, spec: RecommendationSpec) -> tuple[Item, list[Item]]:
    """The workload that is asked about, its wish as it would be, and the places that it has."""
    word, _, name = spec.workload.partition("/")
    kind = find_kind(word or "vm")
    project = question.envelope.project
    if not issubclass(kind.spec, VmSpec):
        raise InvalidInput(f"a {kind.title} is not placed", field="spec.workload", hint="ask about a VM: vm/NAME")
    if not name:
        envelope = Envelope(kind=kind.name, name=question.envelope.name, uid=new_uid(), project=project)
        return _with_wish(Item(envelope), kind, spec), []
    found = view.get(object_key(kind.name, project, name))
    if found is None:
        raise NotFound(f'{kind.title} "{name}" not found')
    return _with_wish(found, kind, spec), view.find(ALLOCATIONS_BY_WORKLOAD, found.uid)


def _with_wish(item: Item, kind: Kind, spec: RecommendationSpec) -> Item:
    """Addresses and security groups are left out: where it goes doesn't depend on them."""
    old = msgspec.json.decode(item.envelope.spec)
    wish = read_strict({**(old if isinstance(old, dict) else {}), **spec.wish}, kind.spec)
    if kind.check is not None:
        kind.check(wish)
    wish = msgspec.structs.replace(wish, networks=[], security_groups=[])
    return Item(msgspec.structs.replace(item.envelope, spec=msgspec.Raw(msgspec.json.encode(wish))))


def _read_nodes(engine: Engine, names: Sequence[str]) -> list[int]:
    rows = []
    for name in names:
        if name not in engine.snapshot.names:
            raise NotFound(f'node "{name}" not found')
        rows.append(engine.snapshot.names.index(name))
    return rows
