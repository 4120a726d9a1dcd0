"""Hand over what only one VM of a deployment can have: published ports, volumes, addresses, the adopted VM's name in its networks,
and its schedule of snapshots. They belong to the VM of the slot, and go there in one commit: immediately where both may run, and
where they can't, once the other one has stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from msgspec.structs import replace

from weft.controllers.deployment.instance_state import is_kept, is_parked
from weft.controllers.workload.handover import give_endpoints, give_ports, read_place
from weft.informer.commit import Draft, edit, put, unchanged
from weft.informer.view import Item, View
from weft.informer.workloads import name_of, spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD
from weft.kinds.deployment import DeploymentSpec
from weft.kinds.endpoint import ENDPOINTS_BY_WORKLOAD, EndpointSpec
from weft.kinds.fields.deployment.instance import PARKED_LABEL, REVISION_LABEL, instance_name
from weft.kinds.fields.deployment.status import DeploymentStatus
from weft.kinds.parts.deployment.alone import describe_alone
from weft.kinds.parts.nic import networks_of
from weft.kinds.parts.workload import WorkloadSpec
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Envelope, merge_part

LOOK_SECONDS = 1.0  # between two looks at whether a VM has stopped


class InstanceWrite(msgspec.Struct):
    """Writes of a plan to one instance."""

    item: Item | None  # None: it is made
    envelope: Envelope
    spec: WorkloadSpec
    labels: dict[str, str | None] = {}  # None takes one away
    changes_spec: bool = False
    afresh: bool = False  # it is started afresh
    deletes: bool = False

    def set_spec(self, spec: WorkloadSpec) -> None:
        self.spec, self.changes_spec = spec, True

    def park(self) -> None:
        """Stop it, and keep it."""
        self.labels, self.deletes = {**self.labels, PARKED_LABEL: "true"}, False
        self.set_spec(replace(self.spec, run="stop"))

    def find_label(self, name: str) -> str | None:
        return self.labels.get(name, self.envelope.labels.get(name))

    @property
    def runs(self) -> bool:
        """Whether it shall run when the plan is written."""
        return not (self.deletes or self.find_label(PARKED_LABEL) or self.envelope.deleting_since)


class Writes:
    """Writes of a plan to a deployment's instances, by name."""

    def __init__(self, found: Mapping[str, Item]) -> None:
        self.found = found
        self.by_name: dict[str, InstanceWrite] = {}

    def of(self, name: str) -> InstanceWrite:
        """The writes to an instance that exists."""
        if name not in self.by_name:
            item = self.found[name]
            self.by_name[name] = InstanceWrite(item, item.envelope, spec_of(item))
        return self.by_name[name]

    def list_all(self) -> list[InstanceWrite]:
        """The writes to all instances, as they will be."""
        return [*self.by_name.values(), *(self.of(name) for name in self.found if name not in self.by_name)]

    def drop(self, name: str) -> None:
        self.by_name.pop(name, None)


def find_holder(deployment: Item, found: Mapping[str, Item]) -> Item | None:
    """The VM that has what only one can have."""
    return found.get(deployment.status(DeploymentStatus).holder or deployment.spec(DeploymentSpec).adopt)


def find_alone(holder: Item | None) -> str:
    """Why the VM that takes its place can't run beside it; "" if it can."""
    spec = spec_of(holder) if holder is not None else None
    return describe_alone(spec.volumes, spec.networks) if isinstance(spec, VmSpec) else ""


def plan_handover(
    draft: Draft, view: View, deployment: Item, status: DeploymentStatus, writes: Writes, now: float
) -> bool:
    """Let the VM of the slot have it all; whether that waits, so that the plan is made again soon. ``status`` and ``writes`` are
    changed."""
    adopt, taker = deployment.spec(DeploymentSpec).adopt, _find_taker(status, writes)
    holder = find_holder(deployment, writes.found)
    if taker is None:
        return False
    name = taker.envelope.name
    if holder is None or holder.envelope.name == name:
        status.holder = "" if name == adopt else name
        _name_endpoints(draft, view, deployment, writes.found, name)
        if taker.item is not None and is_parked(taker.item) and (other := _find_releasing(view, writes.found, name)):
            return _defer(status, writes, name, f"waits for {other} to release its volumes and addresses")
        return False
    starts = taker.item is None or is_parked(taker.item)
    whole = starts and bool(find_alone(holder))
    if whole and not _rests(view, holder):
        giver = writes.by_name.get(holder.envelope.name)
        if giver is not None and giver.deletes:
            giver.park()
        return _defer(status, writes, name, f"waits for {name_of(holder)} to stop")
    _give(draft, view, writes.of(holder.envelope.name), taker, whole=whole, adopt=adopt, now=now)
    status.holder, status.progressed_at, status.held_since = "" if name == adopt else name, now, now
    if is_parked(holder) and not is_kept(deployment, holder):
        writes.of(holder.envelope.name).deletes = True
    left = {one: item for one, item in writes.found.items() if not (whole and item is holder)}
    _name_endpoints(draft, view, deployment, left, name)
    return whole


def _find_taker(status: DeploymentStatus, writes: Writes) -> InstanceWrite | None:
    """The VM of the slot; None while there is none."""
    revision = str(status.slots[0]) if status.slots else ""
    there = [one for one in writes.list_all() if one.runs and one.find_label(REVISION_LABEL) == revision]
    return min(there, key=lambda one: (one.envelope.name != status.holder, one.item is None), default=None)


def _defer(status: DeploymentStatus, writes: Writes, name: str, why: str) -> bool:
    """Let a VM wait."""
    writes.drop(name)
    status.message = why
    return True


def _rests(view: View, workload: Item) -> bool:
    return spec_of(workload).run == "stop" and all(
        read_place(one).rests for one in view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid)
    )


def _find_releasing(view: View, found: Mapping[str, Item], taker: str) -> str:
    """Another VM whose node still has something of what it gave away; "" if none has."""
    for name, item in found.items():
        spec = spec_of(item)
        if name == taker or spec.networks or (isinstance(spec, VmSpec) and spec.volumes):
            continue
        if any(read_place(one).holds for one in view.find(ALLOCATIONS_BY_WORKLOAD, item.uid)):
            return name_of(item)
    return ""


def _give(
    draft: Draft, view: View, giver: InstanceWrite, taker: InstanceWrite, *, whole: bool, adopt: str, now: float
) -> None:
    """``whole``: addresses and volumes go, too; the taker starts once the other one's node has released them."""
    old, new = giver.spec, taker.spec
    assert giver.item is not None
    assert isinstance(old, VmSpec)
    assert isinstance(new, VmSpec)
    new = replace(new, publish=old.publish, force_publish=old.force_publish, snapshots=old.snapshots)
    giver.set_spec(replace(old, publish=[], force_publish=False, snapshots=None))
    if whole:
        given = dict(zip(networks_of(old.networks), old.networks, strict=True))
        networks = [given.get(name, name) for name in networks_of(new.networks)]
        new = replace(new, networks=networks, volumes=old.volumes)
        giver.set_spec(replace(old, publish=[], force_publish=False, snapshots=None, networks=[], volumes=[]))
        hostname = "" if taker.envelope.name == adopt else adopt
        give_endpoints(draft, view, giver.item.uid, taker.envelope, now, hostname=hostname)
    publish, _ = give_ports(draft, view, giver.item.uid, taker.envelope, new, now)
    taker.set_spec(replace(new, publish=publish))
    if whole:
        taker.park()


def _name_endpoints(draft: Draft, view: View, deployment: Item, found: Mapping[str, Item], holder: str) -> None:
    """The VM that holds it all is called as the adopted one in its networks, and no other is."""
    adopt = deployment.spec(DeploymentSpec).adopt
    for name, item in found.items():
        if name == holder:
            hostname = "" if name == adopt else adopt
        else:
            revision = item.envelope.labels.get(REVISION_LABEL, "1")
            hostname = instance_name(adopt, int(revision), 0) if name == adopt else ""
        _call(draft, view.find(ENDPOINTS_BY_WORKLOAD, item.uid), hostname)


def _call(draft: Draft, endpoints: Iterable[Item], hostname: str) -> None:
    for endpoint in endpoints:
        spec = endpoint.spec(EndpointSpec)
        if spec.hostname != hostname:
            envelope = edit(endpoint)
            envelope.spec = merge_part(envelope.spec, replace(spec, hostname=hostname))
            draft.writes.append(put(envelope))
            draft.preconditions.append(unchanged(endpoint))
