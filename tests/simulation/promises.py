"""What must be in the end, when nothing goes wrong any more: every wish met, nothing lost, doubled or left over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.conversions import check_sides
from tests.simulation.node import Node
from tests.simulation.people import Person
from tests.simulation.snapshots import check_snapshots
from weft.kinds.allocation import AllocationReport, AllocationSpec, account
from weft.kinds.migration import ENDED, MigrationSpec, MigrationStatus
from weft.kinds.node import NodeReport, read_orphan
from weft.kinds.parts.in_place_update import plan_fit
from weft.kinds.parts.node.orphan import OrphanCopy, read_copies
from weft.kinds.parts.workload import WorkloadActions, WorkloadStatus
from weft.kinds.registry import WORKLOADS
from weft.kinds.vm import VmSpec
from weft.kinds.volume import VolumeStatus
from weft.objects.envelope import Envelope, decode_part
from weft.objects.identity import SHORT_ID, short_id

if TYPE_CHECKING:
    from tests.simulation.fabric import Fabric


def find_unmet(fabric: Fabric) -> list[str]:
    """What is not as people wished; empty when all is well."""
    found: list[str] = []
    guests = {uid: state for node in fabric.nodes for uid, state in node.guests().items()}
    for person in fabric.people:
        found += _check_vm(fabric, person, guests) + _check_volume(fabric, person)
    for converter in fabric.converters:
        found += check_sides(fabric, converter)
    found += check_snapshots(fabric) if fabric.snapshots else []
    found += fabric.register.find_unmet()
    found += _check_moves(fabric)
    for node in fabric.nodes:
        found += _check_node(fabric, node)
    return found


def _check_vm(fabric: Fabric, person: Person, guests: dict[str, str]) -> list[str]:
    name, wanted = person.name, person.wanted
    vm = next((vm for vm in fabric.ledger.notes.objects("vm") if vm.name == name), None)
    if wanted is None:
        return [] if vm is None else [f"vm {name} is still there"]
    if vm is None or vm.uid != wanted["uid"]:
        return [f"vm {name} is lost"]
    if vm.deleting_since is not None:
        return [f"vm {name} is being deleted; nobody asked for it"]
    spec, status = decode_part(vm.spec, VmSpec), decode_part(vm.status, WorkloadStatus)
    starts = decode_part(vm.actions, WorkloadActions).restart_generation
    asked = (
        wanted["spec"].get("run"),
        wanted["spec"].get("hold"),
        (wanted.get("actions") or {}).get("restart_generation", 0),
    )
    if asked != (spec.run, spec.hold, starts):
        return [f"vm {name}: {asked} was asked for, the store has {spec.run} {spec.hold} {starts}"]
    places = [a for a in fabric.ledger.notes.objects("allocation") if fabric.witness.workload_of[a.uid] == vm.uid]
    if not places:
        return _check_placeless(fabric, person, vm, spec, status)
    if len(places) > 1:
        return [f"vm {name} has {len(places)} places"]
    report = decode_part(places[0].report, AllocationReport)
    guest = guests.get(places[0].uid, "absent")
    ok = {
        "run": status.phase == "Running" and guest == "running" and report.restart_generation >= starts,
        "stop": status.phase == "Stopped" and guest in ("stopped", "absent", "failed"),
        "suspend": status.phase in ("Suspended", "Stopped") and guest in ("suspended", "stopped", "absent", "failed"),
    }[spec.run]
    if report.reason == "blocked" and (fabric.restores or fabric.removals):
        return []  # by an orphan of the same name
    if ok and spec.run == "run" and (lack := _check_shape(vm, places[0], spec, report)):
        return [f"vm {name}: {lack}"]
    return [] if ok else [f"vm {name}: {spec.run} wished, {status.phase}, guest {guest}, {report.reason}"]


def _check_moves(fabric: Fabric) -> list[str]:
    found = []
    for item in fabric.ledger.notes.objects("migration"):
        spec, status = decode_part(item.spec, MigrationSpec), decode_part(item.status, MigrationStatus)
        if status.phase not in ENDED:
            told = f"{status.phase} {status.ending} {status.reason} {status.message}"
            found.append(f"migration {item.name} of {spec.workload} has not ended: {told}")
    nodes = {node.uid for node in fabric.ledger.notes.objects("node")}
    for place in fabric.ledger.notes.objects("allocation"):
        at = decode_part(place.spec, AllocationSpec)
        if at.node_uid not in nodes:
            found.append(f"the place of {at.workload.name} is on node {at.node}, which isn't there")
        if at.role != "active" or at.migration is not None:
            found.append(f"the place of {at.workload.name} on {at.node} is a {at.role} still")
    return found


def _check_shape(vm: Envelope, place: Envelope, spec: VmSpec, report: AllocationReport) -> str:
    """What of its wishes a running guest has not got, though it could and there is room."""
    placed = vm.condition("Placed")
    if report.fitted < place.generation:
        return f"its guest was brought to generation {report.fitted} of its place, not {place.generation}"
    if placed is not None and placed.reason == "insufficientResources":
        return ""
    late = [c.path for c in plan_fit(decode_part(place.spec, AllocationSpec), spec, report) if c.mode == "live"]
    return f"{late} could be live, and is not" if late else ""


def _check_placeless(fabric: Fabric, person: Person, vm: Envelope, spec: VmSpec, status: WorkloadStatus) -> list[str]:
    if (spec.hold or spec.run != "run") and status.phase in ("Hold", "Pending"):
        return []
    crowded = fabric.migrations or fabric.jobs or fabric.restores or fabric.removals
    if crowded and status.reason == "insufficientResources" and not _has_room(fabric, spec, person):
        return []  # others came to where its volume is, or guests without a place are there
    if status.reason == "orphanRunning" and any(vm.key in _orphans(fabric, n).values() for n in fabric.nodes):
        return []  # another guest of this name runs since before a restore; which of them is wanted only people know
    return [f"vm {vm.name} has no place ({status.phase}: {status.reason} {status.message})"]


def _has_room(fabric: Fabric, spec: VmSpec, person: Person) -> bool:
    """Whether a node that may have it has room for it."""
    volume = next((v for v in fabric.ledger.notes.objects("volume") if v.name == person.volume), None)
    home = decode_part(volume.status, VolumeStatus).node_uid if volume is not None and spec.volumes else None
    places = fabric.ledger.notes.objects("allocation")
    taken = [(decode_part(p.spec, AllocationSpec), decode_part(p.report, AllocationReport)) for p in places]
    for node in fabric.nodes if home is None else [node for node in fabric.nodes if node.uid == home]:
        here = [account(at, report) for at, report in taken if at.node_uid == node.uid]
        here += [copy.spec.resources for copy in _copies(fabric, node) if copy.standing in ("here", "open")]
        cpu, memory = sum(a.cpu for a in here) + spec.cpu, sum(a.memory for a in here) + spec.memory
        if cpu <= node.host.capacity.cpu and memory <= node.host.capacity.memory_bytes:
            return True
    return False


def _check_volume(fabric: Fabric, person: Person) -> list[str]:
    volume = next((v for v in fabric.ledger.notes.objects("volume") if v.name == person.volume), None)
    if volume is not None and volume.deleting_since is not None and (fabric.restores or fabric.removals):
        home = decode_part(volume.status, VolumeStatus).node_uid
        if any(_orphans(fabric, node) for node in fabric.nodes if node.uid == home):
            return []  # an orphan may have it
    if (volume is not None) != person.has_volume:
        return [f"volume {person.volume} is {'still there' if volume is not None else 'lost'}"]
    if volume is None:
        return []
    homes = {node.uid: node.name for node in fabric.nodes if volume.uid in node.shelf.volumes}
    status = decode_part(volume.status, VolumeStatus)
    # None of several is its home, or an older store lists a stopped guest where the data left with another (0044): it is told.
    excused = len(homes) > 1 or (fabric.restores > 0 and status.attached_to is not None)
    if homes and status.node_uid not in homes and not (excused and {*homes.values()} <= {*status.copies}):
        return [f"volume {person.volume} has its data elsewhere than where it is looked for"]
    if len(homes) > 1 and not (fabric.restores or fabric.removals):
        return [f"volume {person.volume} has data on two nodes"]
    # What an older store has forgotten, or a node that was given up brings back, is there: it is told, and not touched.
    told = {*status.copies, *_attached(fabric, volume.uid)}
    if untold := {name for uid, name in homes.items() if uid != status.node_uid} - told:
        return [f"volume {person.volume} has data on {sorted(untold)} too, and nobody tells of it"]
    return []


def _attached(fabric: Fabric, volume: str) -> set[str]:
    """The nodes with a place that the volume belongs to."""
    places = [decode_part(place.spec, AllocationSpec) for place in fabric.ledger.notes.objects("allocation")]
    return {at.node for at in places if volume in [one.uid for one in at.volumes]}


def _check_node(fabric: Fabric, node: Node) -> list[str]:
    found = []
    allocations = fabric.ledger.notes.objects("allocation")
    here = {a.uid for a in allocations if decode_part(a.spec, AllocationSpec).node_uid == node.uid}
    orphans = _orphans(fabric, node)
    if orphans and not (fabric.restores or fabric.removals):
        found.append(f"node {node.name} has orphans: {sorted(orphans)}")
    workloads = {item.uid for kind in WORKLOADS for item in fabric.ledger.notes.objects(kind)}
    found += [
        f"node {node.name} keeps {orphans[uid]}, which was deleted after the node was given up"
        for uid in sorted(orphans.keys() & fabric.witness.given_up)
        if fabric.witness.workload_of[uid] not in workloads
    ]
    for uid, state in node.guests().items():
        if uid not in here and uid not in orphans:
            found.append(f"guest of allocation {uid} on {node.name} is an orphan that nobody tells of ({state})")
    explained = {short_id(uid) for uid in (*here, *orphans)}
    if left := node.copies() - explained:
        found.append(f"node {node.name} keeps the allocations {sorted(left)}, which nothing explains")
    disks = set(node.shelf.volumes)
    if fabric.removals:  # a volume may be deleted while its node is away: the data is kept there
        disks = {disk for disk in disks if len(disk) == SHORT_ID}
    # A volume may also be deleted while a node is lost that only could say that it has it (docs/status.md): then it is told.
    left_behind = {uid for uid, nodes in fabric.witness.left_behind.items() if node.uid in nodes}
    disks -= left_behind & set(_read_report(fabric, node).volumes)
    volumes = {volume.uid for volume in fabric.ledger.notes.objects("volume")} | fabric.forgotten_volumes
    if left := disks - explained - volumes:
        found.append(f"node {node.name} keeps the disks {sorted(left)}, which nothing explains")
    return found


def _orphans(fabric: Fabric, node: Node) -> dict[str, str]:
    """What the node has told the server that it can't explain: allocation uid → workload key."""
    texts = _read_report(fabric, node).orphans
    return {orphan.uid: orphan.key for text in texts if (orphan := read_orphan(text)) is not None}


def _copies(fabric: Fabric, node: Node) -> list[OrphanCopy]:
    return read_copies(_read_report(fabric, node))


def _read_report(fabric: Fabric, node: Node) -> NodeReport:
    envelope = next((n for n in fabric.ledger.notes.objects("node") if n.uid == node.uid), None)
    return decode_part(envelope.report, NodeReport) if envelope is not None else NodeReport()
