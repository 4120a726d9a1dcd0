"""The facts that a Conversion is planned from, and the outcome: what to write. Values only."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from weft.controllers.workload.handover import HandoverFacts
from weft.informer.quotas import ProjectQuota
from weft.kinds.conversion import ConversionActions, ConversionSpec, ConversionStatus
from weft.kinds.image import ImageSpec
from weft.kinds.parts.workload import WorkloadSpec, WorkloadStatus
from weft.kinds.registry import BY_NAME, WORKLOADS
from weft.objects.lifecycle import Phase

# Fields that only one of both workloads can have at a time.
_SHARED = ("networks", "publish", "affinity_groups", "anti_affinity_groups", "spread")
_VOLUMES_FIELDS = {BY_NAME[kind].spec: record.volumes_field for kind, record in WORKLOADS.items()}


class WorkloadFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One of both workloads."""

    what: str
    spec: WorkloadSpec
    status: WorkloadStatus
    generation: int
    places: tuple[HandoverFacts, ...] = ()
    deleting: bool = False
    healthy: bool | None = None  # None: its health is not checked
    user: str = ""  # who created it
    image: str = ""  # the digest (sha256:…) that it runs, if its node has reported it
    ports: dict[int, str] = {}  # the guest's TCP ports that it publishes, with what its spec says
    answers: dict[int, bool] = {}  # whether each of them answers, as far as its node has reported it


class KnownImage(msgspec.Struct, frozen=True):
    """An Image of the project, or PROJECT/NAME of one that another project shares with it."""

    name: str
    url: str
    phase: str
    digest: str = ""
    message: str = ""
    registry_secret: str = ""


class PlacementAnswer(msgspec.Struct, frozen=True):
    """The scheduler's answer: where it would place the new workload."""

    given: bool
    node: str = ""  # empty: nowhere
    reason: str = ""
    message: str = ""


class ConversionFacts(msgspec.Struct, frozen=True, kw_only=True):
    spec: ConversionSpec
    actions: ConversionActions
    status: ConversionStatus
    old: WorkloadFacts | None  # None: it doesn't exist (any more)
    new: WorkloadFacts | None
    images: tuple[KnownImage, ...] = ()
    answer: PlacementAnswer | None = None  # None: the scheduler has not been asked
    old_uid: str = ""
    taken: bool = False  # another object has the new workload's name
    rival: str = ""  # an older Conversion of either workload
    deleting: bool = False
    mark: str = ""  # makes the name of a new Image unique
    uid: str = ""  # a fresh one
    quota: ProjectQuota | None = None  # of the project
    now: float = 0.0


class ConversionOutcome(msgspec.Struct, kw_only=True):
    status: ConversionStatus
    old: WorkloadSpec | None = None  # to write
    new: WorkloadSpec | None = None
    make: WorkloadSpec | None = None  # of a workload to make
    asks: WorkloadSpec | None = None  # to ask the scheduler about
    image: tuple[str, ImageSpec] | None = None  # to make, by name
    claims: Literal["", "new", "old"] = ""  # the workload that gets the addresses and published ports
    old_goes: bool = False  # is deleted
    new_goes: bool = False
    image_goes: bool = False
    requeue_after: float | None = None  # seconds after which to plan again even if nothing changes


def is_well(workload: WorkloadFacts) -> bool:
    """Whether it runs its newest spec, and is ready and healthy."""
    status = workload.status
    return (
        status.phase == Phase.RUNNING
        and status.observed_generation >= workload.generation
        and status.ready is not False
        and workload.healthy is not False
    )


def list_silent(facts: ConversionFacts) -> list[int]:
    """The ports on which the old one answered, and the new one doesn't."""
    new = facts.new
    return [
        port
        for port in facts.status.answered or ()
        if new is not None and port in new.ports and not new.answers.get(port)
    ]


def strip(spec: WorkloadSpec) -> WorkloadSpec:
    """``spec`` without the fields that only one workload can have."""
    return replace(spec, **{name: [] for name in _given(spec)})


def keep(spec: WorkloadSpec) -> dict[str, Any]:
    """The fields that ``strip`` empties."""
    return {name: getattr(spec, name) for name in _given(spec)}


def _given(spec: WorkloadSpec) -> tuple[str, ...]:
    return (*_SHARED, _VOLUMES_FIELDS[type(spec)])


def end(
    status: ConversionStatus, phase: Literal["Confirmed", "Undone", "Failed"], reason: str, message: str, now: float
) -> ConversionOutcome:
    return ConversionOutcome(
        status=replace(status, phase=phase, ending="", reason=reason, message=message, ended_at=now)
    )
