"""Whether a workload wants a place now, and its request: read from it and from the objects that it names. Pure."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from msgspec.structs import replace

from weft.contracts.policy import Datum, GpuAsk, Request, SoftTerm
from weft.informer.addresses import AddressBook, AddressProblem, WorkloadNic, awaits_place, read_nics
from weft.informer.loss.former import has_gone_on
from weft.informer.security_groups import read_groups
from weft.informer.shares import describe_missing, find_named
from weft.informer.view import Item, View
from weft.informer.volume_locations import find_data, find_strays
from weft.informer.workloads import gang_of, is_test, name_of, record_of, spec_of
from weft.kinds.allocation import (
    ALLOCATIONS_BY_VOLUME,
    ALLOCATIONS_BY_WORKLOAD,
    LOCAL,
    LOST_BY_WORKLOAD,
    ROOT,
    AllocatedGroup,
    AllocatedImage,
    AllocatedNic,
    AllocatedVolume,
    AllocationReport,
    AllocationSpec,
    Resources,
    has_ended_for_good,
)
from weft.kinds.endpoint import EndpointSpec
from weft.kinds.fields.affinity import TALKERS
from weft.kinds.fields.allocated_snapshot import AllocatedOrigin
from weft.kinds.fields.lease import LEASE_CONFLICT, AllocatedLease
from weft.kinds.image import OCI_FORMAT, ImageStatus
from weft.kinds.node import (
    NODES_BY_ORPHAN,
    NODES_BY_SNAPSHOT,
    NODES_BY_UID,
    NODES_BY_VOLUME,
    NodeReport,
    NodeStatus,
    Orphan,
    pool_id,
    read_orphan,
)
from weft.kinds.parts.goal import WRONG_IMAGE
from weft.kinds.parts.image.use import find_wrong_image
from weft.kinds.parts.nic import read_nic
from weft.kinds.parts.node.orphan import find_given_up
from weft.kinds.parts.placement_spec import REFUSALS, PlacementSpec
from weft.kinds.parts.snapshot.restored import VmOrigin
from weft.kinds.parts.workload import WORKLOADS_BY_VOLUME, WorkloadMarks, WorkloadSpec, WorkloadStatus
from weft.kinds.record import GUARD, Needs
from weft.kinds.snapshot import SnapshotStatus
from weft.kinds.volume import NODE_DELETED, VolumeMarks, VolumeSpec, VolumeStatus, is_coming, pool_of, read_origin
from weft.objects.errors import WeftError
from weft.objects.identity import object_key
from weft.scheduler.constraint.affinity import read_affinity
from weft.scheduler.constraint.expressions import Expressions, read_expressions
from weft.scheduler.constraint.near_device import read_near_device
from weft.scheduler.table.snapshot import amounts_of
from weft.scheduler.workload.arrival import ArrivingGuest, Lacking, read_arriving
from weft.scheduler.workload.disks import find_alarmed_pools, find_storage, is_used, list_lost_disks, read_needs
from weft.scheduler.workload.strategy import find_strategy


class Beginning(msgspec.Struct, frozen=True):
    """The snapshot that a workload begins from."""

    snapshot: Item  # unchanged until the placement is stored
    origin: AllocatedOrigin
    homes: set[str]  # uid of its node, if only that has it
    pools: set[str]  # pools with it, as in Request.pools
    carried: frozenset[str]  # uids of volumes whose data comes from there, though they have data on a lost node


class Candidate(msgspec.Struct, frozen=True):
    """A workload that can be placed as soon as a node fits."""

    workload: Item
    named: str  # the placement policy
    request: Request
    incarnation: int
    resources: Resources
    image: AllocatedImage | None
    iso: AllocatedImage | None
    volumes: list[AllocatedVolume]
    volume_items: list[Item]  # unchanged until the placement is stored
    nics: list[WorkloadNic]  # those without an endpoint get one with the place, see ``reserve_addresses``
    groups: list[AllocatedGroup]
    given_up: tuple[str, ...] = ()  # a sentence on each preference that its request leaves out
    lease: AllocatedLease | None = None  # when it has its place
    preempts: tuple[str, ...] = ()  # a sentence on each workload that gives way to it
    skipped: tuple[str, ...] = ()  # custom policies that gave no answer, and why
    slot: str | None = None  # key of the reserved allocation that it is in
    begins: Beginning | None = None  # from a snapshot
    continues: list[str] = []  # uids of lost allocations whose root disk is its own, newest first
    arriving: ArrivingGuest | None = None  # from another cluster, running: its place is the target of that migration

    @property
    def reserved(self) -> list[EndpointSpec]:
        """The addresses that are reserved for it, and become endpoints with its placement."""
        return [nic.reserved for nic in self.nics if nic.reserved is not None]


class Waiting(msgspec.Struct, frozen=True):
    """Why a workload that wants a place can't get one, whatever nodes there are, as token and sentence."""

    reason: str
    message: str
    address: AddressProblem | None = None  # the address that it lacks, for the condition Addressed


def lack_address(problem: AddressProblem) -> Waiting:
    return Waiting(problem.reason, problem.message, problem)


def wants_place(view: View, workload: Item) -> bool:
    """Whether a workload has no place, and its spec wants one."""
    return (
        awaits_place(view, workload)
        and not is_refused_for_good(workload)
        and not (record_of(workload).runs_once(spec_of(workload)) and workload.status(WorkloadStatus).ended)
        and (is_observed(workload) or not view.count(NODES_BY_ORPHAN, workload.key))
    )


def is_refused_for_good(workload: Item) -> bool:
    """Whether it doesn't wait for a place: a serverless workload or a lease was refused, or a lease was cancelled."""
    spec, placed = spec_of(workload), workload.envelope.condition("Placed")
    if spec.lease is not None and spec.lease.cancelled:
        return True
    if placed is None or placed.status != "False" or placed.generation != workload.envelope.generation:
        return False
    return placed.reason == LEASE_CONFLICT or (placed.reason in REFUSALS and spec.type == "serverless")


def is_observed(workload: Item) -> bool:
    """Whether the workloads controller has seen the spec: before, it may still adopt a running guest for this workload."""
    return workload.status(WorkloadStatus).observed_generation >= workload.envelope.generation


def read_candidate(view: View, workload: Item, default_strategy: str, silent: list[str]) -> Candidate | Waiting:
    """A workload that wants a place with its request, or why it must wait."""
    spec = spec_of(workload)
    project = workload.envelope.project
    known = [
        (node, orphan)
        for node in view.find(NODES_BY_ORPHAN, workload.key)
        for orphan in list_orphans(node, workload.key)
    ]
    running = [
        node
        for node, orphan in known
        if orphan.uid not in find_given_up(node.report(NodeReport))
        and not has_gone_on(view, workload, node.uid, orphan.uid, orphan.incarnation)
    ]
    if silent:
        return Waiting(
            "storeRestored",
            f"waits for {', '.join(silent)} to report what runs there: it has just joined, or the store was restored",
        )
    if running:
        where = running[0].envelope.name
        return Waiting(
            "orphanRunning", f"a guest of this name still runs on {where}, from before the store was restored"
        )
    lost, point = list_lost_disks(view, workload), workload.marks(WorkloadMarks).continues
    if (lost or point is not None) and (returned := find_returned(view, workload)):
        return Waiting("nodeReturns", f"node {returned} is back: waits for what it reports of the guest")
    try:
        chosen = find_strategy(view, project, spec, default_strategy)
        affinity = read_affinity(project or "", spec.affinity_groups, spec.anti_affinity_groups, spec.spread)
    except WeftError as problem:
        return Waiting(problem.token, problem.message)
    record = record_of(workload)
    ask = record.needs(spec)
    images = []
    for name in ask.images:
        found = read_image(view, workload, name, machine=bool(ask.machine))
        if isinstance(found, Waiting):
            return found
        images.append(found)
    image, virtual_size = images[0] if images else (None, 0)
    volumes = read_volumes(view, workload, record.volumes(spec))
    if isinstance(volumes, Waiting):
        return volumes
    nics, lack = read_nics(view, workload)
    if lack is not None:
        return lack_address(lack)
    groups = read_groups(view, workload)
    if isinstance(groups, str):
        return Waiting("groupNotReady", f'security group "{groups}" does not exist')
    expressions = read_expressions(view, project, spec, workload)
    if not isinstance(expressions, Expressions):
        return Waiting(*expressions)
    resources = Resources(cpu=spec.cpu, memory=spec.memory, disk=max(ask.disk, virtual_size))
    begins = read_beginning(view, workload, image, volumes)
    if isinstance(begins, Waiting):
        return begins
    carried = begins.carried if begins is not None else frozenset[str]()
    homes = {home for item in volumes if item.uid not in carried for home in find_homes(view, item)}
    pools = {find_pool(view, item) for item in volumes} | {f"{lost[0].pool}@{lost[0].pool_id}" if lost else ask.pool}
    if begins is not None:
        homes |= begins.homes
        pools |= begins.pools
    if len(homes) > 1:
        return Waiting("volumesApart", "its volumes' data is on different nodes")
    arriving = read_arriving(view, workload)
    if isinstance(arriving, Lacking):
        return Waiting(arriving.reason, arriving.message)
    data, leans = read_data(view, project, spec, image, volumes)
    used = {item.uid for item in volumes if item.uid not in carried and is_used(view, item)}
    disks = read_new_disks(view, workload, ask, volumes, used)
    needs = read_needs(view, workload, ask, resources, volumes, used)
    cpu, memory, _ = amounts_of(resources)
    return Candidate(
        workload=workload,
        named=chosen.named,
        request=Request(
            amounts=(cpu, memory, needs.own),
            machine=ask.machine if arriving is None else arriving.machine,
            runtime=GUARD if workload.marks(WorkloadMarks).guard else ask.runtime,
            cpu_model=_read_cpu(ask) if arriving is None else arriving.cpu_model or None,
            strategy=chosen.strategy,
            mode=spec.type,
            basis=chosen.basis,
            gang=gang_of(workload),
            pools=tuple(sorted(pools - {LOCAL})),
            disks=disks,
            asks=needs.asks,
            of_volumes=needs.of_volumes,
            alarmed_pools=find_alarmed_pools(view, disks),
            node=spec.node,
            home=next(iter(homes), None),
            least_disk=needs.of_volumes + (virtual_size if ask.pool == LOCAL else 0),
            tolerations=tuple(sorted(spec.tolerate)),
            extras=tuple(sorted(spec.resources.items())),
            gpus=read_gpus(spec),
            constraint=expressions.constraint,
            preferences=expressions.preferences,
            near=affinity.near,
            apart=affinity.apart,
            groups=affinity.groups,
            spread=affinity.spread,
            data=data,
            leans=affinity.leans + leans + read_talkers(workload, spec) + read_near_device(view, project, spec.near),
            preemptible=record.preemptible(spec) or is_test(workload),
        ),
        incarnation=max(
            [
                workload.status(WorkloadStatus).incarnation,
                *(orphan.incarnation for _, orphan in known),
                arriving.incarnation if arriving is not None else 0,
            ]
        )
        + 1,
        resources=resources,
        image=image,
        iso=images[1][0] if len(images) > 1 else None,
        volumes=[allocate_volume(item) for item in volumes],
        volume_items=volumes,
        nics=nics,
        groups=groups,
        begins=begins,
        continues=[one.uid for one in lost],
        arriving=arriving,
    )


def find_returned(view: View, workload: Item) -> str:
    """The node of its newest lost allocation, if that is back and has neither released the allocation nor reported its guest;
    else empty."""
    places = [item.spec(AllocationSpec) for item in view.find(LOST_BY_WORKLOAD, workload.uid)]
    newest = max(places, key=lambda spec: spec.incarnation, default=None)
    nodes = view.find(NODES_BY_UID, newest.node_uid) if newest is not None else ()
    return next((node.envelope.name for node in nodes if node.status(NodeStatus).phase == "Ready"), "")


def _read_cpu(ask: Needs) -> str | None:
    return None if ask.cpu_model in ("", "common", "host") else ask.cpu_model


def read_talkers(workload: Item, spec: WorkloadSpec) -> tuple[SoftTerm, ...]:
    """Its preference to be near those it talks to, if it has it."""
    return (SoftTerm("talkers", workload.uid),) if spec.near == TALKERS else ()


def read_new_disks(
    view: View, workload: Item, ask: Needs, volumes: list[Item], used: Collection[str]
) -> tuple[str, ...]:
    """The pools, by name, in which it needs a new disk: of its root disk, and of volumes without data; ``used`` have some."""
    new = {pool_of(item.spec(VolumeSpec), item.status(VolumeStatus)) for item in volumes if item.uid not in used}
    has_disk = view.count(ALLOCATIONS_BY_WORKLOAD, workload.uid) or list_lost_disks(view, workload)
    if (ask.machine or ask.disk) and not has_disk:
        new.add(ask.pool)
    return tuple(sorted(new))


def list_orphans(node: Item, key: str) -> list[Orphan]:
    """The orphans of the workload at ``key`` on the node."""
    orphans = [read_orphan(text) for text in node.report(NodeReport).orphans]
    return [orphan for orphan in orphans if orphan is not None and orphan.key == key]


def read_memberships(workload: Item) -> list[str]:
    """The groups that a workload is a member of."""
    try:
        spec = spec_of(workload)
        return list(
            read_affinity(workload.envelope.project or "", spec.affinity_groups, spec.anti_affinity_groups, ()).groups
        )
    except WeftError:
        return []  # written by a newer weft: its condition Placed explains why it waits


def read_data(
    view: View, project: str | None, spec: WorkloadSpec, image: AllocatedImage | None, volumes: list[Item]
) -> tuple[tuple[Datum, ...], tuple[SoftTerm, ...]]:
    """The data that a workload reads, and preferences for it.

    Volumes' data must be at hand anyway (see Request.home). Hinted data must be if the storage locality is required; a hint may
    name a volume or an image, or a data set that nodes name."""
    required = spec.storage_locality == "required"
    own = [Datum(f"image:{image.sha256}", image.size)] if image is not None else []
    own += [Datum(f"volume:{item.uid}", item.spec(VolumeSpec).size) for item in volumes]
    hints = []
    for hint in spec.data_hints:
        kind, _, name = hint.partition(":")
        item = view.get(object_key(kind, project, name)) if kind in ("volume", "image") else None
        if item is None:
            hints.append(Datum(f"pool:{hint}", 0, required))
        elif kind == "volume":
            hints.append(Datum(f"volume:{item.uid}", item.spec(VolumeSpec).size, required))
        else:
            status = item.status(ImageStatus)
            hints.append(Datum(f"image:{status.sha256}", status.size, required))
    data = {datum.name: datum for datum in (*own, *hints)}
    leaned = [] if required else data if spec.storage_locality == "preferred" else [hint.name for hint in hints]
    return tuple(data.values()), tuple(SoftTerm("data", name) for name in leaned)


def read_gpus(spec: PlacementSpec) -> GpuAsk | None:
    """The GPUs that it requests, if any."""
    if not spec.gpus and spec.gpu_share is None:
        return None
    share = 1000 if spec.gpu_share is None else max(1, round(spec.gpu_share * 1000))
    return GpuAsk(max(1, spec.gpus), share, spec.gpu_memory, tuple(sorted(spec.gpu_models)))


def read_beginning(
    view: View, workload: Item, image: AllocatedImage | None, volumes: list[Item]
) -> Beginning | Waiting | None:
    """The snapshot that a workload begins from, or goes on from after its node was lost, and where that is; or why it can't begin
    yet. None for one that has a place or its own disks, or whose disks come from its image."""
    asked: VmOrigin | None = record_of(workload).origin(spec_of(workload))
    point = workload.marks(WorkloadMarks).continues
    if (asked is None and point is None) or view.count(ALLOCATIONS_BY_WORKLOAD, workload.uid):
        return None
    if point is None and any(one.has_begun for one in list_lost_disks(view, workload)):
        return None
    name = point.snapshot if point is not None else asked.snapshot if asked is not None else ""
    snapshot = view.get(object_key("snapshot", workload.envelope.project, name))
    what = f"snapshot/{name}"
    if snapshot is None or snapshot.deleting or (point is not None and snapshot.uid != point.snapshot_uid):
        gone = "is being deleted" if snapshot is not None and snapshot.deleting else "is gone"
        return Waiting("snapshotMissing", f"{what}, from which it begins, {gone}")
    status = snapshot.status(SnapshotStatus)
    if status.phase == "Failed":
        return Waiting("snapshotFailed", f"{what}, from which it begins, failed: {status.message or status.reason}")
    if status.phase == "Unavailable":
        return Waiting("snapshotMissing", f"{what}, from which it begins: {status.message}")
    if status.phase != "Ready" and not status.serves:
        why = f": {status.message}" if status.message else ""
        return Waiting("snapshotNotReady", f"waits until {what} is {'there' if point is not None else 'taken'}{why}")
    if image is not None and status.image_sha256 not in ("", image.sha256):
        return Waiting("snapshotFailed", f"{what} stands on an earlier content of image {image.name}")
    disks = {ROOT: status.disks[ROOT].key} if ROOT in status.disks else {}
    if point is not None and ROOT not in disks:
        return Waiting("snapshotFailed", f"{what}, from which it goes on, has no root disk")
    own = {disk.key for disk in status.disks.values()}
    for volume in volumes:
        of = read_origin(volume)
        if point is not None:
            disks |= {volume.uid: volume.uid} if volume.uid in own else {}
        elif of is not None and of.snapshot == name and of.disk in status.disks:
            disks[volume.uid] = status.disks[of.disk].key
    holders = view.find(NODES_BY_SNAPSHOT, snapshot.uid)
    if not holders and not view.find(NODES_BY_UID, status.node_uid or ""):
        return Waiting("snapshotMissing", f"node {status.node}, which had {what}, is gone")
    is_local = any(disk.pool in ("", LOCAL) for disk in status.disks.values())
    homes = {status.node_uid} if is_local and status.node_uid else set()
    pools = {f"{status.pool}@{status.pool_id}"} if not is_local and status.pool_id else set()
    origin = AllocatedOrigin(snapshot=snapshot.uid, name=name, disks=disks)
    if point is not None:
        carried = frozenset(disks) - {ROOT}
        if any(node.uid in homes for uid in carried for node in view.find(NODES_BY_VOLUME, uid)):
            return Waiting("nodeReturns", f"waits until node {status.node} has put away what it has of its volumes")
        return Beginning(snapshot, replace(origin, lost_since=point.taken_at), homes, pools, carried)
    first = not workload.status(WorkloadStatus).incarnation  # later its disks have gone on from there
    memory = asked is not None and asked.memory and first and status.memory > 0
    return Beginning(snapshot, replace(origin, memory=memory, identity=True), homes, pools, frozenset())


def read_image(view: View, workload: Item, name: str, *, machine: bool) -> tuple[AllocatedImage, int] | Waiting:
    """An image as an allocation has it, and the size of its disk; for a ``machine``, or for a container."""
    item = find_named(view, workload, "image", name)
    if item is None:
        return Waiting("imageNotReady", f'image "{name}" {describe_missing(workload, name)}')
    status = item.status(ImageStatus)
    if status.phase == "Failed":
        return Waiting("imageFailed", f"image {name}: {status.message or status.reason}")
    if status.phase != "Available":
        return Waiting("imageNotReady", f"image {name} is being fetched")
    image = AllocatedImage(
        name=name,
        uid=item.uid,
        sha256=status.sha256,
        size=status.size,
        url=f"/v1/blobs/{status.sha256}",
        digest=status.digest if status.format == OCI_FORMAT else "",
    )
    wrong = find_wrong_image(name, status, "VM" if machine else "container")
    if wrong is not None:
        return Waiting(WRONG_IMAGE, ": ".join(wrong))
    return image, status.virtual_size


def read_volumes(view: View, placed_workload: Item, names: list[str]) -> list[Item] | Waiting:
    """The volumes that a workload names, or why it can't have them."""
    found = []
    for name in names:
        item = view.get(object_key("volume", placed_workload.envelope.project, name))
        if item is None or item.deleting:
            return Waiting(
                "volumeNotReady",
                f'volume "{name}" does not exist' if item is None else f"volume {name} is being deleted",
            )
        spec, status = item.spec(VolumeSpec), item.status(VolumeStatus)
        if is_coming(item, status):
            message = status.message or "its data comes from a snapshot"
            return Waiting("volumeNotReady", f"volume {name} is not ready: {message}")
        if item.marks(VolumeMarks).orphan is not None:
            return Waiting("volumeOrphaned", f"volume {name} is an orphan: weft volume reclaim {name}")
        if status.reason == NODE_DELETED and placed_workload.marks(WorkloadMarks).continues is None:
            return Waiting("volumesApart", f"volume {name}: {status.message}")
        if spec.encrypted and not record_of(placed_workload).needs(spec_of(placed_workload)).machine:
            what = f"volume {name} is encrypted, and {placed_workload.envelope.kind}s can't read encrypted volumes"
            return Waiting("volumeNotReady", f"{what}; give it to a VM")
        origin = read_origin(item)
        if origin is not None and item.status(VolumeStatus).node_uid is None and not find_data(view, item.uid):
            begins = record_of(placed_workload).origin(spec_of(placed_workload))
            if begins is None or begins.snapshot != origin.snapshot:
                what = f"volume {name} gets its data only with a VM that begins from snapshot/{origin.snapshot}"
                return Waiting("volumeNotReady", f"{what}; create another volume")
        for allocation in view.find(ALLOCATIONS_BY_VOLUME, item.uid):
            workload = allocation.spec(AllocationSpec).workload
            ended = has_ended_for_good(allocation.spec(AllocationSpec), allocation.report(AllocationReport))
            if workload.uid != placed_workload.uid and not ended:
                return Waiting("volumeInUse", f"volume {name} is attached to {workload.kind}/{workload.name}")
        for other in view.find(WORKLOADS_BY_VOLUME, item.key):
            conversion = other.status(WorkloadStatus).conversion
            if other.uid != placed_workload.uid and conversion:  # which may hand the volume back to it
                return Waiting("volumeInUse", f"volume {name} belongs to {name_of(other)} by conversion/{conversion}")
        found.append(item)
    return found


def allocate_volume(item: Item) -> AllocatedVolume:
    """A volume as its allocation has it; which storage its pool is depends on the node."""
    spec = item.spec(VolumeSpec)
    pool = pool_of(spec, item.status(VolumeStatus))
    return AllocatedVolume(name=item.envelope.name, uid=item.uid, size=spec.size, pool=pool, encrypted=spec.encrypted)


def locate_volume(item: Item, report: NodeReport) -> AllocatedVolume:
    """A volume as its allocation has it on the node with this ``report``."""
    return locate_volumes([allocate_volume(item)], report)[0]


def locate_volumes(volumes: list[AllocatedVolume], report: NodeReport) -> list[AllocatedVolume]:
    """``volumes`` in the pools of the node with this ``report``."""
    return [msgspec.structs.replace(volume, pool_id=pool_id(report, volume.pool)) for volume in volumes]


def find_pool(view: View, volume: Item) -> str:
    """The pool that a volume needs, see Request.pools: by name, or the very one where its data is."""
    name = pool_of(volume.spec(VolumeSpec), volume.status(VolumeStatus))
    if name == LOCAL:
        return LOCAL
    id_ = find_storage(view, volume)
    return f"{name}@{id_}" if id_ else name


def find_homes(view: View, volume: Item) -> set[str]:
    """Uids of the nodes with a volume's data in their own storage: one, or none if it was never used; several if the store doesn't
    know which is its home."""
    if pool_of(volume.spec(VolumeSpec), volume.status(VolumeStatus)) != LOCAL:
        return set()
    home = volume.status(VolumeStatus).node_uid
    if home is not None:
        return {node.uid for node in find_strays(view, volume.uid, home)} or {home}
    # A restored store may be older than the volume's first use; its data mustn't be passed over for an empty disk.
    return {node.uid for node in find_data(view, volume.uid)}


def allocate_nics(view: View, workload: Item) -> list[AllocatedNic] | Waiting:
    """The NICs of a workload, in the order of its networks, if it has an address in each."""
    nics, _ = read_nics(view, workload)
    there = {nic.index: nic.allocate() for nic in nics if nic.endpoint is not None}
    for index, written in enumerate(spec_of(workload).networks):
        if index not in there:
            return Waiting("addressPending", f"no address in network {read_nic(written).network} yet")
    return list(there.values())


def reserve_addresses(book: AddressBook, view: View, candidates: list[Candidate]) -> list[Candidate] | Waiting:
    """``candidates`` with an address for each NIC, reserved in ``book``; or why one of them can't get one, with none reserved."""
    ready: list[Candidate] = []
    for candidate in candidates:
        if all(nic.endpoint is not None for nic in candidate.nics):
            ready.append(candidate)
            continue
        macs = {nic.endpoint.spec(EndpointSpec).mac for nic in candidate.nics if nic.endpoint is not None}
        nics: list[WorkloadNic] = []
        ready.append(msgspec.structs.replace(candidate, nics=nics))
        for nic in candidate.nics:
            got = nic if nic.endpoint is not None else book.reserve(view, candidate.workload, nic, macs)
            if isinstance(got, AddressProblem):
                book.give_back(view, [spec for each in ready for spec in each.reserved])
                return lack_address(got)
            nics.append(got)
    return ready
