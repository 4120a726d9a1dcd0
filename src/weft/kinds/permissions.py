"""The permissions, KIND:VERB: each operation takes one, and they follow from the Kind records. What isn't among them is allowed to
nobody. Pure."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from weft.kinds.record import Kind
from weft.objects.roles import ALL, RIGHTS

ANY = "*"  # in a rule: every kind, or every verb


class Permission(NamedTuple):
    right: str  # the built-in roles with this right have it
    in_project: bool  # a role in one project has it too; else only one that holds in all projects


PERMISSIONS: dict[str, Permission] = {  # these, of no kind's record, and those that ``learn`` adds
    "accounting:get": Permission("read", True),
    "audit:list": Permission("audit", True),
    "audit:verify": Permission("audit", False),
    "backuprepository:key": Permission("fabric", False),
    "blob:get": Permission("fabric", False),
    "cluster:hello": Permission("fabric", False),  # what linked clusters say of themselves
    "event:list": Permission("read", True),
    "function:purge": Permission("write", True),  # its dead letters
    "function:redrive": Permission("write", True),
    "function:upload": Permission("write", True),  # its code
    "model:upload": Permission("write", True),  # its ONNX file
    "metric:list": Permission("read", True),  # of workloads; those of nodes only to whom it has in all projects
    "rotation:create": Permission("fabric", False),  # of a key of the fabric
    "rotation:list": Permission("read", False),
    "server:logs": Permission("fabric", False),  # what the server's own processes log
    "trace:get": Permission("read", True),  # its spans of objects that one may read
    "trace:list": Permission("read", True),
    "usage:get": Permission("read", False),
    "user:passwd": Permission("fabric", False),
}


def learn(kinds: Iterable[Kind]) -> None:
    """Add the permissions of ``kinds``; the registry does, once."""
    for kind in kinds:
        is_inside, is_administered = kind.scope == "project", kind.access.readers == "administered"
        reads = Permission(find_right_to_read(kind), is_inside or is_administered or kind.access.readers == "shared")
        found = {"get": reads, "list": reads._replace(in_project=reads.in_project and not kind.lifetime.holds_objects)}
        right = "grant" if is_administered else find_right_to_write(kind)
        for verb in ("create", "update", "delete"):
            if kind.access.writer == "people" or (kind.access.removable and verb == "delete"):
                found[verb] = Permission(right, is_inside or (is_administered and verb != "update"))
        found |= {verb.name: Permission(verb.needs, is_inside) for verb in kind.verbs if verb.needs}
        PERMISSIONS.update({f"{kind.name}:{verb}": permission for verb, permission in found.items()})


def find_right_to_write(kind: Kind) -> str:
    """The right that creating, changing and deleting objects of ``kind`` takes. A question to the scheduler changes nothing."""
    if kind.access.granted or (kind.scope == "fabric" and not kind.lifetime.ephemeral):
        return "fabric"
    return "operate" if kind.lifetime.ephemeral else "write"


def find_right_to_read(kind: Kind) -> str:
    return {"guarded": "fabric", "administered": "grant"}.get(kind.access.readers, "read")


@functools.cache
def find_built_in(role: str, everywhere: bool) -> frozenset[str] | None:
    """The permissions of a built-in role, in all projects or in one; None: it isn't built in."""
    if role not in RIGHTS:
        return None
    rights = RIGHTS[ALL if role == "admin" and everywhere else role]
    return frozenset(name for name, permission in PERMISSIONS.items() if permission.right in rights)


def find_permissions(rules: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """The permissions that ``rules`` give: verbs by kind. Unknown words, of another version of weft, give none."""
    asked = {(kind, verb) for kind, verbs in rules.items() for verb in verbs}
    found = []
    for name in PERMISSIONS if asked else ():
        kind, _, verb = name.partition(":")
        if not asked.isdisjoint(((kind, verb), (ANY, verb), (kind, ANY), (ANY, ANY))):
            found.append(name)
    return frozenset(found)


def find_least_role(permission: str) -> str:
    """The first built-in role that has it."""
    known = PERMISSIONS.get(permission)
    return next((role for role, rights in RIGHTS.items() if known and known.right in rights), ALL)


def list_verbs(kind: str) -> list[str]:
    """The verbs that a rule may give for ``kind``, or for ANY; none: there is no such kind."""
    found = [name.partition(":") for name in PERMISSIONS]
    return sorted({verb for word, _, verb in found if kind in (ANY, word)})


def list_kinds() -> list[str]:
    """The words that a rule may have for a kind, but ANY."""
    return sorted({name.partition(":")[0] for name in PERMISSIONS})
