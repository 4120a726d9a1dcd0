"""``GET /v1/kinds``: of each kind what a program needs to show its objects, and to change them. Follows from the Kind records."""

from __future__ import annotations

import functools
import gzip
from typing import Any, Literal

import msgspec

from weft.api.auth.authorise import require_person
from weft.api.context import ApiContext
from weft.api.request.call import JSON, Call, list_accepted, read_flag
from weft.api.route import Route
from weft.kinds.fields.health import HEALTH, Health
from weft.kinds.permissions import PERMISSIONS
from weft.kinds.record import Kind, Verb
from weft.kinds.registry import KINDS
from weft.objects.lifecycle import ALLOWED
from weft.objects.schema import describe_fields, find_place
from weft.serving.answer import Answer

_PACKED = (("content-encoding", "gzip"), ("vary", "accept-encoding"))


class KindColumn(msgspec.Struct, frozen=True):
    title: str
    align: Literal["left", "right"]
    wide: bool  # only where there is much space
    flexible: bool  # may be cut
    keep: bool  # others are left out first


class KindField(msgspec.Struct, frozen=True):
    """A field of a spec, or of an action's input."""

    path: str
    type: str  # for people: text, whole number, size, list of text, …
    help: str
    required: bool
    default: Any
    choices: tuple[str, ...]  # none: any value of the type
    change: str = ""  # what a change of a spec's field costs: live, plug, restart, replace, never


class KindVerb(msgspec.Struct, frozen=True):
    name: str
    summary: str
    stream: bool


class KindAction(msgspec.Struct, frozen=True):
    """A verb; ``needs`` is the permission that it takes, "" where nobody has it. ``phases``: those in which it makes sense; none:
    all."""

    name: str
    summary: str
    needs: str
    input: tuple[KindField, ...] = ()
    phases: tuple[str, ...] = ()


class KindFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A kind. ``create``, ``update`` and ``delete`` are permissions; null where nobody may."""

    name: str
    plural: str
    title: str
    summary: str
    topic: str  # under which help lists it
    scope: Literal["project", "fabric"]
    writer: Literal["people", "fabric"]
    aliases: tuple[str, ...]
    verbs: tuple[KindVerb, ...]
    columns: tuple[KindColumn, ...]
    spec: tuple[KindField, ...]
    shareable: bool  # other projects may name its objects
    over: bool  # it has objects that have ended, which lists leave out
    list: str
    create: str | None
    update: str | None
    delete: str | None
    actions: tuple[KindAction, ...]
    streams: tuple[KindAction, ...]  # whose answer is a ticket for the gateway


class KindsAnswer(msgspec.Struct, frozen=True):
    """The answer to ``GET /v1/kinds``."""

    items: tuple[KindFacts, ...]
    health: dict[str, Health]  # how an object is, by its phase


async def list_kinds(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/kinds``."""
    require_person(call.actor, "list the kinds")
    is_short = read_flag(call.query("short"), "short")
    is_packed = "gzip" in list_accepted(call)  # a tenth of the bytes
    body = _encode_kinds(short=is_short, packed=is_packed)
    return Answer(200, body, (*JSON, *(_PACKED if is_packed else ())))


@functools.cache
def _encode_kinds(*, short: bool, packed: bool) -> bytes:
    if packed:
        return gzip.compress(_encode_kinds(short=short, packed=False), mtime=0)
    kinds = map(_describe, KINDS)
    return msgspec.json.encode(KindsAnswer(tuple(map(_shorten, kinds) if short else kinds), dict(HEALTH)))


def _shorten(kind: KindFacts) -> KindFacts:
    """A kind without the fields of its spec and of its verbs' input, which only a form needs: three quarters of the bytes."""
    actions, streams = (
        tuple(msgspec.structs.replace(action, input=()) for action in actions)
        for actions in (kind.actions, kind.streams)
    )
    return msgspec.structs.replace(kind, spec=(), columns=(), actions=actions, streams=streams)


def _describe(kind: Kind) -> KindFacts:
    return KindFacts(
        name=kind.name,
        plural=kind.plural,
        title=kind.title,
        summary=kind.summary,
        topic=kind.display.topic,
        scope=kind.scope,
        writer=kind.access.writer,
        aliases=kind.display.aliases,
        verbs=tuple(KindVerb(verb.name, verb.summary, verb.stream) for verb in kind.verbs),
        columns=tuple(
            KindColumn(column.title, column.align, column.wide, column.flexible, column.keep)
            for column in kind.display.columns
        ),
        spec=_list_fields(kind.spec, "spec", kind.admission.kept_fields),
        shareable=kind.is_shareable,
        over=kind.display.over is not None,
        list=f"{kind.name}:list",
        create=_find_permission(kind, "create"),
        update=_find_permission(kind, "update"),
        delete=_find_permission(kind, "delete"),
        actions=tuple(_describe_action(kind, verb) for verb in kind.verbs if not verb.stream),
        streams=tuple(_describe_action(kind, verb) for verb in kind.verbs if verb.stream),
    )


def _find_permission(kind: Kind, verb: str) -> str | None:
    name = f"{kind.name}:{verb}"
    return name if name in PERMISSIONS else None


def _describe_action(kind: Kind, verb: Verb) -> KindAction:
    given = _list_fields(verb.input, "", ()) if verb.input is not None else ()
    phases = tuple(sorted(ALLOWED.get(verb.name, ()))) if kind.workload is not None else ()
    return KindAction(verb.name, verb.summary, _find_permission(kind, verb.name) or "", given, phases)


def _list_fields(type_: type[msgspec.Struct], root: str, left_out: tuple[str, ...]) -> tuple[KindField, ...]:
    """The fields below ``type_`` but for those that the server sets."""
    found = []
    for doc in describe_fields(type_, root):
        path = doc.path.removeprefix(".")
        steps = doc.path.split(".")[1:]
        if steps[0] in left_out:
            continue
        place = find_place(type_, steps) if "[]" not in path else None
        found.append(
            KindField(
                path,
                doc.type,
                doc.description,
                doc.required,
                doc.default,
                place.words if place is not None else (),
                doc.change if root else "",
            )
        )
    return tuple(found)


ROUTES = (
    Route(
        "GET",
        "/v1/kinds",
        list_kinds,
        "The kinds there are, with their fields, columns and actions; short=1 leaves out fields and columns",
        query=("short",),
        answers=KindsAnswer,
        names=(KindFacts, KindVerb, KindColumn, KindField, KindAction),
    ),
)
