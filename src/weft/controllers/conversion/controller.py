"""Leads each Conversion on, from its spec to its end.

Reads Conversions, both workloads, their allocations and claims, Images, the scheduler's answer; writes Conversion.status, the
specs of both workloads, the owner of their endpoints and published ports, the new workload, a missing Image, and a question to
the scheduler. Woken by any of those. ``plan_conversion`` decides what to write.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from weft.contracts.journal import Event
from weft.controllers.allocation.active import find_active
from weft.controllers.conversion.facts import (
    ConversionFacts,
    ConversionOutcome,
    KnownImage,
    PlacementAnswer,
    WorkloadFacts,
)
from weft.controllers.conversion.plan import plan_conversion
from weft.controllers.loop import Plan
from weft.controllers.workload.handover import plan_claims, read_place
from weft.controllers.workload.ports import ask_ports, list_ports, read_answers
from weft.informer.commit import Commit, Draft, delete, let_go, unchanged
from weft.informer.quotas import ProjectQuota, read_quota
from weft.informer.view import Changed, Item, View, has_changed
from weft.informer.workloads import name_of, record_of, spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocationReport, AllocationSpec
from weft.kinds.conversion import (
    CONVERSIONS_BY_WORKLOAD,
    ConversionActions,
    ConversionSpec,
    ConversionStatus,
    is_under_way,
    workload_keys,
)
from weft.kinds.image import IMAGE, ImageSpec, ImageStatus
from weft.kinds.parts.sharing import is_own_or_shared
from weft.kinds.parts.workload import WORKLOADS_BY_UID, WorkloadSpec, WorkloadStatus
from weft.kinds.recommendation import RECOMMENDATION, RecommendationSpec, RecommendationStatus
from weft.kinds.registry import BY_NAME, WORKLOADS, is_workload
from weft.objects.envelope import Envelope
from weft.objects.identity import new_uid, object_key, short_id

FINALIZER = "conversion"
SOURCE = "conversions"


class Conversions:
    name = "conversions"
    kinds = ("conversion", "allocation", "image", "recommendation", *WORKLOADS)

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "conversion":
                return (change.key, *_others(view, change.item))
            case "allocation":
                of = change.item.spec(AllocationSpec).workload
                return [key for item in view.find(WORKLOADS_BY_UID, of.uid) for key in _conversions(view, item.key)]
            case "image":
                if has_changed(change, lambda item: (item.uid, item.status(ImageStatus).phase)):
                    return [item.key for item in view.of_kind("conversion").values() if _waits_for_image(item)]
            case "recommendation":
                owner = change.item.envelope.owner
                if owner is not None and owner.kind == "conversion":
                    return [object_key(owner.kind, owner.project, owner.name)]
            case kind if is_workload(kind):
                return _conversions(view, change.key)
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for item in [item for key in keys if (item := view.get(key)) is not None]:
            if not is_under_way(item.status(ConversionStatus)):
                commit = plan_release(item)
            else:
                facts = read_facts(view, item, now)
                outcome = plan_conversion(facts)
                commit = plan_writes(view, item, outcome, now, facts.quota)
                plan.later |= {item.key: outcome.requeue_after} if outcome.requeue_after is not None else {}
            plan.commits += [commit] if commit is not None else []
        return plan


def read_facts(view: View, item: Item, now: float) -> ConversionFacts:
    status = item.status(ConversionStatus)
    old, new = find_workloads(view, item)
    project = item.envelope.project
    return ConversionFacts(
        spec=item.spec(ConversionSpec),
        actions=item.actions(ConversionActions),
        status=status,
        old=_read_workload(view, old),
        new=_read_workload(view, new),
        images=tuple(
            _read_image(image, project)
            for image in view.of_kind("image").values()
            if is_own_or_shared(image, project, image.spec(ImageSpec).shared_with)
        ),
        answer=_read_answer(view, item),
        old_uid=old.uid if old is not None else "",
        taken=new is None and view.get(workload_keys(item)[1]) is not None,
        rival=_find_rival(view, item),
        deleting=item.deleting,
        mark=short_id(item.uid)[:5],
        uid=new_uid(),
        quota=read_quota(view, project) if not status.new_uid else None,
        now=now,
    )


def find_workloads(view: View, item: Item) -> tuple[Item | None, Item | None]:
    """The workload that the Conversion began with, and the one that it made: another of the same name is neither."""
    status = item.status(ConversionStatus)
    old, new = (view.get(key) for key in workload_keys(item))
    if old is not None and status.old_uid not in ("", old.uid):
        old = None
    if new is not None and new.uid != status.new_uid:
        new = None
    return old, new


def plan_writes(
    view: View, item: Item, outcome: ConversionOutcome, now: float, quota: ProjectQuota | None = None
) -> Commit | None:
    """One commit for the whole ``outcome``; None if nothing changes. A new workload counts in ``quota``."""
    former, status = item.status(ConversionStatus), outcome.status
    old, new = find_workloads(view, item)
    # The plan depends on both workloads.
    draft = Draft(item, *(workload for workload in (old, new) if workload is not None))
    if outcome.claims == "old" and old is not None and outcome.old is not None:
        publish, lost = plan_claims(
            draft, view, new.uid if new is not None else status.new_uid, old.envelope, outcome.old, now
        )
        if lost:
            outcome.old = msgspec.structs.replace(outcome.old, publish=publish)
            status = msgspec.structs.replace(status, message=f"{status.message}; {lost}")
    elif outcome.claims == "new" and old is not None and new is not None and outcome.new is not None:
        plan_claims(draft, view, old.uid, new.envelope, outcome.new, now)
    for workload, spec, goes in ((old, outcome.old, outcome.old_goes), (new, outcome.new, outcome.new_goes)):
        if workload is not None and (spec is not None or goes):
            draft.change(workload, spec=spec, deleting_since=now if goes else None)
    _ask_ports(draft, view, (old, new), status)
    if outcome.make is not None and old is not None:
        draft.make(make_workload(item, old, outcome.make, status.new_uid, now))
        if quota is not None:
            quota.guard(draft)
    image = view.get(object_key("image", item.envelope.project, status.image)) if status.image else None
    if outcome.image is not None:
        name, image_spec = outcome.image  # nothing owns it: it stays when the Conversion has gone
        draft.make(IMAGE.make(name, image_spec, now, project=item.envelope.project, creator=item.envelope.creator))
    question = _find_question(view, item)
    if outcome.asks is not None and old is not None:
        draft.make(make_question(item, old, outcome.asks, now))
    elif question is not None and question.envelope.owner == item.envelope.ref and status.phase != former.phase:
        # The answer was for the former phase.
        draft.writes.append(delete(question))
    if outcome.image_goes and image is not None:
        draft.delete(image)
    if status != former:
        draft.change(item, status=status)
    return draft.commit(item.key, _events(item, former, status))


def _ask_ports(draft: Draft, view: View, workloads: tuple[Item | None, Item | None], status: ConversionStatus) -> None:
    """Have the old one's node ask for its published ports until it is known which answer, then the new one's for these."""
    old, new = workloads
    learns = status.phase == "Preparing" and status.asked_at is not None and status.answered is None
    watched = status.answered or [] if status.phase == "Starting" else []
    for workload, ports in ((old, [*list_ports(old)] if learns else []), (new, watched)):
        ask_ports(draft, view, [workload] if workload is not None else [], ports)


def plan_release(item: Item) -> Commit | None:
    """Release an ended Conversion that was deleted."""
    return Commit(item.key, [let_go(item, FINALIZER)], [unchanged(item)]) if item.deleting else None


def make_workload(item: Item, old: Item, spec: WorkloadSpec, uid: str, now: float) -> Envelope:
    """The new one, with the labels of the old one."""
    kind = BY_NAME[item.spec(ConversionSpec).to]
    name, status = workload_keys(item)[1].rpartition("/")[2], WorkloadStatus(conversion=item.envelope.name)
    of = old.envelope
    return kind.make(name, spec, now, uid=uid, project=of.project, labels=of.labels, creator=of.creator, status=status)


def make_question(item: Item, old: Item, workload_spec: WorkloadSpec, now: float) -> Envelope:
    """Question to the scheduler: where the new one would go."""
    spec = RecommendationSpec(
        kind=item.spec(ConversionSpec).to, changes=msgspec.to_builtins(workload_spec), instead_of=name_of(old)
    )
    return RECOMMENDATION.make(item.envelope.name, spec, now, project=item.envelope.project, owner=item.envelope)


def _events(item: Item, former: ConversionStatus, status: ConversionStatus) -> list[Event]:
    if status.phase == former.phase:
        return []
    bad: Literal["Warning", "Normal"] = "Warning" if "Failed" in (status.phase, status.ending) else "Normal"
    why = f": {status.message}" if status.message else ""
    return [
        Event(bad, status.phase, f"{item.spec(ConversionSpec).workload} → {status.new}{why}", item.envelope.ref, SOURCE)
    ]


def _read_workload(view: View, item: Item | None) -> WorkloadFacts | None:
    if item is None:
        return None
    spec, condition = spec_of(item), item.envelope.condition("Healthy")
    healthy = {"True": True, "False": False}.get(condition.status) if condition is not None else None
    if record_of(item).checks_health(spec):
        healthy = healthy is True  # unknown counts as unhealthy
    allocations = view.find(ALLOCATIONS_BY_WORKLOAD, item.uid)
    place = find_active(allocations)
    return WorkloadFacts(
        what=name_of(item),
        spec=spec,
        status=item.status(WorkloadStatus),
        generation=item.envelope.generation,
        places=tuple(map(read_place, allocations)),
        deleting=item.deleting,
        user=item.envelope.creator,
        image=place.report(AllocationReport).image if place is not None else "",
        ports=list_ports(item),
        answers=dict(read_answers(view, item)),
        healthy=healthy,
    )


def _find_question(view: View, item: Item) -> Item | None:
    """The recommendation of this Conversion's name, which may belong to something else."""
    return view.get(object_key("recommendation", item.envelope.project, item.envelope.name))


def _read_answer(view: View, item: Item) -> PlacementAnswer | None:
    question = _find_question(view, item)
    if question is None:
        return None
    if question.envelope.owner != item.envelope.ref:
        return PlacementAnswer(
            True, "unknown"
        )  # without an answer the new workload may wait for a place while nothing runs
    answer = question.status(RecommendationStatus)
    return PlacementAnswer(answer.phase != "Pending", answer.best, answer.reason, answer.message)


def _read_image(item: Item, project: str | None) -> KnownImage:
    status = item.status(ImageStatus)
    phase = "Failed" if item.deleting else status.phase
    spec, message = item.spec(ImageSpec), status.message or "the image is being deleted"
    if item.envelope.project != project:  # all that others may know of it
        return KnownImage(f"{item.envelope.project}/{item.envelope.name}", "", phase, status.digest)
    return KnownImage(item.envelope.name, spec.url, phase, status.digest, message, spec.registry_secret)


def _waits_for_image(item: Item) -> bool:
    return item.status(ConversionStatus).phase in ("Pending", "Preparing")


def _conversions(view: View, key: str) -> list[str]:
    found = view.find(CONVERSIONS_BY_WORKLOAD, key)
    return [item.key for item in found if is_under_way(item.status(ConversionStatus))]


def _others(view: View, item: Item) -> list[str]:
    """The keys of other Conversions of either workload that haven't ended."""
    keys = {key for one in workload_keys(item) for key in _conversions(view, one)}
    return sorted(keys - {item.key})


def _find_rival(view: View, item: Item) -> str:
    """The Conversion of either workload that goes first: one that has begun, of several new ones the oldest."""

    def order(one: Item) -> tuple[bool, float, str]:
        return (one.status(ConversionStatus).began_at is None, one.envelope.created_at, one.key)

    rivals = [other for key in _others(view, item) if (other := view.get(key)) is not None]
    first = min(rivals, key=order, default=None)
    return first.envelope.name if first is not None and order(first) < order(item) else ""
