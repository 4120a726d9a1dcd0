"""Find the guests of this cluster that are held, and what confirms them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from weft.client.cluster.hold import Hold
from weft.controllers.failover.facts import MAY_BE_TAKEN, Group
from weft.failover.primary import is_confirmed
from weft.informer.view import Item, View
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocationSpec
from weft.kinds.cluster import ClusterSpec
from weft.kinds.fields.cluster.link import find_project_there
from weft.kinds.replication import ReplicationMarks, ReplicationSpec, subject_of
from weft.objects.errors import WeftError
from weft.protocol.failover.witness import WitnessAnswer


class HeldGuest(msgspec.Struct, frozen=True):
    """A VM whose nodes need stamps. ``stamps``: by the node's uid, those that had come before anything was asked."""

    group: str
    workload: str  # uid
    hold: Hold
    stamps: dict[str, str]


def list_guarded(view: View, groups: Sequence[Group]) -> list[tuple[Group, str, list[str]]]:
    """Groups whose VM is here, those with nodes that guard it, and those that may be taken over, be the VM stopped or gone: uid of
    the VM, and of each node.
    """
    found = []
    for group in groups:
        vm = view.get(subject_of(group.item)) if group.is_source else None
        placed = [item.spec(AllocationSpec) for item in view.find(ALLOCATIONS_BY_WORKLOAD, vm.uid)] if vm else []
        nodes = [spec.node_uid for spec in placed if spec.guard]
        may_be_taken = group.is_source and group.item.marks(ReplicationMarks).guard in MAY_BE_TAKEN
        if nodes or may_be_taken:
            found.append((group, vm.uid if vm is not None else "", nodes))
    return found


def list_held(
    cluster: Item, guarded: Sequence[tuple[Group, str, list[str]]], stamps: Mapping[str, str]
) -> list[HeldGuest]:
    """``stamps``: the newest of each node, by its uid."""
    found = []
    for group, vm, nodes in guarded:
        known = {node: stamps[node] for node in nodes if node in stamps}
        if known or group.item.marks(ReplicationMarks).guard in MAY_BE_TAKEN:
            found.append(HeldGuest(group.name, vm, read_hold(cluster, group.item), known))
    return found


def read_hold(cluster: Item, replication: Item) -> Hold:
    """How the other cluster finds the replica."""
    spec, own = replication.spec(ReplicationSpec), replication.envelope.project or ""
    there = find_project_there(cluster.spec(ClusterSpec).projects, own, spec.project_there)
    return Hold(there, spec.replica or replication.envelope.name, replication.uid, own)


def list_unconfirmed(
    held: Sequence[HeldGuest], groups: Sequence[Group], answers: Sequence[WitnessAnswer | WeftError]
) -> list[HeldGuest]:
    """Those that the witness doesn't confirm."""
    confirmed = {
        group.name
        for group, said in zip(groups, answers, strict=True)
        if isinstance(said, WitnessAnswer) and is_confirmed(group.claim, said)
    }
    return [one for one in held if one.group not in confirmed]


def sort_by_turn(held: Sequence[HeldGuest], asked: Mapping[str, float]) -> list[HeldGuest]:
    """Those first that were asked for longest ago, or never: what one round has no time for, the next begins with. ``asked``: when,
    by the group."""
    return sorted(held, key=lambda one: asked.get(one.group, 0.0))


def note_asked(
    turns: Sequence[HeldGuest], answers: Sequence[bool | None], asked: Mapping[str, float], now: float
) -> dict[str, float]:
    """``asked`` after a round, of these guests only. A refusal is an answer, and gives the others their turn."""
    return {
        one.group: asked.get(one.group, 0.0) if said is None else now for one, said in zip(turns, answers, strict=True)
    }


def merge_stamps(before: Mapping[str, Mapping[str, str]], confirmed: Sequence[HeldGuest]) -> dict[str, dict[str, str]]:
    """The stamps that nodes get back, by the node's uid and the workload's: of the nodes of ``confirmed`` only."""
    after: dict[str, dict[str, str]] = {}
    for one in confirmed:
        for node, stamp in one.stamps.items():
            after.setdefault(node, dict(before.get(node, {})))[one.workload] = stamp
    return after
