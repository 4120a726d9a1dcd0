"""Decide who may do what. People have the rights of their role, in one project or in all; a node sees and reports only what is its
own.

Nobody, admin or not, changes through the API what weft's own processes write (allocations, endpoints, …).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import msgspec

from weft.api.auth.ownership import lists_some, owns, read_project
from weft.api.context import ApiContext
from weft.kinds.allocation import AllocationSpec, list_digests
from weft.kinds.endpoint import EndpointSpec
from weft.kinds.permissions import PERMISSIONS
from weft.kinds.record import Kind
from weft.kinds.token import TOKEN
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import Forbidden
from weft.objects.identity import object_key
from weft.trust.credentials import Actor
from weft.trust.enrolment import Enrolment, enrolment_key

ADMINISTERED = ("create", "delete")  # what those who administer a project do with its tokens and role bindings
_VERBS = {"change": "update", "apply": "update"}  # of permissions, where people say it otherwise


# Verbs whose names are nouns, or need not say what is done, as sentences have them.
_ACTS = {
    "apply": "create or change",
    "capture": "capture packets of",
    "contents": "list the backups in",
    "console": "open the console of",
    "exec": "run a command in",
    "files": "read files of",
    "flows": "see network flows of",
    "forward": "forward a port of",
    "logs": "see the log of",
    "metrics": "see the metrics of",
    "screen": "open the screen of",
}


ONLY = {
    "joiner": ("join", "weft agent join"),
    "linker": ("link clusters", "weft cluster link"),
    "server": ("ask another server for its files and history", "servers read objects in the store"),
}


class GivenUp(msgspec.Struct):
    """The record of a node that people gave up. A workload that isn't there any more was deleted after that, so its guest may
    end when the node is back. The record goes once the node reports again and has no orphan left."""

    name: str
    places: list[str] = []  # uids of the allocations that were deleted with the node
    at: float = 0.0  # when, in seconds since 1970; 0: by an older weft


def given_up_key(uid: str) -> str:
    """The key of a node's ``GivenUp``. Each commit that deletes the node's allocations writes it, so its revision is the last's."""
    return f"{enrolment_key(uid)}.given-up"


def require_person(actor: Actor, what: str) -> None:
    """Raise Forbidden unless ``actor`` is a person (or program) with an access token."""
    if actor.kind != "person":
        raise Forbidden(f"{_who(actor)} may not {what}")


def require_server(actor: Actor, what: str) -> None:
    """Raise Forbidden unless ``actor`` is another server of the fabric."""
    if actor.kind != "server":
        raise Forbidden(f"{_who(actor)} may not {what}", hint="servers of the fabric do that themselves")


def require_own_person(actor: Actor, what: str) -> None:
    """Raise Forbidden unless ``actor`` is a person of this cluster: no node, and no linked cluster, whose token reads single
    objects and nothing that is put together for people."""
    require_person(actor, what)
    if actor.is_cluster:
        raise Forbidden(f"{_who(actor)} may not {what}")


def require_permission(actor: Actor, permission: str, project: str | None, what: str) -> None:
    """Raise Forbidden unless ``actor`` is a person with ``permission`` in ``project`` (None: in no project, or in all of them)."""
    require_person(actor, what)
    actor.require(permission, project, what)


def require_writing(actor: Actor, what: str) -> None:
    """Raise Forbidden unless ``actor`` is a person who may change objects of some kind, somewhere."""
    require_person(actor, what)
    held = [grant.permissions for grant in actor.grants]
    if not any(map(_can_write, held)) or (actor.limit is not None and not _can_write(actor.limit.permissions)):
        raise actor.refuse("vm:update", actor.project, what)


@functools.lru_cache(1000)
def _can_write(permissions: frozenset[str]) -> bool:
    return any(permission.endswith(":update") for permission in permissions)


def authorise_write(actor: Actor, kind: Kind, project: str | None, what: str, *, one: bool = True) -> None:
    """Raise Forbidden unless ``actor`` may create, change or delete objects of ``kind`` in ``project``."""
    permission = _find_permission(kind.name, what)
    is_administered = one and kind.access.readers == "administered" and what in ADMINISTERED
    if permission is not None and not is_administered and actor.permits(permission, project):
        return
    act = f"{_ACTS.get(what, what)} {kind.a_title}"
    require_person(actor, act)
    if permission is None:
        raise Forbidden(
            f"{kind.a_title} is managed by weft itself: nobody can {what} it", hint=f"weft get {kind.plural} shows them"
        )
    if is_administered:  # the handlers of one object ask ``owns``
        _require_administering(actor, kind, what, act)
    else:
        actor.require(permission, project, act)


@functools.cache
def _find_permission(kind: str, what: str) -> str | None:
    permission = f"{kind}:{_VERBS.get(what, what)}"
    return permission if permission in PERMISSIONS else None


def _require_administering(actor: Actor, kind: Kind, verb: str, what: str) -> None:
    """Raise Forbidden unless ``actor`` may ``verb`` some objects of a kind that projects administer: ``owns`` says which."""
    if kind is not TOKEN or actor.user is None:
        actor.require_somewhere(f"{kind.name}:{verb}", what)


def require_own(actor: Actor, envelope: Envelope) -> None:
    """Raise Forbidden unless a new object of a kind that projects administer is the actor's to create."""
    if not owns(actor, envelope, "create"):
        project = read_project(envelope)
        raise actor.refuse(
            f"{envelope.kind}:create", project, f"create a {envelope.kind} for {project or 'all projects'}"
        )


def _authorise_person(actor: Actor, kind: Kind, project: str | None, name: str | None) -> None:
    verb = "list" if name is None else "get"
    if kind.access.readers == "administered":
        return _require_administering(actor, kind, verb, f"see {kind.plural}")
    permission = f"{kind.name}:{verb}"
    if actor.permits(permission, name if kind.lifetime.holds_objects else project):
        return None
    everywhere = name is None and project is None and lists_some(actor, kind)
    if everywhere or (kind.access.readers == "shared" and (name is None or not kind.lifetime.holds_objects)):
        return actor.require_somewhere(permission, f"see {kind.plural}")
    return actor.require(permission, name if kind.lifetime.holds_objects else project, f"see {kind.plural}")


async def authorise_read(
    context: ApiContext, actor: Actor, kind: Kind, project: str | None, name: str | None, query: Mapping[str, str]
) -> str | None:
    """Raise Forbidden unless ``actor`` may read; the one prefix of names that it may list, None for all."""
    asked = query.get(kind.access.name_begins)
    if actor.kind == "person":
        _authorise_person(actor, kind, project, name)
        return f"{asked}." if asked else None
    if actor.kind != "node":
        act, hint = ONLY.get(actor.kind, ("join", "weft agent join"))
        raise Forbidden(f"{_who(actor)} can only be used to {act}", hint=hint)
    await require_enrolled(context, actor)
    match kind.access.node_reads:
        case "all":
            return None
        case "named" if name is not None:
            return None
        case "itself" if name is not None:
            entry = await context.store.get(object_key(kind.name, None, name))
            if entry is not None and decode_envelope(entry.value).uid == actor.id:
                return None
        case "placed" if asked == actor.id or (name or "").startswith(f"{actor.id}."):
            return f"{actor.id}."
        case "kept" | "serving" if name is None:
            return None  # ``find_own`` picks them, ``find_served``
        case "connected" if asked and name is None:
            if asked in await _own_networks(context, actor.id) or await _stands_in(context, actor.id, asked):
                return f"{asked}."
    raise Forbidden(f"a node may only read its own objects, not this {kind.title}")


async def require_enrolled(context: ApiContext, actor: Actor) -> Enrolment | None:
    """The enrolment of the node; None if the store has none (it may be older than the node's certificate).

    Raises Forbidden if the node was removed, NotAuthenticated if it was enrolled again since, with another key."""
    if actor.peer is None:
        raise Forbidden("only the node itself may do this, with its certificate")
    return await context.enrolments.check(actor.id, actor.peer)


async def owns_image(context: ApiContext, node_uid: str, sha256: str) -> bool:
    """Whether one of the node's allocations has the image with this digest."""
    return any(sha256 in list_digests(spec) for spec in await _own_allocations(context, node_uid))


async def _own_networks(context: ApiContext, node_uid: str) -> set[str]:
    return {nic.network_uid for spec in await _own_allocations(context, node_uid) for nic in spec.nics}


async def _stands_in(context: ApiContext, node_uid: str, network_uid: str) -> bool:
    """Whether the node has an address of its own in that network, for functions."""
    page = await context.store.list(object_key("endpoint", None, f"{network_uid}."))
    found = (decode_part(decode_envelope(entry.value).spec, EndpointSpec) for entry in page.entries)
    return any(spec.workload.uid == node_uid for spec in found)


async def _own_allocations(context: ApiContext, node_uid: str) -> list[AllocationSpec]:
    page = await context.store.list(object_key("allocation", None, f"{node_uid}."))
    return [decode_part(decode_envelope(entry.value).spec, AllocationSpec) for entry in page.entries]


def _who(actor: Actor) -> str:
    if actor.is_cluster:
        return actor.name
    known = {"node": "a node", "joiner": "a join token", "linker": "a link token", "server": "a server's certificate"}
    return known.get(actor.kind, actor.name if actor.kind == "person" else "someone who isn't logged in")
