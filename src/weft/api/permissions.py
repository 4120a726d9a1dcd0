"""``python -m weft.api.permissions``: docs/reference/permissions.md, which permission each operation of the API takes, and which
role has it. A test compares the page with this, and the server's answers with the page."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from weft.api.auth.ownership import lists_in_projects
from weft.api.openapi import describe_api
from weft.api.request.target import Target, read_target
from weft.api.routes import ROUTES
from weft.kinds.permissions import PERMISSIONS, list_kinds, list_verbs
from weft.objects.roles import RIGHTS

_ALL = ("read", "operate", "write", "invoke", "audit", "grant", "fabric")
_HEAD = """\
# Who may do what

Written by `python -m weft.api.permissions`; change the kinds, not this page.

A token has a role: `weft token create NAME --role ROLE`. With `-p PROJECT` it has the role in that project and no permission
anywhere else; without, in all projects. `admin` without a project is the same as `fabric-admin`. A request without the permission
gets the error `forbidden`, which names it, whether the object exists or not.

A user has the permissions of all role bindings that name the user, a group of the user, or a group that the OIDC provider claims
for the user. A user's own token (`weft login`, `weft token create`) has the user's permissions as they are at each request, and at
most its own role in its own project. Users see, create and delete their own tokens, and set their own password, without any
permission; a token with a role or a project of its own deletes no other token of its user. The subject of a token is a description.
A token that belongs to no user, but to a project, keeps its role until it ends or is deleted, whatever becomes of who created it.

People whose roles are in projects only see a node without what tells of others: no digests of its images, no orphans.

You can only grant permissions you hold (no privilege escalation): who creates or changes a role binding, token or role needs all
permissions that it gives, in its project; who adds a user to a group, or sets another user's password, all that the user then has.

## Built-in roles

A built-in role has the permissions with its rights.

"""
_OWN = """
## Own roles

An own role (`weft role create`) lists permissions, as verbs by kind: `rules: {vm: [get, list, start], image: [get]}`. `*` stands
for every kind, or every verb. Everything else is refused. These are all kinds and verbs, each with the right of built-in roles that
have it; in *italics*: it counts only in a role that holds in all projects.

| kind | verbs |
|---|---|
"""
_OPERATIONS = """
## Operations

*Where*: **project**, the one in the path; **all**, a role that holds in all projects; **own**, a role in any project, which sees
(creates and deletes, too, where projects administer it) what belongs to its own; **anyone**, any token of a person (`/v1/login`: no
token either; `/v1/join`: a join token); **nodes**, nodes with their certificate; **servers**, other servers of the fabric with
theirs; **each**, the permission for each object in the request. PUT and apply also
take `KIND:create` where the object isn't there yet.

| operation | permission | where |
|---|---|---|
"""
_BY_HAND = {(route.path, route.method.lower()): (route.permission, route.where) for route in ROUTES}
_ON_COLLECTION = {"get": "list", "post": "create"}
_ON_OBJECT = {"get": "get", "put": "update", "patch": "update", "delete": "delete"}


def render() -> str:
    rows = [
        f"| {method.upper()} `{path}` | {permission} | {where} |"
        for method, path, permission, where in list_operations()
    ]
    parts = (_HEAD, "\n".join(_roles()), "\n", _OWN, "\n".join(_verbs()), "\n", _OPERATIONS, "\n".join(rows), "\n")
    return "".join(parts)


def list_operations() -> Iterator[tuple[str, str, str, str]]:
    """Method, path, permission and where of each operation in the API's description."""
    for path, methods in describe_api()["paths"].items():
        for method in methods:
            yield (method, path, *_find(path, method))


def _roles() -> Iterator[str]:
    yield "| role | " + " | ".join(_ALL) + " |"
    yield "|---" * (len(_ALL) + 1) + "|"
    for role, rights in RIGHTS.items():
        yield f"| {role} | " + " | ".join("yes" if right in rights else "–" for right in _ALL) + " |"


def _verbs() -> Iterator[str]:
    for kind in list_kinds():
        found: dict[str, list[str]] = {}
        for verb in list_verbs(kind):
            permission = PERMISSIONS[f"{kind}:{verb}"]
            found.setdefault(permission.right, []).append(f"`{verb}`" if permission.in_project else f"*`{verb}`*")
        yield (
            f"| {kind} | " + "; ".join(f"{right}: {', '.join(found[right])}" for right in _ALL if right in found) + " |"
        )


def _find(path: str, method: str) -> tuple[str, str]:
    if (path, method) in _BY_HAND:
        return _BY_HAND[path, method]
    target = read_target(path.replace("{project}", "p").replace("{name}", "n").split("/")[2:])
    kind, where = target.kind, _where(target)
    if target.verb is not None and target.verb != "batch":
        return f"{kind.name}:{target.verb}", where
    verb = (_ON_COLLECTION if target.name is None else _ON_OBJECT)[method]
    if (kind.access.readers == "administered" and verb != "update" and target.verb is None) or (
        verb in ("get", "list") and kind.access.readers == "shared"
    ):
        where = "own"
    if verb == "list" and target.project is None and lists_in_projects(kind):
        where = "own"
    return f"{kind.name}:{verb}", where


def _where(target: Target) -> str:
    return "project" if target.project is not None else "all"


if __name__ == "__main__":
    sys.stdout.write(render())
