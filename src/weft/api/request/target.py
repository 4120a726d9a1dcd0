"""A request's target: a kind, perhaps a project, a name, a verb. Read from the URL's path. Pure."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import msgspec

from weft.kinds.record import Kind
from weft.kinds.registry import KINDS
from weft.objects.errors import NotFound
from weft.objects.identity import MAX_NAME, kind_prefix, object_key
from weft.objects.schema import suggest

BY_PLURAL: dict[str, Kind] = {kind.plural: kind for kind in KINDS}
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,253}[A-Za-z0-9])?")  # fabric-made names hold dots


class Target(msgspec.Struct, frozen=True, dict=True):
    kind: Kind
    project: str | None = None  # None: the kind is fabric-wide, or all projects are meant
    name: str | None = None
    verb: str | None = None  # after a colon in the path

    @property
    def prefix(self) -> str:
        """The store's prefix of the collection."""
        if self.kind.scope == "fabric":
            return object_key(self.kind.name, None, "")
        return kind_prefix(self.kind.name, self.project)

    @functools.cached_property
    def key(self) -> str:
        """The store's key of the object."""
        return object_key(self.kind.name, self.project, self.require_name())

    @functools.cached_property
    def reading(self) -> str:
        """The permission to read an object of the kind."""
        return f"{self.kind.name}:get"

    def require_name(self) -> str:
        if self.name is None:
            raise NotFound("this is a collection, not an object")
        return self.name


def read_target(segments: Sequence[str]) -> Target:
    """The target of ``/v1/…`` (the parts after v1). Raises NotFound for a path that leads nowhere."""
    if len(segments) in (3, 4) and segments[0] == "projects":
        return _read(segments[2], segments[3:], _check_project(segments[1]), in_project=True)
    if len(segments) in (1, 2):
        return _read(segments[0], segments[1:], None, in_project=False)
    raise no_such_path()


def no_such_path() -> NotFound:
    return NotFound("there is nothing at this path", hint="GET /v1/openapi.json lists the paths")


def _read(last: str, rest: Sequence[str], project: str | None, *, in_project: bool) -> Target:
    plural, colon, verb = last.partition(":") if not rest else (last, "", "")
    kind = BY_PLURAL.get(plural)
    if kind is None:
        meant = suggest(plural, list(BY_PLURAL))
        raise NotFound(
            f"no such kind: {plural[:40]!r}",
            reason="unknownKind",
            hint=f"did you mean {meant}?" if meant else "kinds: " + ", ".join(BY_PLURAL),
        )
    if in_project and kind.scope == "fabric":
        raise NotFound(f"{kind.a_title} belongs to no project", hint=f"its path is /v1/{kind.plural}")
    if not rest:
        return Target(kind, project, None, verb if colon else None)
    name, colon, verb = rest[0].partition(":")
    if kind.scope == "project" and not in_project:
        raise NotFound(f"{kind.a_title} belongs to a project", hint=f"its path is /v1/projects/default/{kind.plural}")
    if not _NAME.fullmatch(name):
        raise NotFound(f'{kind.title} "{name[:80]}" not found', hint=f"weft {kind.name} list")
    return Target(kind, project, name, verb if colon else None)


def _check_project(name: str) -> str:
    if len(name) > MAX_NAME or not _NAME.fullmatch(name) or "." in name:
        raise NotFound(f'project "{name[:80]}" not found', hint="weft project list")
    return name
