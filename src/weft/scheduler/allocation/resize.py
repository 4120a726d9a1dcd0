"""Gives a placed workload its new size, NICs and volumes on its node: at once what its machine can take while it runs, the rest
with its next fresh start; and the volumes that it has their larger size.

If its node lacks capacity, or a volume isn't available, it keeps what it has, and its condition Placed has the reason; of a volume
that can't grow, that volume's condition Grown. Pure but for the snapshot, which counts a larger size at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.contracts.journal import Event
from weft.contracts.policy import RESOURCES
from weft.contracts.trace.context import pass_on
from weft.informer.commit import Commit, Draft, edit, put, unchanged
from weft.informer.pool.claims import Claim
from weft.informer.view import Item, View
from weft.informer.workloads import count_starts, pass_on_starts, record_of, spec_of
from weft.kinds.allocation import (
    LOCAL,
    AllocatedImage,
    AllocatedNic,
    AllocatedVolume,
    AllocationReport,
    AllocationSpec,
    Resources,
    account,
    set_desired,
)
from weft.kinds.node import NODES_BY_UID, NodeReport, NodeStatus
from weft.kinds.parts.in_place_update import find_fit, is_as_asked, wants_fresh_start
from weft.kinds.volume import GROWN, VOLUMES_BY_UID, VolumeSpec
from weft.objects.envelope import Condition, merge_part, set_condition
from weft.objects.identity import object_key
from weft.objects.quantity import format_bytes, format_cpu
from weft.scheduler.allocation.bind import choose_cpu
from weft.scheduler.constraint.filters import describe_excess
from weft.scheduler.constraint.filters import find_pool as has_pool
from weft.scheduler.table.facts import amounts_on, claims_of, load_of
from weft.scheduler.table.snapshot import Amounts, Snapshot
from weft.scheduler.workload.request import (
    Waiting,
    allocate_nics,
    find_homes,
    find_pool,
    locate_volume,
    read_image,
    read_volumes,
)

_UNCHANGED = "unchanged: "


def plan_resize(view: View, snapshot: Snapshot, workload: Item, allocation: Item, now: float) -> Commit | None:
    """Bring the allocation to what its spec requests, as far as possible: all of it if the spec has a fresh start, else only what
    the running machine can take. None if there is nothing to write."""
    spec, workload_spec = allocation.spec(AllocationSpec), spec_of(workload)
    new = msgspec.structs.replace(
        set_desired(pass_on_starts(spec, workload), workload_spec.run),
        workload_generation=workload.envelope.generation,
    )
    preconditions = [unchanged(workload), unchanged(allocation)]
    fields = find_fit(spec, workload_spec, allocation.report(AllocationReport), count_starts(workload))
    parts = _read_parts(view, snapshot, workload, allocation, fields)
    had = parts if isinstance(parts, _Parts) else _Parts(spec.resources, spec.volumes, [], spec.nics, spec.iso)
    growth = _grow_volumes(view, snapshot, spec, had)
    where, fresh = f"on {spec.node}", wants_fresh_start(spec, workload_spec, count_starts(workload))
    if isinstance(parts, Waiting) and parts.reason == "addressPending" and not fresh:
        return None  # the address is being made, and wakes the scheduler
    new.volumes = growth.volumes
    if isinstance(parts, Waiting):
        placed = Condition("Placed", "True", parts.reason, f"{where}, {_UNCHANGED}{parts.message}", now)
    else:
        record_of(workload).resize(new, workload_spec, fields)
        if "cpu_model" in fields:
            asked = record_of(workload).needs(workload_spec).cpu_model
            new.cpu_model = next((choose_cpu(n, asked) for n in view.find(NODES_BY_UID, spec.node_uid)), "")
        new.resources, new.nics, new.iso = parts.resources, parts.nics, parts.iso
        preconditions += [unchanged(volume) for volume in parts.volume_items]
        placed = Condition("Placed", "True", "Placed", where, now)
    writes, is_new = [], fresh or not isinstance(parts, Waiting) or growth.is_given
    if is_new:
        # Until it is stored the larger of old and new counts: what a smaller size frees is not free yet.
        both, load = _join(_find_held(allocation), amounts_on(spec, new.resources)), load_of(spec)
        if new_claims := _find_growth(snapshot, spec, msgspec.structs.replace(had, volumes=new.volumes)):
            load = msgspec.structs.replace(load, claims=(*load.claims, *new_claims))
        if spec.slot is not None:
            snapshot.put_slotted(allocation.key, spec.node_uid, _slot_key(spec.slot), both, load)
        else:
            snapshot.put_allocation(allocation.key, spec.node_uid, both, load)
        place = edit(allocation)
        pass_on(workload.envelope, place)
        place.spec = merge_part(place.spec, new)
        place.generation += 1
        writes.append(put(place))
    envelope = edit(workload)
    if set_condition(envelope, msgspec.structs.replace(placed, generation=workload.envelope.generation)):
        writes.append(put(envelope))
    for volume in growth.items:
        grown = edit(volume)
        if set_condition(grown, growth.condition(volume, now)):
            writes.append(put(grown))
            preconditions.append(unchanged(volume))
    if not writes:
        return None
    if growth.lack:
        event = Event("Warning", "insufficientResources", growth.lack, growth.items[0].envelope.ref, "scheduler")
    elif isinstance(parts, Waiting):
        event = Event("Warning", parts.reason, placed.message, workload.envelope.ref, "scheduler")
    elif _is_away(view, spec):
        event = Event("Normal", "ResizeWaits", f"{where}, once the node is back", workload.envelope.ref, "scheduler")
    else:
        event = Event("Normal", "Resized", where, workload.envelope.ref, "scheduler")
    return Commit(workload.key, writes, preconditions, [event])


def clear_refused(view: View, workload: Item, allocation: Item, now: float) -> Commit | None:
    """Take back what was said of a size that couldn't be given, once nobody asks for that any more; None: nothing was."""
    spec, about, draft = allocation.spec(AllocationSpec), workload.envelope, Draft()
    where, placed = f"on {spec.node}", about.condition("Placed")
    if (
        placed is not None
        and placed.message.startswith(f"{where}, {_UNCHANGED}")
        and (placed.generation < about.generation or is_as_asked(spec, spec_of(workload)))
    ):
        draft.change(workload, conditions=[Condition("Placed", "True", "Placed", where, now, about.generation)])
    for one in spec.volumes:
        for volume in view.find(VOLUMES_BY_UID, one.uid):
            grown = volume.envelope.condition(GROWN)
            if grown is not None and grown.status == "False":
                told = Condition("Grown", "True", GROWN, "", now, volume.envelope.generation)
                draft.change(volume, conditions=[told])
    return draft.commit(workload.key)


class _Growth(msgspec.Struct, frozen=True):
    """``volumes`` as the allocation has them from now on; ``items`` were to grow, and ``lack`` says why they can't."""

    volumes: list[AllocatedVolume]
    items: list[Item]
    lack: str = ""

    @property
    def is_given(self) -> bool:
        return bool(self.items) and not self.lack

    def condition(self, volume: Item, now: float) -> Condition:
        condition = Condition("Grown", "True", GROWN, "", now, volume.envelope.generation)
        if not self.lack:
            return condition
        return msgspec.structs.replace(condition, status="False", reason="insufficientResources", message=self.lack)


def find_growing(view: View, volumes: Sequence[AllocatedVolume]) -> list[Item]:
    """Those of an allocation's volumes that have less than their spec requests."""
    found = ((volume.size, item) for volume in volumes for item in view.find(VOLUMES_BY_UID, volume.uid))
    return [item for size, item in found if not item.deleting and item.spec(VolumeSpec).size > size]


def _grow_volumes(view: View, snapshot: Snapshot, spec: AllocationSpec, parts: _Parts) -> _Growth:
    """The growth of the volumes that the allocation has had and keeps, together, beside all else that it gets."""
    has = {volume.uid for volume in spec.volumes}
    items = find_growing(view, [volume for volume in parts.volumes if volume.uid in has])
    if not items:
        return _Growth(parts.volumes, [])
    sizes = {item.uid: item.spec(VolumeSpec).size for item in items}
    volumes = [msgspec.structs.replace(one, size=sizes.get(one.uid, one.size)) for one in parts.volumes]
    row = snapshot.index_of(spec.node_uid)
    if row is None:
        return _Growth(parts.volumes, items, f"node {spec.node} is not in the fabric")
    lack = _find_excess(snapshot, row, spec, msgspec.structs.replace(parts, volumes=volumes))
    return _Growth(parts.volumes if lack else volumes, items, lack)


def _is_away(view: View, spec: AllocationSpec) -> bool:
    return any(node.status(NodeStatus).phase != "Ready" for node in view.find(NODES_BY_UID, spec.node_uid))


class _Parts(msgspec.Struct, frozen=True):
    resources: Resources
    volumes: list[AllocatedVolume]
    volume_items: list[Item]
    nics: list[AllocatedNic]
    iso: AllocatedImage | None


def _read_parts(view: View, snapshot: Snapshot, workload: Item, allocation: Item, fields: set[str]) -> _Parts | Waiting:
    """The parts that the allocation would get, ``fields`` of it as the workload's spec requests; or why it can't."""
    spec, workload_spec = allocation.spec(AllocationSpec), spec_of(workload)
    record = record_of(workload)
    ask, row = record.needs(workload_spec), snapshot.index_of(spec.node_uid)
    if row is None:
        return Waiting("nodeLost", f"node {spec.node} is not in the fabric")
    if "machine" in fields and not snapshot.machine(ask.machine)[row]:
        return Waiting("noAvailableAgents", f"{spec.node} can't run machine type {ask.machine}")
    sizes = {field: getattr(workload_spec, field) for field in fields & {"cpu", "memory"}}
    if "disk" in fields:
        sizes["disk"] = max(ask.disk, spec.resources.disk)
    resources = msgspec.structs.replace(spec.resources, **sizes)
    lack = _find_shortage(snapshot, row, _find_held(allocation), amounts_on(spec, resources), spec.slot)
    if lack and spec.slot is not None:
        where = f"reservation/{workload_spec.reservation} on {spec.node}"
        return Waiting("reservationFull", f"not enough is free in {where} for the new size: {lack}")
    if lack:
        return Waiting("insufficientResources", f"not enough capacity on {spec.node} for the new size: {lack}")
    parts = _Parts(resources, spec.volumes, [], spec.nics, spec.iso)
    if record.volumes_field in fields:
        volumes = read_volumes(view, workload, record.volumes(workload_spec))
        if isinstance(volumes, Waiting):
            return volumes
        for volume in volumes:
            if find_homes(view, volume) - {spec.node_uid}:
                return Waiting("volumesApart", f"volume {volume.envelope.name}'s data is on another node")
            pool = find_pool(view, volume)
            if not (pool == LOCAL or has_pool(snapshot, pool)[row]):
                what = f"volume {volume.envelope.name} is in storage pool {pool.partition('@')[0]}"
                return Waiting("volumesApart", f"{what}, which {spec.node} does not have")
        report = view.find(NODES_BY_UID, spec.node_uid)[0].report(NodeReport)
        has = {volume.uid: volume for volume in spec.volumes}
        found = [has[v.uid] if v.uid in has else locate_volume(v, report) for v in volumes]
        parts = msgspec.structs.replace(parts, volumes=found, volume_items=volumes)
    if lack := _find_excess(snapshot, row, spec, parts):
        return Waiting("insufficientResources", lack)
    if "networks" in fields:
        nics = allocate_nics(view, workload)
        if isinstance(nics, Waiting):
            return nics
        parts = msgspec.structs.replace(parts, nics=nics)
    if "iso" in fields:
        iso = read_image(view, workload, ask.images[1], machine=True) if ask.images[1:] else None
        if isinstance(iso, Waiting):
            return iso
        parts = msgspec.structs.replace(parts, iso=iso[0] if iso else None)
    return parts


def _find_growth(snapshot: Snapshot, spec: AllocationSpec, parts: _Parts) -> list[Claim]:
    """The disks that it would have, and pools don't hold yet in that size; but for a root disk in its node's own pool."""
    larger = msgspec.structs.replace(spec, resources=parts.resources, volumes=parts.volumes)
    return [claim for claim in claims_of(larger) if claim[2] > snapshot.pools.has(claim[0], claim[1])]


def _find_excess(snapshot: Snapshot, row: int, spec: AllocationSpec, parts: _Parts) -> str:
    """The pool that may not promise what its disks would take more, for people; empty if all may."""
    growth = dict[str, int]()
    for pool, disk, size in _find_growth(snapshot, spec, parts):
        growth[pool] = growth.get(pool, 0) + size - snapshot.pools.has(pool, disk)
    own = growth.pop(spec.node_uid, 0)
    if own:  # together with what its root disk grows by
        own += max(0, parts.resources.disk - spec.resources.disk) if spec.pool == LOCAL else 0
        if own > (free := max(0, int(snapshot.free[2, row]))):
            more = f"{format_bytes(own)} more disk requested, {format_bytes(free)} free"
            return f"not enough capacity on {spec.node} for the new size: {more}"
    for storage, more_bytes in growth.items():
        bound = snapshot.pools.find(storage)
        if more_bytes > max(0, bound.most - bound.given):
            return describe_excess(bound, more_bytes)
    return ""


def _find_held(allocation: Item) -> Amounts:
    """Amounts that it holds: its size, or more where its machine hasn't given the rest up yet."""
    spec = allocation.spec(AllocationSpec)
    return _join(amounts_on(spec, spec.resources), amounts_on(spec, account(spec, allocation.report(AllocationReport))))


def _join(one: Amounts, other: Amounts) -> Amounts:
    return max(one[0], other[0]), max(one[1], other[1]), max(one[2], other[2])


def _slot_key(name: str) -> str:
    return object_key("allocation", None, name)


def _find_shortage(snapshot: Snapshot, row: int, old: Amounts, new: Amounts, slot: str | None) -> str:
    """Lack of the node, or of its slot, for the difference, for people; empty if there is none."""
    lacks = []
    within = (
        None if slot is None or snapshot.slots.get(_slot_key(slot)) is None else snapshot.slots.free(_slot_key(slot))
    )
    for index, resource in enumerate(RESOURCES):
        free = int(snapshot.capacity[index, row] - snapshot.allocated[index, row])
        if within is not None and resource != "disk":
            free = within.cpu if resource == "cpu" else within.memory
        more = new[index] - old[index]
        if more > max(free, 0):
            words = [format_cpu(n / 1000) if resource == "cpu" else format_bytes(n) for n in (more, max(free, 0))]
            lacks.append(f"{words[0]} more {resource} requested, {words[1]} free")
    return ", ".join(lacks)
