"""Find the objects of kinds that are seen one by one which belong to an actor: those of its projects, its user's tokens, and what a
node keeps. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from weft.kinds.record import Kind
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.trust.credentials import Actor


class _InProject(msgspec.Struct):
    project: str | None = None


class _OnNode(msgspec.Struct):
    node_uid: str | None = None


def owns(actor: Actor, envelope: Envelope, verb: str) -> bool:
    """Whether an object of a kind that projects administer is the actor's to ``verb``: of a project of the actor's, or the user's
    own token; a limited token deletes no other one."""
    if envelope.owner is not None and actor.user is not None and envelope.owner.uid == actor.user.uid:
        if verb != "delete" or actor.limit is None or envelope.name == actor.id:
            return True
    return actor.permits(f"{envelope.kind}:{verb}", read_project(envelope))


def find_own(actor: Actor, kind: Kind, verb: str) -> Callable[[bytes], bool] | None:
    """The test of a stored object for what ``owns`` says, of a project for whether the actor has a role there, for a
    node whether it keeps it, for a linked cluster whether it made it; None for someone who owns all of the
    kind, or another kind."""
    if actor.kind == "node" and kind.access.node_reads == "kept":
        return lambda value: actor.id.encode() in value and _read_node(value) == actor.id
    if actor.is_cluster:
        return lambda value: not actor.is_kept_from(decode_envelope(value).creator)
    if kind.lifetime.holds_objects:
        projects = actor.find_projects(f"{kind.name}:{verb}") if actor.kind == "person" else None
        return None if projects is None else lambda value: decode_envelope(value).name in projects
    if kind.access.readers != "administered" or actor.permits(f"{kind.name}:{verb}", None):
        return None
    return lambda value: owns(actor, decode_envelope(value), verb)


def find_listed(actor: Actor, kind: Kind, project: str | None) -> Callable[[bytes], bool] | None:
    """The test of a stored object for whether it belongs into the actor's list of ``project`` (None: of all projects): as
    ``find_own`` says, and only what is in projects that the actor sees."""
    own = find_own(actor, kind, "list")
    if own is not None or project is not None or not lists_some(actor, kind):
        return own
    projects = actor.find_projects(f"{kind.name}:list")
    return None if projects is None else lambda value: decode_envelope(value).project in projects


def lists_some(actor: Actor, kind: Kind) -> bool:
    """Whether a list of all projects has for the actor the objects of those that it sees."""
    return lists_in_projects(kind) and actor.kind == "person" and not actor.is_cluster


def lists_in_projects(kind: Kind) -> bool:
    """Whether who may list a project's objects of ``kind`` gets them in a list of all projects, too."""
    return kind.scope == "project" and kind.access.readers == "project"


def _read_node(value: bytes) -> str | None:
    return decode_part(decode_envelope(value).status, _OnNode).node_uid


def read_project(envelope: Envelope) -> str | None:
    """The project in the spec of an object that projects administer."""
    return decode_part(envelope.spec, _InProject).project
