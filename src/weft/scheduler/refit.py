"""Gives a placed VM its new size, NICs and volumes where it is, with the fresh start that it needs for them.

If its node has no room for it, or a volume can't be had, it starts with what it has, and the VM's condition Placed says why.
Pure but for the snapshot, in which a larger size is counted at once.
"""

from __future__ import annotations

import msgspec

from weft.client.commit import Commit, edit, put, unchanged
from weft.client.view import Item, View
from weft.contracts.journal import Event
from weft.contracts.policy import RESOURCES
from weft.kinds.allocation import AllocatedImage, AllocatedNic, AllocatedVolume, AllocationSpec, Resources
from weft.kinds.vm import VmSpec
from weft.kinds.volume import VolumeSpec, VolumeStatus
from weft.objects.envelope import Condition, merge_part, set_condition
from weft.objects.quantity import format_bytes, format_cpu
from weft.scheduler.request import Waiting, read_image, read_nics, read_volumes
from weft.scheduler.snapshot import Amounts, Snapshot, amounts_of


def plan_refit(view: View, snapshot: Snapshot, vm: Item, allocation: Item, now: float) -> Commit:
    """Pass on the wish for a fresh start, with what was asked for if it can be had."""
    spec, wish = allocation.spec(AllocationSpec), vm.spec(VmSpec)
    new = msgspec.structs.replace(
        spec, workload_generation=vm.envelope.generation, wish=wish.run, boots=max(wish.boots, spec.boots)
    )
    preconditions = [unchanged(vm), unchanged(allocation)]
    parts = _read_parts(view, snapshot, vm, allocation)
    where = f"on {spec.node}"
    if isinstance(parts, Waiting):
        placed = Condition("Placed", "True", parts.reason, f"{where}, unchanged: {parts.message}", now)
    else:
        new.machine, new.resources, new.nics = wish.machine, parts.resources, parts.nics
        new.firmware, new.iso, new.screen = wish.firmware, parts.iso, wish.screen
        new.volumes = [
            AllocatedVolume(name=item.envelope.name, uid=item.uid, size=item.spec(VolumeSpec).size)
            for item in parts.volumes
        ]
        preconditions += [unchanged(volume) for volume in parts.volumes]
        # Until it is written the larger of old and new counts: what a smaller one frees is not free yet.
        old, wanted = amounts_of(spec.resources), amounts_of(parts.resources)
        both = (max(old[0], wanted[0]), max(old[1], wanted[1]), max(old[2], wanted[2]))
        snapshot.put_allocation(allocation.key, spec.node_uid, both)
        placed = Condition("Placed", "True", "Placed", where, now)
    place = edit(allocation)
    place.spec = merge_part(place.spec, new)
    place.generation += 1
    envelope = edit(vm)
    told = set_condition(envelope, msgspec.structs.replace(placed, generation=vm.envelope.generation))
    writes = [put(place), put(envelope)] if told else [put(place)]
    if isinstance(parts, Waiting):
        event = Event("Warning", parts.reason, placed.message, vm.envelope.ref, "scheduler")
    else:
        event = Event("Normal", "Refitted", where, vm.envelope.ref, "scheduler")
    return Commit(vm.key, writes, preconditions, [event])


class _Parts(msgspec.Struct, frozen=True):
    resources: Resources
    volumes: list[Item]
    nics: list[AllocatedNic]
    iso: AllocatedImage | None


def _read_parts(view: View, snapshot: Snapshot, vm: Item, allocation: Item) -> _Parts | Waiting:
    """What the place would get, or why it can't have it."""
    spec, wish = allocation.spec(AllocationSpec), vm.spec(VmSpec)
    row = snapshot.index_of(spec.node_uid)
    if row is None:
        return Waiting("nodeLost", f"node {spec.node} is not there")
    if not snapshot.machine(wish.machine)[row]:
        return Waiting("noAvailableAgents", f"{spec.node} can't run machine type {wish.machine}")
    resources = Resources(cpu=wish.cpu, memory=wish.memory, disk=spec.resources.disk)
    lack = _find_lack(snapshot, row, amounts_of(spec.resources), amounts_of(resources))
    if lack:
        return Waiting("insufficientResources", f"no room on {spec.node} for its new size: {lack}")
    volumes = read_volumes(view, vm, wish.volumes)
    if isinstance(volumes, Waiting):
        return volumes
    for volume in volumes:
        if volume.status(VolumeStatus).node_uid not in (None, spec.node_uid):
            return Waiting("volumesApart", f"volume {volume.envelope.name}'s data lies on another node")
    nics = read_nics(view, vm, wish.networks)
    if isinstance(nics, Waiting):
        return nics
    iso = read_image(view, vm.envelope.project, wish.iso) if wish.iso else None
    return iso if isinstance(iso, Waiting) else _Parts(resources, volumes, nics, iso[0] if iso else None)


def _find_lack(snapshot: Snapshot, row: int, old: Amounts, new: Amounts) -> str:
    """What the node lacks for the difference, in words; empty if it lacks nothing."""
    lacks = []
    for index, resource in enumerate(RESOURCES):
        free = int(snapshot.capacity[index, row] - snapshot.allocated[index, row])
        more = new[index] - old[index]
        if more > max(free, 0):
            words = [format_cpu(n / 1000) if resource == "cpu" else format_bytes(n) for n in (more, max(free, 0))]
            lacks.append(f"{words[0]} more {resource} wanted, {words[1]} free")
    return ", ".join(lacks)
