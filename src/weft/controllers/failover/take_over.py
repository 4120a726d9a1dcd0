"""Turn a replica into the VM from its newest point once the witness has granted it, in one commit that holds only if the primary
has not renewed its hold since. Pure.

The VM is weft's own: what a linked cluster made, it may change and delete, and the former primary is to have no hold on this."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from weft.contracts.journal import Event
from weft.controllers.failover.facts import Group
from weft.controllers.recovery.members import find_point, read_promoted, read_returned, read_vm
from weft.failover.standby import find_unused, was_not_promoted
from weft.informer.commit import Commit, Draft, unchanged
from weft.informer.quotas import read_quota
from weft.informer.view import Item, View
from weft.kinds.cluster import ClusterSpec, may_take_over
from weft.kinds.fields.cluster.link import TAKE_OVER
from weft.kinds.fields.recovery.run import RunMember
from weft.kinds.replica import PRIMARY, Point, ReplicaMarks, ReplicaSpec, is_stopped_there
from weft.kinds.vm import VM
from weft.kinds.volume import VOLUME, VolumeMarks, VolumeSpec
from weft.objects.errors import IllegalTransition
from weft.objects.identity import CLUSTER_PREFIX
from weft.objects.quantity import format_duration
from weft.protocol.failover.claim import Claim
from weft.protocol.failover.witness import WitnessAnswer


def plan_take_over(view: View, replica: Item, link: Item, claim: Claim, now: float, source: str) -> Commit:
    """``link``: with the former primary, whose grant holds in the same commit. Raises
    WeftError where the VM can't be made now: the grant stays, and is asked for again."""
    name, project = replica.envelope.name, replica.envelope.project
    point = find_point(view, replica)
    if point is None:
        raise IllegalTransition(f"replica/{name} has no point that can be used", reason="noPoint")
    member = RunMember(
        replica=name, group=0, vm="", snapshot=point.snapshot, snapshot_uid=point.snapshot_uid, point=point.number
    )
    draft = Draft(link)
    if (returned := read_returned(view, replica, member)) is not None:
        vm, after = returned
        draft.preconditions.append(unchanged(vm))
        draft.change(replica, marks=_grant(after, claim))
        return _commit(draft, replica, claim, point, vm.envelope.name, now, source)
    manifest, volumes, after = read_promoted(view, replica, member)
    if (quota := read_quota(view, project)) is not None:
        quota.guard(draft)
    for one in volumes:
        spec, marks = msgspec.convert(one["spec"], VolumeSpec), msgspec.convert(one["marks"], VolumeMarks)
        draft.make(VOLUME.make(one["name"], spec, now, project=project, marks=marks))
    vm_spec = read_vm(manifest)
    if is_stopped_there(replica.spec(ReplicaSpec)):
        vm_spec = replace(vm_spec, run="stop")
    draft.make(VM.make(manifest["name"], vm_spec, now, project=project))
    draft.change(replica, marks=_grant(after, claim))
    return _commit(draft, replica, claim, point, str(manifest["name"]), now, source)


def plan_disarming(view: View, link: Item, groups: Sequence[Group], source: str) -> list[Commit]:
    """Commits for the replicas that may take over no more, since people here took the grant, or their project, away from the
    cluster of ``link``.
    """
    commits = list[Commit]()
    for group in groups:
        item = view.get(group.item.key) if group.is_standby else None
        if item is None or not (marks := item.marks(ReplicaMarks)).automatic or marks.role == PRIMARY:
            continue
        if may_take_over(link.spec(ClusterSpec), item.envelope.project):
            continue
        message = f"cluster/{link.envelope.name} isn't granted {TAKE_OVER} in this project any more: nothing takes over from it"
        draft = Draft()
        draft.change(item, marks=replace(marks, automatic=False))
        made = draft.commit(item.key, [Event("Normal", "Disarmed", message, item.envelope.ref, source)])
        commits += [made] if made is not None else []
    return commits


def plan_return(view: View, group: Group, site: str, answered: WitnessAnswer, source: str) -> Commit | None:
    """Note that what the witness granted won't be used, see ``find_unused``; or, in a store that was restored, that the replica
    was not promoted since. None if there is nothing to note."""
    item, unused = view.get(group.item.key), find_unused(site, answered)
    if item is None or item.uid != group.item.uid or (marks := item.marks(ReplicaMarks)).role == PRIMARY:
        return None
    draft, events = Draft(), list[Event]()
    if marks.restored and was_not_promoted(answered):
        draft.change(item, marks=replace(marks, restored=False))
    elif not marks.restored and unused and marks.returned != unused:  # of a restored one it may have been used before
        draft.change(item, marks=replace(marks, returned=unused, renewals=marks.renewals + 1))
        message = "what the witness granted wasn't used: it is given back, and the witness promises to the source again"
        events.append(Event("Normal", "GaveBack", message, item.envelope.ref, source))
    return draft.commit(item.key, events)


def _commit(draft: Draft, replica: Item, claim: Claim, point: Point, name: str, now: float, source: str) -> Commit:
    former = replica.envelope.creator.removeprefix(CLUSTER_PREFIX)
    what = "is here, stopped as it was there," if is_stopped_there(replica.spec(ReplicaSpec)) else "starts here"
    age = max(0.0, now - point.received_at) + point.age_seconds
    message = (
        f"the witness got no word from {former} and granted generation {claim.generation.number}: "
        f"vm/{name} {what} from point {point.number}; what was written in the last "
        f"{format_duration(math.ceil(age))} is lost"
    )
    commit = draft.commit(replica.key, [Event("Warning", "TookOver", message, replica.envelope.ref, source)])
    assert commit is not None
    return commit


def _grant(after: ReplicaMarks, claim: Claim) -> ReplicaMarks:
    return replace(after, generation=claim.generation.number, granted=claim.generation.id)
