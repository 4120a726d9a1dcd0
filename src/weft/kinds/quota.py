"""Quota: how much all objects of a project may have together, as the fabric's administrators granted it. Each object counts from
its creation until it is gone, whether it runs or not; its kind says how much (``Kind.counts``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig
from weft.kinds.record import Column, Counted, Kind, Object
from weft.objects.errors import Forbidden
from weft.objects.identity import object_key
from weft.objects.quantity import format_bytes
from weft.objects.schema import field

REASON = "quotaExceeded"  # of jobs and conversions too
FIELDS = ("cpu", "memory", "disk", "gpus", "instances", "published_ports")
SIZES = ("memory", "disk")
_DIGITS = 3  # as exact as cores and shares of GPUs are written
_SPEC_FIELDS = {"disk": ("disk", "size"), "published_ports": ("publish",), "instances": ("ready",)}
_MOST = 10**9


Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
Share = Annotated[float, msgspec.Meta(ge=0, le=_MOST)]


class Limits(msgspec.Struct, kw_only=True):
    """A field without a value has no limit."""

    cpu: Annotated[float | None, field("Limit on cores", quantity="cpu")] = None
    memory: Annotated[int | None, field("Limit on memory", quantity="bytes")] = None
    disk: Annotated[int | None, field("Limit on root disks and volumes together", quantity="bytes")] = None
    gpus: Annotated[Share | None, field("Limit on GPUs; a share of one counts as that share")] = None
    instances: Annotated[
        Count | None, field("Limit on VMs, containers, tasks, and instances that functions keep ready")
    ] = None
    published_ports: Annotated[Count | None, field("Limit on published ports")] = None


class QuotaSpec(Limits, msgspec.Struct, kw_only=True):
    soft: Annotated[Limits, field("Limits beyond which there is only a warning")] = msgspec.field(
        default_factory=Limits
    )


class QuotaStatus(msgspec.Struct, kw_only=True):
    used: dict[str, int | float] = {}  # by field; what isn't there is 0


class Excess(msgspec.Struct, frozen=True):
    """A limit that is too low."""

    field: str
    used: float
    requested: float  # more
    limit: float


def quota_key(project: str | None) -> str:
    """The key of a project's quota."""
    return object_key(QUOTA.name, project, QUOTA.only_name)


def resolve(counted: Counted, image_sizes: Mapping[str, int]) -> dict[str, float]:
    """The amounts of one object; ``image_sizes`` in bytes, by name."""
    amounts = dict(counted.amounts)
    if counted.image:
        amounts["disk"] = max(amounts.get("disk", 0), image_sizes.get(counted.image, 0))
    return amounts


def add_up(amounts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """All of them together, by field."""
    total: dict[str, float] = dict.fromkeys(FIELDS, 0)
    for one in amounts:
        for name, amount in one.items():
            total[name] += amount
    return {name: _exact(amount) for name, amount in total.items()}


def find_growth(limits: Limits, before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """How much more ``after`` is than ``before``, of what is limited and grows."""
    grown = {name: _exact(amount - before.get(name, 0)) for name, amount in after.items()}
    return {name: more for name, more in grown.items() if more > 0 and getattr(limits, name) is not None}


def find_excess(limits: Limits, used: Mapping[str, float], requested: Mapping[str, float]) -> list[Excess]:
    """The limits that ``requested`` more than ``used`` would exceed. Nothing is refused that requests none of what is limited,
    however much is used: a quota may be lowered."""
    found = []
    for name in FIELDS:
        limit, more, has = getattr(limits, name), requested.get(name, 0), used.get(name, 0)
        if limit is not None and more > 0 and _exact(has + more) > limit:
            found.append(Excess(name, _exact(has), _exact(more), limit))
    return found


def find_over(limits: Limits, used: Mapping[str, float]) -> list[Excess]:
    """The limits that are exceeded."""
    pairs = [(name, getattr(limits, name), used.get(name, 0)) for name in FIELDS]
    return [Excess(name, has, 0, limit) for name, limit, has in pairs if limit is not None and has > limit]


def count_fitting(limits: Limits, used: Mapping[str, float], one: Mapping[str, float], most: int) -> int:
    """How many times ``one`` fits beside ``used``, up to ``most``."""
    for name, amount in one.items():
        limit = getattr(limits, name)
        if limit is not None and amount > 0:
            # In whole thousandths: 0.3 is 3 times 0.1.
            free = round((limit - used.get(name, 0)) * 10**_DIGITS)
            most = min(most, max(0, free // max(1, round(amount * 10**_DIGITS))))
    return most


def describe_excess(project: str | None, excess: Iterable[Excess]) -> str:
    """``project lab: cpu: 1.5 of 2 cores used, 1 more requested``"""
    parts = []
    for one in excess:
        used, limit, more = (format_amount(one.field, number) for number in (one.used, one.limit, one.requested))
        unit = " cores" if one.field == "cpu" else ""
        parts.append(
            f"{one.field}: {used} of {limit}{unit} used" + (f", {more} more requested" if one.requested else "")
        )
    return f"project {project}: {'; '.join(parts)}"


def exceeded(project: str | None, excess: list[Excess], spec: Any) -> Forbidden:
    """The error for a change that a project's quota has no amounts left for; ``spec`` as people wanted it."""
    names = _SPEC_FIELDS.get(excess[0].field, (excess[0].field,))
    found = next((name for name in names if hasattr(spec, name)), None)
    return Forbidden(
        describe_excess(project, excess),
        reason="quotaExceeded",
        field=None if found is None else f"spec.{found}",
        hint=f"weft quota show -p {project}",
        details={part: {one.field: getattr(one, part) for one in excess} for part in ("used", "requested", "limit")},
    )


def format_amount(name: str, amount: float) -> str:
    """An amount of the quota's field ``name``, as people read it."""
    return format_bytes(amount) if name in SIZES else f"{amount:g}"


def _exact(amount: float) -> float:
    """Without what adding fractions leaves behind."""
    rounded = round(amount, _DIGITS)
    return int(rounded) if rounded == int(rounded) else rounded


def _cell(name: str) -> Column:
    def value(obj: Object) -> str:
        limit = dig(obj, f"spec.{name}")
        if limit is None:
            return "–"
        used = dig(obj, f"status.used.{name}", 0)
        return f"{format_amount(name, used)} / {format_amount(name, limit)}"

    return Column("PORTS" if name == "published_ports" else name.upper(), value, align="right")


QUOTA = Kind(
    name="quota",
    plural="quotas",
    title="quota",
    summary="How much a project may use",
    access="project",
    granted=True,
    only_name="project",
    spec=QuotaSpec,
    status=QuotaStatus,
    status_writer="quotas",
    conditions={"WithinSoftLimits": "quotas"},
    columns=(NAME, *(_cell(name) for name in FIELDS), AGE),
)
