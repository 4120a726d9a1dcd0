"""A row of the dashboard's tables, rendered from a stored object once for all who see it. Pure.

Nothing is particular to a kind: cells, phase, note and what goes on come from the Kind record.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from weft.api.object.narrowing import narrow, pick_shared
from weft.kinds.fields.cells import dig, note
from weft.kinds.fields.health import HEALTH, Health
from weft.kinds.operation import Operation, find_failure, find_goal, is_carried, list_running
from weft.kinds.parts.sharing import read_shares
from weft.kinds.record import Kind, Object
from weft.kinds.registry import BY_NAME, KINDS
from weft.objects.envelope import decode_envelope
from weft.objects.quantity import SortKey, sort_key

NAME, KIND, AGE = "NAME", "KIND", "AGE"
DELETING = "Deleting"
MOST_LETTERS = 500  # of a cell; the object has the rest
_PHASE_TITLES = ("PHASE", "STATUS", "STATE")
_NOTE = "NOTE"
SETTLED = ("running", "ended")  # what is so needs nobody's attention
_BLOCKS = re.compile(" ?[\u2588-\u258f]+")
_log = logging.getLogger("weft.api.dashboard")
_encoder = msgspec.json.Encoder()
Key = tuple[SortKey, int, tuple[SortKey, str, str]]


class ColumnHead(msgspec.Struct, frozen=True):
    title: str
    align: Literal["left", "right"] = "left"
    type: Literal["text", "number", "phase", "age"] = "text"
    flexible: bool = False  # may be cut where the page is narrow


class ShownRow(msgspec.Struct):
    """A row as the page gets it."""

    kind: str
    project: str | None
    name: str
    uid: str
    revision: int
    phase: str  # as the kind's table says it; "": the kind has none
    health: Health
    note: str
    created_at: float  # unix seconds
    cells: Sequence[str]  # by column; "" under AGE, which follows from ``created_at``


class Row(ShownRow, eq=False, kw_only=True, gc=False):
    """A reader's view of an object, its cells by its own kind's columns; rows are compared by identity, since a changed object has
    a new one."""

    text: str  # in small letters, what a filter searches: name, cells, labels
    since: float  # unix seconds: how long its state is so, as far as the object says
    hint: str = ""  # what to do about it
    over: bool = False  # it has ended: lists leave it out
    operation: Operation | None = None  # what is done to it now
    node: Node | None = None  # what a node has and gives; None: it is no node
    keys: dict[str, SortKey] = {}  # its place in each order that was asked for
    order: tuple[SortKey, str, str] = ((0, 0.0, ""), "", "")  # among rows that are equal otherwise


class Amount(msgspec.Struct, frozen=True):
    capacity: float
    allocated: float
    used: float | None = None
    promised: float = 0.0  # the most that leases which begin later hold at one time


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """Amounts that a node has and gives, in cores and bytes."""

    cpu: Amount
    memory: Amount
    disk: Amount
    workloads: int


class Rendered(msgspec.Struct, eq=False, gc=False):
    """An object as each sort of reader sees it. ``value`` is kept where who owns it decides who sees it."""

    revision: int
    whole: Row
    narrowed: Row  # for people with rights in projects only
    shared: Row | None = None  # for the projects ``shares``
    shares: list[str] = []
    value: bytes = b""


def render(kind: Kind, value: bytes, revision: int) -> Rendered | None:
    """None, and a line in the log, for an object that this version of weft can't read."""
    try:
        whole = make_row(kind, msgspec.json.decode(value), revision)
        narrowed = (
            make_row(kind, msgspec.json.decode(narrow(kind, value)), revision) if kind.access.fabric_fields else whole
        )
        made = Rendered(revision, whole, narrowed)
        if kind.is_shareable:
            envelope = decode_envelope(value, revision)
            made.shares = read_shares(envelope.spec)
            if made.shares:
                shown = msgspec.json.decode(_encoder.encode(pick_shared(kind, envelope)))
                made.shared = make_row(kind, shown, revision)
        if kind.access.readers == "administered" or kind.lifetime.holds_objects:
            made.value = value
    except Exception as problem:  # one object that can't be shown hides no other
        _log.error("a %s of revision %d can't be shown: %s", kind.title, revision, type(problem).__name__)
        return None
    return made


def make_row(kind: Kind, obj: Object, revision: int) -> Row:
    cells = tuple("" if column.title == AGE else _cut(column.value(obj)) for column in kind.display.columns)
    operation, named = _find_operation(kind, obj), sort_key(str(obj["name"]))
    phase = _find_phase(kind, obj, cells)
    health = _find_health(kind, obj, phase)
    row = Row(
        kind=kind.name,
        project=obj.get("project"),
        name=str(obj["name"]),
        uid=str(obj["uid"]),
        revision=revision,
        phase=phase,
        health=health,
        note=_cut(_find_note(kind, obj, cells)),
        created_at=float(obj.get("created_at", 0.0)),
        cells=cells,
        text="\n".join((str(obj["name"]), *cells, *_labels(obj))).lower(),
        since=_find_since(obj),
        over=kind.display.over is not None and kind.display.over(obj),
        operation=operation,
        node=_read_node(obj) if kind.lifetime.runs_workloads else None,
        keys={NAME: named},
        order=(named, str(obj.get("project") or ""), str(obj["uid"])),
    )
    if health not in SETTLED:
        row.hint = _find_hint(kind, obj, row)
    return row


def _cut(text: str) -> str:
    plain = _BLOCKS.sub("", text)  # terminals' bars: a page draws its own
    return plain if len(plain) <= MOST_LETTERS else plain[: MOST_LETTERS - 1] + "…"


def _labels(obj: Object) -> list[str]:
    return [f"{name}={value}" for name, value in (obj.get("labels") or {}).items()]


@functools.cache
def find_place(kind: str, titles: Sequence[str]) -> int | None:
    """Position of the first column with one of ``titles``."""
    found = (at for at, column in enumerate(BY_NAME[kind].display.columns) if column.title in titles)
    return next(found, None)


def _find_phase(kind: Kind, obj: Object, cells: Sequence[str]) -> str:
    if obj.get("deleting_since"):
        return DELETING
    place = find_place(kind.name, _PHASE_TITLES)
    if place is not None:
        return cells[place]
    return str(dig(obj, "status.phase", ""))


def _find_health(kind: Kind, obj: Object, phase: str) -> Health:
    health = HEALTH.get(phase) or ("unknown" if find_place(kind.name, _PHASE_TITLES) is not None else "running")
    if health == "running" and any(
        one["status"] == "False" and one["type"] in ("Healthy", "Current") for one in obj.get("conditions") or ()
    ):
        return "degraded"
    return health


def _find_note(kind: Kind, obj: Object, cells: Sequence[str]) -> str:
    place = find_place(kind.name, (_NOTE,))
    said = cells[place] if place is not None else ""
    if said:
        return said
    said = (kind.display.progress or note)(obj)
    if said:
        return said
    failing = (one for one in obj.get("conditions") or () if one["status"] == "False")
    return next((str(one.get("message") or one.get("reason") or "") for one in failing), "")


def _find_since(obj: Object) -> float:
    if obj.get("deleting_since"):
        return float(obj["deleting_since"])
    changed = [float(one.get("since", 0.0)) for one in obj.get("conditions") or ()]
    stated = float(dig(obj, "status.since", 0.0) or dig(obj, "status.ended_at", 0.0) or 0.0)
    return stated or max(changed, default=0.0) or float(obj.get("created_at", 0.0))


def _find_operation(kind: Kind, obj: Object) -> Operation | None:
    if kind.name not in _OPERATED:
        return None
    found = list_running(kind.name, [obj])
    return found[0] if found and found[0].state == "running" else None


def _find_hint(kind: Kind, obj: Object, row: Row) -> str:
    what = f"{kind.name}/{row.name}"
    if not is_carried(obj) and kind.name in _OPERATED:
        failure = find_failure(obj, what, find_goal(obj))
        if failure is not None and failure.hint:
            return failure.hint
    verb = "explain" if kind.workload is not None and row.health == "waiting" else "describe"
    return f"weft {verb} {what}" + (f" -p {row.project}" if row.project else "")


def _read_node(obj: Object) -> Node:
    def amount(name: str) -> Amount:
        ratio = float(dig(obj, f"spec.overcommit.{name}", 1.0))
        capacity = round(dig(obj, f"report.{name}", 0) * ratio, 3)
        given, promised = (dig(obj, f"status.{word}_{name}", 0) for word in ("allocated", "promised"))
        return Amount(capacity, given, promised=promised)

    return Node(
        cpu=amount("cpu"), memory=amount("memory"), disk=amount("disk"), workloads=dig(obj, "status.allocations", 0)
    )


_OPERATED = frozenset(
    kind.name
    for kind in KINDS
    if not kind.lifetime.ephemeral and (kind.lifetime.operation is not None or kind.lifetime.goals)
)


def find_phase_title(kind: str) -> str | None:
    """The title of the column with the phase; None: the kind has none."""
    place = find_place(kind, _PHASE_TITLES)
    return None if place is None else BY_NAME[kind].display.columns[place].title
