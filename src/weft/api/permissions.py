"""``python -m weft.api.permissions``: docs/reference/permissions.md, which right each operation of the API takes and which role
has it. A test compares the page with this, and the server's answers with the page."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from weft.api.auth.authorise import find_right_to_read, find_right_to_write
from weft.api.openapi import describe_api
from weft.api.request.target import Target, read_target
from weft.objects.roles import RIGHTS

_ALL = ("read", "operate", "write", "invoke", "audit", "grant", "fabric")
_HEAD = """\
# Who may do what

Written by `python -m weft.api.permissions`; change the kinds, not this page.

A token has a role: `weft token create NAME --role ROLE`. With `-p PROJECT` it has the role in that project and no right anywhere
else; without, in all projects. `admin` without a project is the same as `fabric-admin`. A request without the right gets
the error `forbidden`, whether the object exists or not.

A user has the rights of all role bindings that name the user, a group of the user, or a group that the OIDC provider claims for the
user. A user's own token (`weft login`, `weft token create`) has the user's rights as they are at each request, and at most its own
role in its own project. Users see, create and delete their own tokens, and set their own password, without any right.

## Roles

"""
_OPERATIONS = """
## Operations

*Where*: **project**, the one in the path; **all**, a role that holds in all projects; **own**, a role in any project, which sees
(with `grant`: creates and deletes, too) what belongs to its own; **anyone**, any token of a person (`/v1/login`: no token either;
`/v1/join`: a join token); **nodes**, nodes with their certificate; **each**, the right to each object in the request.

| operation | right | where |
|---|---|---|
"""
_BY_HAND = {
    "/v1/accounting": ("read", "all"),
    "/v1/projects/{project}/accounting": ("read", "project"),
    "/v1/apply": ("write", "each"),
    "/v1/audit": ("audit", "own"),
    "/v1/audit:verify": ("audit", "all"),
    "/v1/blobs/{sha256}": ("fabric", "all"),
    "/v1/events": ("read", "own"),
    "/v1/gateway": ("–", "anyone"),
    "/v1/healthz": ("–", "anyone"),
    "/v1/join": ("–", "anyone"),
    "/v1/kinds": ("–", "anyone"),
    "/v1/login": ("–", "anyone"),
    "/v1/openapi.json": ("–", "anyone"),
    "/v1/users/{name}:passwd": ("fabric", "all"),
    "/v1/usage": ("read", "all"),
    "/v1/whoami": ("–", "anyone"),
}


def render() -> str:
    rows = [f"| {method.upper()} `{path}` | {right} | {where} |" for method, path, right, where in list_operations()]
    return _HEAD + "\n".join(_roles()) + "\n" + _OPERATIONS + "\n".join(rows) + "\n"


def list_operations() -> Iterator[tuple[str, str, str, str]]:
    """Method, path, right and where of each operation in the API's description."""
    for path, methods in describe_api()["paths"].items():
        for method in methods:
            yield (method, path, *_find(path, method))


def _roles() -> Iterator[str]:
    yield "| role | " + " | ".join(_ALL) + " |"
    yield "|---" * (len(_ALL) + 1) + "|"
    for role, rights in RIGHTS.items():
        yield f"| {role} | " + " | ".join("yes" if right in rights else "–" for right in _ALL) + " |"


def _find(path: str, method: str) -> tuple[str, str]:
    if path in _BY_HAND:
        return _BY_HAND[path]
    if path.endswith("/code/{sha256}"):
        return "write", "project"
    target = read_target(path.replace("{project}", "p").replace("{name}", "n").split("/")[2:])
    kind, reads = target.kind, method == "get" and target.verb is None
    if target.verb is not None and target.verb != "batch":
        found = next((verb for verb in kind.verbs if verb.name == target.verb), None)
        return ("–", "nodes") if found is None else (found.needs, _where(target))
    if kind.access == "administered" and (method in ("get", "delete") or (method == "post" and target.verb is None)):
        return "grant", "own"
    if not reads:
        return find_right_to_write(kind), _where(target)
    if kind.access == "shared":
        return "read", "all" if kind.holds_objects and target.name is None else "own"
    return find_right_to_read(kind), _where(target)


def _where(target: Target) -> str:
    return "project" if target.project is not None else "all"


if __name__ == "__main__":
    sys.stdout.write(render())
