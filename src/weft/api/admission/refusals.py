"""Refusals of admission for one manifest, and the errors for them. Pure but for the clock: nothing is read from the store."""

from __future__ import annotations

from typing import Any

import msgspec

from weft.api.context import ApiContext
from weft.kinds.record import Kind
from weft.objects.envelope import Envelope, decode_part
from weft.objects.errors import AlreadyExists, IllegalTransition, InvalidInput, NotFound, StaleRevision
from weft.objects.identity import OWN_LABELS
from weft.objects.quantity import format_age
from weft.objects.spec_change import FieldChange
from weft.trust.credentials import Actor

_NOT_YET_PLACED = ("Pending", "Hold", "Rejected")


def keep_own_labels(given: dict[str, str], current: dict[str, str]) -> dict[str, str]:
    """Pure. The ``given`` labels with the ``current`` ones that only weft sets, also where those aren't given. Raises
    InvalidInput for one of these that is new or has another value."""
    for key, value in given.items():
        if key.startswith(OWN_LABELS) and current.get(key) != value:
            raise InvalidInput(
                f"labels.{key}: only weft sets labels that begin with {OWN_LABELS}",
                field=f"labels.{key}",
                hint=f"leave labels.{key} out",
            )
    return given | {key: value for key, value in current.items() if key.startswith(OWN_LABELS)}


def refuse_another(kind: Kind, current: Envelope, uid: str) -> None:
    """Raise StaleRevision if ``current`` is another object than ``uid``: a later one of its name."""
    if current.uid != uid:
        raise StaleRevision(
            f'{kind.title} "{current.name}" is another object now: uid {current.uid}, not {uid[:40]}',
            field="uid",
            hint="leave uid out to address the object that has the name now",
            details={"uid": current.uid},
        )


def refuse_deleting(kind: Kind, current: Envelope) -> None:
    """Raise IllegalTransition if ``current`` is being deleted."""
    if current.deleting_since is not None:
        raise IllegalTransition(
            f'{kind.title} "{current.name}" is being deleted',
            reason="beingDeleted",
            hint=f"wait for that: weft wait {kind.name}/{current.name} --for=delete",
        )


def guard(kind: Kind, current: Envelope) -> None:
    """Raise IllegalTransition if people may neither change nor delete the object now."""
    if kind.admission.write_guard is not None:
        kind.admission.write_guard(current)


def taken(context: ApiContext, kind: Kind, current: Envelope, actor: Actor | None) -> AlreadyExists:
    """The error for a name that ``current`` has; its reason is ``beingDeleted`` while that is being deleted. If it may be another
    project's, ``actor`` learns nothing more about it."""
    if kind.access.readers == "administered" and actor is not None and not actor.permits(f"{kind.name}:get", None):
        return AlreadyExists(
            f'the name of {kind.title} "{current.name}" is taken',
            field="name",
            hint="use another name: all projects share these names",
        )
    what, name, now = f'{kind.title} "{current.name}"', f"{kind.name}/{current.name}", context.clock.now()
    if current.deleting_since is not None:
        return AlreadyExists(
            f"{what} is still being deleted (requested {format_age(now - current.deleting_since)} ago)",
            reason="beingDeleted",
            field="name",
            hint=f"wait for that, or use another name: weft wait {name} --for=delete",
        )
    where, option = f" in project {current.project}" if current.project else "", give_project(current.project)
    has_failed = getattr(decode_part(current.status, kind.status), "phase", "") == "Failed"
    shows = f"weft describe {name}{option} shows {'why' if has_failed else 'this one'}"
    return AlreadyExists(
        f"{what} exists already{where} (created {format_age(now - current.created_at)} ago{', Failed' if has_failed else ''})",
        field="name",
        hint=f"{shows}; to use the name again, if nobody needs that one: weft delete {name}{option}"
        if has_failed
        else f"use another name; {shows}",
    )


def give_project(project: str | None) -> str:
    """Option that makes a command in a hint be about ``project``; "" if it is about that anyway."""
    return f" --project {project}" if project not in (None, "default") else ""


def not_found(kind: Kind, name: str, project: str | None) -> NotFound:
    """The error for an object that isn't there."""
    return NotFound(
        f'{kind.title} "{name[:80]}" not found',
        hint=f"weft {kind.name} list{give_project(project)}",
        details={"kind": kind.name, "name": name[:80], **({"project": project} if project else {})},
    )


def is_live(envelope: Envelope) -> bool:
    """Whether a workload has, or may have by now, an allocation that runs its spec."""
    status = msgspec.json.decode(envelope.status)
    phase = status.get("phase") if isinstance(status, dict) else None
    placed = envelope.condition("Placed")
    return phase not in _NOT_YET_PLACED or (placed is not None and placed.status == "True")


def refuse_impossible(kind: Kind, current: Envelope, changes: list[FieldChange]) -> None:
    was_refused = kind.admission.was_refused
    for change in changes:
        if change.mode == "never" and was_refused is not None and was_refused(current):
            raise InvalidInput(
                f'{kind.title} "{current.name}" was refused, and its {change.path} can\'t change',
                field=change.path,
                hint=f"weft {kind.name} create {current.name} … replaces it; or weft delete {kind.name}/{current.name},"
                " then apply it again",
                details={"change": change.mode, "old": change.old},
            )
        if change.mode == "never":
            raise InvalidInput(
                f'{change.path} of {kind.title} "{current.name}" can never change',
                field=change.path,
                hint=_describe_other(kind, change),
                details={"change": change.mode, "old": change.old},
            )
        if change.mode == "replace" and is_live(current):
            raise InvalidInput(
                f'{change.path} of {kind.title} "{current.name}" can\'t change while it lives',
                field=change.path,
                hint=kind.admission.other_version.format(current.name) or _describe_other(kind, change),
                details={"change": change.mode, "old": change.old},
            )


def _describe_other(kind: Kind, change: FieldChange) -> str:
    keeps = f"this one keeps {_shown(change.old)}"
    if isinstance(change.new, bool):
        return f"create a new {kind.title} with {change.path.removeprefix('spec.')}: {str(change.new).lower()}; {keeps.lower()}"
    return f"create a new {kind.title}; {keeps}"


def refuse_nodes_range(context: ApiContext, cidr: str) -> None:
    """A guest with a node's address would get that node's traffic."""
    if node := context.ranges.find_node(cidr):
        raise InvalidInput(
            f"spec.cidr: {cidr} contains {node}, which is a node's own address",
            field="spec.cidr",
            hint="choose a range without nodes; weft node list -o wide shows their addresses",
        )


def _shown(value: Any) -> str:
    """Show a value as it stands in JSON, at most 60 characters; text without quotes."""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode() if value is not None else ""
    return (text[:59] + "…" if len(text) > 60 else text) or "none"
