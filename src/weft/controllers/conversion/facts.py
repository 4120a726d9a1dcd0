"""What is known of a Conversion's two sides, of Images and of what the scheduler says, and what is to be written then: the values
that its plan is made of. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from weft.kinds.conversion import ConversionSpec, ConversionStatus
from weft.kinds.image import ImageSpec
from weft.kinds.parts.workload import WorkloadSpec, WorkloadStatus
from weft.kinds.registry import BY_NAME, WORKLOADS
from weft.objects.lifecycle import Phase

# What only one of two workloads can have at a time, and lies in the way of the other: NICs, ports, volumes, places in groups.
_SHARED = ("networks", "publish", "affinity_groups", "anti_affinity_groups", "spread")
_VOLUMES_FIELDS = {BY_NAME[kind].spec: record.volumes_field for kind, record in WORKLOADS.items()}


class Place(msgspec.Struct, frozen=True):
    """One allocation: ``rests``, as its node says, stopped as it was asked to; ``holds`` volumes or NICs."""

    rests: bool
    holds: bool


class WorkloadFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One of both workloads. ``healthy`` None: nobody asks it. ``image`` is the digest (sha256:…) that it runs, as far as its node
    has said."""

    what: str
    spec: WorkloadSpec
    status: WorkloadStatus
    generation: int
    places: tuple[Place, ...] = ()
    deleting: bool = False
    healthy: bool | None = None
    image: str = ""


class KnownImage(msgspec.Struct, frozen=True):
    """An Image of the project."""

    name: str
    url: str
    phase: str
    digest: str = ""
    message: str = ""
    registry_secret: str = ""


class Answer(msgspec.Struct, frozen=True):
    """What the scheduler says of where the new one would go: ``given`` it is, ``node`` empty: nowhere."""

    given: bool
    node: str = ""
    reason: str = ""
    message: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """``old`` and ``new`` None: it isn't there (any more). ``taken``: another object has the new one's name. ``rival``: an older
    Conversion of either. ``answer`` None: nobody has been asked. ``mark`` tells the name of an Image from others', ``uid`` is a
    fresh one."""

    spec: ConversionSpec
    status: ConversionStatus
    old: WorkloadFacts | None
    new: WorkloadFacts | None
    images: tuple[KnownImage, ...] = ()
    answer: Answer | None = None
    old_uid: str = ""
    taken: bool = False
    rival: str = ""
    deleting: bool = False
    mark: str = ""
    uid: str = ""
    now: float = 0.0


class Outcome(msgspec.Struct, kw_only=True):
    """``old`` and ``new``: specs to write, ``make`` that of a new one; those that ``go`` are deleted. ``asks``: the spec that the
    scheduler is asked about. ``claims``: whose addresses and published ports are to be from now on. ``look_after`` seconds it is
    to be looked at again whatever happens."""

    status: ConversionStatus
    old: WorkloadSpec | None = None
    new: WorkloadSpec | None = None
    make: WorkloadSpec | None = None
    asks: WorkloadSpec | None = None
    image: tuple[str, ImageSpec] | None = None
    claims: Literal["", "new", "old"] = ""
    old_goes: bool = False
    new_goes: bool = False
    image_goes: bool = False
    look_after: float | None = None


def is_well(side: WorkloadFacts) -> bool:
    """Whether it runs and answers as it was asked to last."""
    status = side.status
    return (
        status.phase == Phase.RUNNING
        and status.observed_generation >= side.generation
        and status.ready is not False
        and side.healthy is not False
    )


def strip(spec: WorkloadSpec) -> WorkloadSpec:
    """It, without what only one can have."""
    return replace(spec, **{name: [] for name in _given(spec)})


def keep(spec: WorkloadSpec) -> dict[str, Any]:
    """What ``strip`` takes away."""
    return {name: getattr(spec, name) for name in _given(spec)}


def _given(spec: WorkloadSpec) -> tuple[str, ...]:
    return (*_SHARED, _VOLUMES_FIELDS[type(spec)])


def end(
    status: ConversionStatus, phase: Literal["Confirmed", "Undone", "Failed"], reason: str, message: str, now: float
) -> Outcome:
    return Outcome(status=replace(status, phase=phase, ending="", reason=reason, message=message, ended_at=now))
