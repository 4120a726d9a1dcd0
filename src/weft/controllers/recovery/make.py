"""Make the objects of a run, and remove them again: isolated networks, VMs with their volumes, and services that check them."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from weft.contracts.store import MAX_COMMIT_BYTES, MAX_VALUE_BYTES, Put, Write
from weft.controllers.recovery.members import (
    find_promoted,
    find_replica,
    list_networks,
    name_original,
    read_promoted,
    read_rehearsed,
    read_returned,
    read_vm,
    renew_point,
)
from weft.informer.commit import Draft, edit, put, unchanged
from weft.informer.quotas import read_quota
from weft.informer.view import Item, View
from weft.kinds.fields.recovery.check import read_check
from weft.kinds.fields.recovery.run import REHEARSE, RecoveryRun, RunCheck, RunMember
from weft.kinds.network import NETWORK, NetworkSpec
from weft.kinds.parts.nic import read_nic
from weft.kinds.parts.snapshot.restored import (
    VmOrigin,
    VolumeOrigin,
)
from weft.kinds.parts.workload import WORKLOADS_BY_OWNER, WorkloadMarks, WorkloadTest
from weft.kinds.record import Kind
from weft.kinds.replica import PRIMARY, ReplicaMarks
from weft.kinds.service import SERVICE, ServiceSpec
from weft.kinds.vm import VM, VmSpec
from weft.kinds.volume import VOLUME, VolumeMarks, VolumeSpec
from weft.objects.identity import named_key, object_key

RUN_LABEL, MEMBER_LABEL = "recovery-run", "recovery-member"
_UNASKED_PORT = 1  # of a service whose readiness is a command's: it needs a port, and nobody connects to it
MOST_AT_ONCE = 80  # objects that are removed in one commit
_SPARE_BYTES = 50_000  # of a commit: keys, and what a removal adds


def begin_run(draft: Draft, view: View, plan: Item, run: RecoveryRun, now: float) -> RecoveryRun:
    """The run with the networks of a rehearsal. It begins only if its points are as they were read; they aren't written, since the
    specs of all their VMs may be larger than a commit. One that somebody removes meanwhile is replaced when its machine is made."""
    for member in run.members:
        snapshot = view.get(object_key("snapshot", plan.envelope.project, member.snapshot))
        if member.snapshot and snapshot is not None:
            draft.preconditions.append(unchanged(snapshot))
    if run.mode != REHEARSE:
        return run
    networks = {}
    for number, name in enumerate(list_networks(view, plan, run.members)):
        real = view.get(named_key("network", plan.envelope.project, name))
        if real is None:
            continue
        there = real.spec(NetworkSpec)
        spec = NetworkSpec(cidr=there.cidr, nat=False, mtu=there.mtu, domain=there.domain)
        networks[name] = f"{run.name}-net-{number}"
        draft.make(NETWORK.make(networks[name], spec, now, project=plan.envelope.project, owner=plan.envelope))
    return msgspec.structs.replace(run, networks=networks)


def is_isolated(view: View, plan: Item, run: RecoveryRun) -> bool:
    """Whether the networks of a rehearsal still lead nowhere: nobody has opened one."""
    for name in run.networks.values():
        network = view.get(object_key(NETWORK.name, plan.envelope.project, name))
        if network is None or not _is_owned(network, plan):
            return False
        spec = network.spec(NetworkSpec)
        if spec.nat or spec.open or spec.shared_with:
            return False
    return True


def make_member(draft: Draft, view: View, plan: Item, run: RecoveryRun, index: int, now: float) -> RecoveryRun:
    """Make the VM of a member, and what checks it. Raises WeftError where it can't be promoted now."""
    member = run.members[index]
    if (replica := find_replica(view, plan, member.replica)) is not None:
        member = renew_point(view, replica, member, run.began_at)
    if run.mode == REHEARSE:
        network = _make_rehearsed(draft, view, plan, run, member, now)
    else:
        network = _promote(draft, view, plan, run, member, now)
    for check in member.checks:
        if check.service:
            made = make_service(check, run, member, network)
            draft.make(SERVICE.make(check.service, made, now, project=plan.envelope.project, owner=plan.envelope))
    begun = msgspec.structs.replace(member, begun_at=now)
    return msgspec.structs.replace(run, members=[*run.members[:index], begun, *run.members[index + 1 :]])


def make_service(check: RunCheck, run: RecoveryRun, member: RunMember, network: str) -> ServiceSpec:
    """A service that nobody uses: it leads to the one VM, whose node asks it as the check says."""
    readiness = read_check(f"{member.replica}={check.type}:{check.target}", "check").readiness
    return ServiceSpec(
        selector=_labels(run, member),
        ports=[str(readiness.port or _UNASKED_PORT)],
        network=network,
        readiness=readiness,
        drain=0.0,
    )


def _labels(run: RecoveryRun, member: RunMember) -> dict[str, str]:
    return {RUN_LABEL: run.name, MEMBER_LABEL: member.replica}


def _make_rehearsed(draft: Draft, view: View, plan: Item, run: RecoveryRun, member: RunMember, now: float) -> str:
    """Returns the network of its first NIC."""
    project = plan.envelope.project
    manifest, volumes = read_rehearsed(view, plan, member)
    vm = read_vm(manifest)
    vm.origin = VmOrigin(snapshot=member.snapshot)
    test = WorkloadTest(recovery=plan.envelope.name, hostname=name_original(view, plan, member))
    vm.networks = [run.networks[name] for name in vm.networks if name in run.networks]
    vm.restart, vm.grace, vm.on_node_loss = "on-failure", 1.0, "wait"
    for one in volumes:
        volume = msgspec.convert(one["spec"], VolumeSpec)
        origin = VolumeMarks(origin=VolumeOrigin(**one["marks"]["origin"], test=True))
        draft.make(VOLUME.make(one["name"], volume, now, project=project, owner=plan.envelope, marks=origin))
    marks, labels = WorkloadMarks(test=test), _labels(run, member)
    draft.make(VM.make(member.vm, vm, now, project=project, owner=plan.envelope, labels=labels, marks=marks))
    return vm.networks[0] if vm.networks else next(iter(run.networks.values()), "default")


def _promote(draft: Draft, view: View, plan: Item, run: RecoveryRun, member: RunMember, now: float) -> str:
    """Promote as the verb of the replica does: where one continues a VM here, that VM comes back; what was promoted before is only
    checked. Returns the network of its first NIC.
    """
    project, creator = plan.envelope.project, plan.envelope.creator
    replica = find_replica(view, plan, member.replica)
    assert replica is not None, member.replica
    there = find_promoted(view, replica) if replica.marks(ReplicaMarks).role == PRIMARY else None
    if there is None and (returned := read_returned(view, replica, member)) is not None:
        there, after = returned
        draft.change(replica, marks=after)
    if there is not None:
        envelope = edit(there)
        envelope.labels = {**envelope.labels, **_labels(run, member)}
        draft.writes.append(put(envelope))
        draft.preconditions.append(unchanged(there))
        return _first_network(there.spec(VmSpec))
    manifest, volumes, after = read_promoted(view, replica, member)
    spec = read_vm(manifest)
    quota = read_quota(view, project)
    if quota is not None:
        quota.guard(draft)
    for one in volumes:
        volume, marks = msgspec.convert(one["spec"], VolumeSpec), msgspec.convert(one["marks"], VolumeMarks)
        draft.make(VOLUME.make(one["name"], volume, now, project=project, creator=creator, marks=marks))
    draft.make(VM.make(member.vm, spec, now, project=project, creator=creator, labels=_labels(run, member)))
    draft.change(replica, marks=after)
    return _first_network(spec)


def _first_network(spec: VmSpec) -> str:
    return read_nic(spec.networks[0]).network if spec.networks else "default"


def _is_owned(item: Item, plan: Item) -> bool:
    return item.envelope.owner is not None and item.envelope.owner.uid == plan.uid


class Made(NamedTuple):
    """All that a run has made and that goes with it."""

    vms: list[Item]
    services: list[Item]
    rest: list[Item]  # what VMs use: volumes and networks

    def __bool__(self) -> bool:
        return bool(self.vms or self.services or self.rest)

    def select(self, run: RecoveryRun | None, *, stale: bool = False) -> Made:
        """Objects of the run; ``stale``: those of others."""
        begins = f"{run.name}-" if run is not None else "-"

        def choose(items: list[Item]) -> list[Item]:
            return [item for item in items if item.envelope.name.startswith(begins) is not stale]

        return Made(choose(self.vms), choose(self.services), choose(self.rest))


def _measure(write: Write) -> int:
    return len(write.value) if isinstance(write, Put) else 0


def list_made(view: View, plan: Item) -> Made:
    """Objects made by any run."""

    def find(kind: Kind) -> list[Item]:
        return [item for item in view.of_kind(kind.name).values() if _is_owned(item, plan)]

    return Made(list(view.find(WORKLOADS_BY_OWNER, plan.uid)), find(SERVICE), [*find(VOLUME), *find(NETWORK)])


def drop_made(draft: Draft, made: Made, now: float, most: int = MOST_AT_ONCE) -> None:
    """Have the VMs and services removed, and what the VMs used once they are gone; ``most`` objects now, and no more bytes than the
    commit has left beside the plan."""
    going = [*made.vms, *made.services] if made.vms else [*made.services, *made.rest]
    left = MAX_COMMIT_BYTES - MAX_VALUE_BYTES - _SPARE_BYTES - sum(map(_measure, draft.writes))
    for item in [one for one in going if not one.envelope.finalizers or not one.deleting][: max(0, most)]:
        if item.envelope.finalizers:
            left -= _measure(put(item.envelope))
            if left < 0:
                return
            draft.change(item, deleting_since=now)
        else:
            draft.delete(item)
