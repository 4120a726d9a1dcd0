"""Reservation: capacity that is kept for the workloads of a project from one time to another, as slots on nodes. Workloads use it
by name (``spec.reservation``), and end with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from weft.kinds.constraint import Form, check_expressions, names_required
from weft.kinds.fields.cells import AGE, NAME, cores, dig, size, text
from weft.kinds.fields.lease import FURTHEST_SECONDS, LEASE_CONFLICT, LONGEST_SECONDS
from weft.kinds.fields.taint import check_taints
from weft.kinds.parts.goal import REFUSED_HINT, find_condition
from weft.kinds.parts.sharing import SHARE, SharedWith, check_shares, share_reference
from weft.kinds.record import Access, Admission, Column, Counted, Display, Goal, Kind, Lifetime, Object, Reference, Verb
from weft.kinds.user import check_names
from weft.objects.envelope import decode_part
from weft.objects.errors import IllegalTransition, InvalidInput, Unplaceable, WeftError
from weft.objects.quantity import LAST_MOMENT, format_bytes, format_duration, format_time
from weft.objects.schema import field, words

MOST_SLOTS = 64  # so that all of them fit into one commit
MOST_CORES = 255
MOST_GROUPS = 32
LEAST_MEMORY, MOST_MEMORY = 1 << 20, 64 << 40
OVER = ("Done", "Rejected")


class ReservationSpec(msgspec.Struct, kw_only=True):
    cpu: Annotated[float, field("Cores of each slot", change="never", quantity="cpu")]
    memory: Annotated[int, field("Memory of each slot", change="never", quantity="bytes")]
    gpus: Annotated[int, field("Whole GPUs of each slot", change="never", ge=0, le=64)] = 0
    gpu_memory: Annotated[int, field("Memory that each GPU must have", change="never", quantity="bytes")] = 0
    gpu_models: Annotated[list[str], field("Acceptable models of GPU; any if unset", change="never")] = []
    count: Annotated[int, field("Number of slots", change="never", ge=1, le=MOST_SLOTS)] = 1
    node: Annotated[str | None, field("Node of all slots; any nodes if unset", change="never", name=True)] = None
    constraint: Annotated[
        Form | None,
        field("Condition on the nodes, like zone=a; @NAME names a constraint", change="never", shown="expression"),
    ] = None
    tolerate: Annotated[list[str], field("Taints to tolerate: NAME, or NAME=VALUE", change="never")] = []
    start: Annotated[float | None, field("When it begins; immediately if unset", change="never", quantity="moment")] = (
        None
    )
    duration: Annotated[
        float | None,
        field("How long it lasts; instead of end. It can become longer", change="live", quantity="period"),
    ] = None
    end: Annotated[
        float | None, field("When it ends; instead of duration. It can become later", change="live", quantity="moment")
    ] = None
    grace: Annotated[
        float, field("Time after its end in which its workloads shut down", change="never", quantity="duration")
    ] = 20.0
    groups: Annotated[list[str], field("Groups whose users may use it; everyone in the project if unset")] = []
    description: Annotated[str, field("Description, for people", max_length=200)] = ""
    shared_with: SharedWith = []


class ReservationStatus(msgspec.Struct, kw_only=True):
    """Amounts are of all slots together, by ``cpu`` (cores), ``memory`` (bytes) and ``gpus``."""

    state: Annotated[str, words("Requested", "Scheduled", "Active", *OVER)] = "Requested"
    start: float | None = None  # seconds since 1970; None: not decided
    end: float | None = None
    message: str = ""
    slots: dict[str, int] = {}  # number of slots by node
    used: dict[str, int | float] = {}  # by workloads
    free: dict[str, int | float] = {}


def check_reservation(spec: ReservationSpec) -> None:
    """Check what types can't say. Raises InvalidInput."""
    check_shares(spec.shared_with)
    if not 0 < spec.cpu <= MOST_CORES:
        raise _invalid("cpu", f"{spec.cpu:g} is not between 0 and {MOST_CORES} cores", "give the cores of one slot")
    if not LEAST_MEMORY <= spec.memory <= MOST_MEMORY:
        raise _invalid("memory", f"{spec.memory} bytes is not between 1M and 64T", "give the memory of one slot")
    if (spec.duration is None) == (spec.end is None):
        why = "a reservation needs this or spec.end" if spec.end is None else "give either this or spec.end, not both"
        raise _invalid("duration", why, "write 2h, or as the end 2026-12-24T22:00:00Z")
    if spec.duration is not None and not 1.0 <= spec.duration <= LONGEST_SECONDS:
        raise _invalid(
            "duration", f"{format_duration(spec.duration)} is not between a second and a year", "give one like 2h"
        )
    if not 0.0 <= spec.grace <= 3600.0:
        raise _invalid("grace", f"{format_duration(spec.grace)} is not between 0 and an hour", "give one like 30s")
    if (spec.gpu_memory or spec.gpu_models) and not spec.gpus:
        raise _invalid("gpus", "a GPU's memory or model is given, but no GPU is reserved", "add gpus: 1")
    if spec.constraint is not None:
        spec.constraint, _ = check_expressions(spec.constraint, [])
    check_taints(spec.tolerate, "spec.tolerate")
    check_names(spec.groups, "spec.groups", MOST_GROUPS)


def check_reserved_times(spec: ReservationSpec, now: float) -> None:
    """Raises InvalidInput for times that have passed by ``now``, lie too far ahead, or contradict each other."""
    start = now if spec.start is None else spec.start
    if start < now - 1.0:
        raise _invalid(
            "start", f"that was {format_duration(now - start)} ago", "give a time in the future, or none to begin now"
        )
    if start > min(now + FURTHEST_SECONDS, LAST_MOMENT):
        raise _invalid("start", "that is more than two years ahead", "give an earlier time")
    if spec.end is not None and not 1.0 <= spec.end - start <= LONGEST_SECONDS:
        raise _invalid(
            "end",
            f"{format_time(spec.end)} is not between a second and a year after its start, {format_time(start)}",
            "give a later end, or an earlier start" if spec.end <= start else "give an earlier end",
        )


def check_longer(old: ReservationSpec, new: ReservationSpec) -> None:
    """Raises InvalidInput for another end than a later one: what runs in it was promised its time."""
    for name, before, after, show in (
        ("duration", old.duration, new.duration, format_duration),
        ("end", old.end, new.end, format_time),
    ):
        if before is None and after is not None:
            other = "end" if name == "duration" else "duration"
            raise _invalid(name, f"this reservation has {other} instead", f"give a later {other}")
        if before is not None and after is not None and after < before:
            hint = "give that or more; weft reservation delete ends one that nobody uses"
            raise _invalid(name, f"{show(after)} is less than it has, {show(before)}", hint)


def find_wanted_end(spec: ReservationSpec, start: float) -> float:
    """When it should end (seconds since 1970), if it begins at ``start``."""
    if spec.end is not None:
        return spec.end
    return (start if spec.start is None else spec.start) + (spec.duration or 0.0)


class ExtendInput(msgspec.Struct, kw_only=True):
    by: Annotated[float, field("How much longer it lasts", quantity="period")]


def _extend(obj: Object, given: ExtendInput) -> dict[str, Any]:
    """Its spec with a later end. An earlier extension that was refused doesn't count: this one takes its place."""
    spec, what, state = obj["spec"], f"reservation/{obj['name']}", dig(obj, "status.state", "Requested")
    if state in OVER:
        raise IllegalTransition(
            f"{what} is {'over' if state == 'Done' else 'refused'}: it can't be extended",
            reason="leaseOver",
            hint="create another: weft reservation create",
        )
    if given.by < 1.0:
        raise InvalidInput(
            f"by: {format_duration(given.by)} is less than a second", field="by", hint="give a duration like 30m"
        )
    start, end, wanted = dig(obj, "status.start"), dig(obj, "status.end"), _read_wanted_end(obj)
    placed, more = find_condition(obj, "Placed"), given.by
    if end is not None and wanted is not None and placed is not None and placed["reason"] == LEASE_CONFLICT:
        more += end - wanted
    length = (spec.get("duration") or 0.0) + more if start is None else (wanted or start) + more - start
    if length > LONGEST_SECONDS:
        raise InvalidInput(
            f"by: {format_duration(given.by)} would make it {format_duration(length)} long",
            field="by",
            hint="give a duration like 30m; a reservation lasts a year at most",
        )
    name = "duration" if spec.get("end") is None else "end"
    return {**spec, name: spec[name] + more}


def _read_wanted_end(obj: Object) -> float | None:
    """When it should end by what its spec says now; None while its start isn't decided."""
    start = dig(obj, "status.start")
    if start is None or dig(obj, "spec.end") is not None:
        return dig(obj, "spec.end")  # type: ignore[no-any-return]
    return float((dig(obj, "spec.start") or start) + (dig(obj, "spec.duration") or 0.0))


def _invalid(name: str, why: str, hint: str) -> InvalidInput:
    return InvalidInput(f"spec.{name}: {why}", field=f"spec.{name}", hint=hint or None)


def refuse_larger(spec: msgspec.Struct, named: Mapping[str, ReservationSpec]) -> None:
    """Raises InvalidInput for a workload that no slot of its reservation could ever take."""
    for name, slot in named.items():
        for what, wanted, most, show in (
            ("cpu", getattr(spec, "cpu", 0.0), slot.cpu, "{:g} cores".format),
            ("memory", getattr(spec, "memory", 0), slot.memory, format_bytes),
            ("gpus", count_gpus(spec), slot.gpus, "{:g} GPUs".format),
        ):
            if wanted > most:
                raise InvalidInput(
                    f"spec.{what}: {show(wanted)} is more than a slot of reservation/{name} has, {show(most)}",
                    field=f"spec.{what}",
                    hint="ask for less, or for another reservation: weft reservation list",
                )


def count_gpus(spec: msgspec.Struct) -> float:
    """The GPUs that a workload's spec requests, or its share of one."""
    share: float | None = getattr(spec, "gpu_share", None)
    return share if share else float(getattr(spec, "gpus", 0))


def refuse_over(_: msgspec.Struct, named: Mapping[str, ReservationStatus]) -> None:
    """Raises InvalidInput for a reservation that is over, or was refused."""
    for name, status in named.items():
        if status.state in OVER:
            ended = f"ended at {format_time(status.end)}" if status.end is not None else "is over"
            why = ended if status.state == "Done" else f"was refused: {status.message}"
            raise InvalidInput(
                f"spec.reservation: reservation/{name} {why}",
                field="spec.reservation",
                hint="name another, or create one: weft reservation list",
            )


def _count(spec: ReservationSpec, status: ReservationStatus) -> Counted:
    """It counts from its creation to its end, used or not. Its workloads' cores, memory and GPUs don't count beside it."""
    if status.state in OVER:
        return Counted({})
    return Counted({"cpu": spec.cpu * spec.count, "memory": spec.memory * spec.count, "gpus": spec.gpus * spec.count})


def _is_accepted(obj: Object | None) -> bool:
    return obj is not None and dig(obj, "status.state") in ("Scheduled", "Active") and not _is_shorter(obj)


def _is_shorter(obj: Object) -> bool:
    """Whether it ends before it should, by what its spec says now."""
    end, wanted = dig(obj, "status.end"), _read_wanted_end(obj)
    return end is not None and wanted is not None and end < wanted - 0.001


def _find_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    state, message = dig(obj, "status.state"), dig(obj, "status.message", "")
    placed = find_condition(obj, "Placed") or {}
    if goal.ends_refused and state not in OVER and _is_shorter(obj):
        if placed.get("reason") != LEASE_CONFLICT or placed.get("generation", 0) < obj["generation"]:
            return None
        hint = "it is extended when that capacity becomes free before its end; weft calendar shows who has it"
        return Unplaceable(f"{what}: {message}", reason=LEASE_CONFLICT, hint=hint)
    if not (goal.ends_refused or goal.ends_failed) or state not in OVER:
        return None
    if state == "Done":
        return Unplaceable(f"{what} is over", reason="reservationOver", hint=f"weft delete {what}")
    return Unplaceable(
        f"{what} is refused: {message}",
        reason=LEASE_CONFLICT,
        hint=REFUSED_HINT.format(what),
    )


def _slots(obj: Object) -> str:
    placed = dig(obj, "status.slots") or {}
    return ",".join(f"{node}:{count}" for node, count in sorted(placed.items())) or "–"


def _free(obj: Object) -> str:
    free = dig(obj, "status.free") or {}
    if not free:
        return "–"
    gpus = f", {free['gpus']:g} GPUs" if free.get("gpus") else ""
    return f"{free['cpu']:g} cores, {format_bytes(free['memory'])}{gpus}"


def _moment(path: str) -> Column:
    title = path.rpartition(".")[2].upper()
    return Column(title, lambda obj: format_time(found) if (found := dig(obj, path)) is not None else "–")


RESERVATION = Kind(
    name="reservation",
    plural="reservations",
    title="reservation",
    summary="Capacity that is kept for a project's workloads, from one time to another",
    spec=ReservationSpec,
    status=ReservationStatus,
    references=(
        Reference("node", "spec.node", lambda spec: [spec.node] if spec.node else [], blocks=False),
        Reference("constraint", "spec.constraint", lambda spec: names_required(spec.constraint), blocks=False),
        Reference("group", "spec.groups", lambda spec: spec.groups),
        share_reference(),
    ),
    verbs=(
        SHARE,
        Verb("extend", "Keep its capacity for longer", input=ExtendInput, change=_extend, needs="write"),
    ),
    access=Access(
        readers="project",
        status_writer="scheduler",
        condition_writers={"Placed": "scheduler"},
        shared_fields=(
            *("spec.cpu", "spec.memory", "spec.gpus", "spec.count"),
            *("status.state", "status.start", "status.end", "status.free"),
        ),
    ),
    admission=Admission(
        check=check_reservation,
        check_times=check_reserved_times,
        check_change=check_longer,
        kept_fields=("shared_with",),
        counts=_count,
        was_refused=lambda envelope: decode_part(envelope.status, ReservationStatus).state == "Rejected",
    ),
    display=Display(
        topic="Placement",
        columns=(
            NAME,
            Column("STATE", text("status.state", "Requested"), keep=True),
            Column("COUNT", text("spec.count"), align="right"),
            Column("CPU", cores("spec.cpu"), align="right"),
            Column("MEMORY", size("spec.memory"), align="right"),
            Column("GPUS", text("spec.gpus"), align="right", wide=True),
            _moment("status.start"),
            _moment("status.end"),
            Column("NODES", _slots),
            Column("FREE", _free),
            AGE,
            Column("NOTE", text("status.message", ""), flexible=True),
        ),
    ),
    lifetime=Lifetime(
        goals={"create": Goal(_is_accepted, "Scheduled"), "extend": Goal(_is_accepted, "extended")},
        find_failure=_find_failure,
        finalizers=("reservation",),
    ),
)
