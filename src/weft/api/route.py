"""One operation that no kind has, with all that the API knows of it. Each module of handlers declares its own as ``ROUTES``.

Path and handler make the router (``routes.py``); the permission docs/reference/permissions.md; the topic the audit log; and the
rest, with the path, docs/reference/openapi.json.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import msgspec

from weft.serving.answer import Answer

SCHEMAS = "#/components/schemas/"
JSON = "application/json"
Struct = type[msgspec.Struct]
Shape = Struct | tuple[Struct, ...] | Mapping[str, Any]  # a struct, one of several, or a schema
Handler = Callable[..., Awaitable[Answer]]  # of context and call, and what the path gives


class Topic(msgspec.Struct, frozen=True):
    """Topic of a request, for the audit log."""

    when: Literal["always", "by people", "refused"]  # which requests of the sort are recorded
    verb: str
    kind: str = ""
    project: str = ""
    name: str = ""


class Route(msgspec.Struct, frozen=True):
    method: str
    path: str  # what stands for a name in braces goes to the handler, in order
    handler: Handler
    summary: str
    permission: str = "–"  # –: none
    where: Literal["anyone", "nodes", "servers", "own", "project", "all", "each"] = (
        "anyone"  # as in docs/reference/permissions.md
    )
    topic: Topic | None = None  # {NAME} in it stands for that of the path; None: what the method says
    query: tuple[str, ...] = ()  # its parameters
    takes: Shape | None = None  # its body; None: no JSON
    answers: Shape | None = None  # None: any object
    names: tuple[Struct, ...] = ()  # structs that these schemas refer to
    status: str = "200"
    media_type: str = JSON


def refer_to(struct: Struct | str) -> dict[str, Any]:
    """The schema that stands for a struct, or for the schema of that name."""
    return {"$ref": SCHEMAS + (struct if isinstance(struct, str) else struct.__name__)}


def list_names(path: str) -> list[str]:
    """The names in braces."""
    return [part.partition("}")[0][1:] for part in path.split("/") if part.startswith("{")]
