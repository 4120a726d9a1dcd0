"""Workloads as controllers and scheduler read them, of any kind. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from weft.informer.view import Item, View
from weft.kinds.allocation import RESERVATIONS_BY_MIGRATION, AllocationSpec
from weft.kinds.container import ContainerActions
from weft.kinds.parts.workload import WorkloadActions, WorkloadMarks, WorkloadSpec, name_gang
from weft.kinds.record import Workload
from weft.kinds.registry import BY_NAME, WORKLOADS


def spec_of(item: Item) -> WorkloadSpec:
    """The spec of a workload, as its own kind's struct; shared, so don't change it."""
    spec = item.spec(BY_NAME[item.envelope.kind].spec)
    assert isinstance(spec, WorkloadSpec), item.key
    return spec


def record_of(item: Item) -> Workload:
    """The Workload record of its kind."""
    return WORKLOADS[item.envelope.kind]


def count_starts(item: Item) -> int:
    """The workload's counter of starts: its guest is started afresh when that grows."""
    return item.actions(WorkloadActions).restart_generation


def pass_on_starts(spec: AllocationSpec, workload: Item) -> AllocationSpec:
    """An allocation's spec with the starts, and pulls of the image, that people have asked for."""
    container, starts = spec.container, max(count_starts(workload), spec.restart_generation)
    if container is not None:
        pulls = max(workload.actions(ContainerActions).pulls, container.pulls)
        container = msgspec.structs.replace(container, pulls=pulls)
    return msgspec.structs.replace(spec, restart_generation=starts, container=container)


def find_hostname(item: Item) -> str:
    """Hostname in networks; "": its name. ``item`` may be a service, which has an address, too."""
    test = item.marks(WorkloadMarks).test if item.envelope.kind in WORKLOADS else None
    return test.hostname if test is not None else ""


def is_test(workload: Item) -> bool:
    """Whether weft made it to test a backup or to rehearse a recovery, and removes it again."""
    return workload.marks(WorkloadMarks).test is not None


def list_workloads(view: View) -> Iterator[Item]:
    """All workloads of every kind."""
    for kind in WORKLOADS:
        yield from view.of_kind(kind).values()


def gang_of(workload: Item) -> str:
    """``default/web``; "" if it is in no gang."""
    return name_gang(workload.envelope.project, spec_of(workload))


def find_reservation(view: View, migration: Item) -> Item | None:
    """The capacity that is reserved for a Migration until it begins."""
    return next(iter(view.find(RESERVATIONS_BY_MIGRATION, migration.uid)), None)


def name_of(item: Item) -> str:
    """``vm/web``"""
    return f"{item.envelope.kind}/{item.envelope.name}"
