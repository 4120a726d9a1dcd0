"""The server's capabilities by name: a client of another release checks for the name of what it needs, not for a version.

A name keeps its meaning; changed behaviour gets a new name. Pure."""

from __future__ import annotations

from weft.kinds.registry import KINDS

# Those that the kinds don't show: routes and behaviour of the API.
_MANNERS = (
    "apply.dry-run",  # POST /v1/apply with dry_run stores nothing and reports what would change
    "apply.generation",  # an object's uid and generation in a manifest are preconditions
    "batch",  # POST …:batch makes up to 1,000 objects
    "delete.uid",  # DELETE ?uid= deletes only the object with that uid
    "events.follow",
    "idempotency-key",
    "list.fields",
    "list.labels",
    "moments.rfc3339",  # times in specs may be written as text
    "usage",
    "watch",
)


def list_capabilities() -> list[str]:
    """All names, in order: those of the API, each kind, each verb of a kind."""
    kinds = [f"kind.{kind.name}" for kind in KINDS]
    verbs = [f"verb.{kind.name}.{verb.name}" for kind in KINDS for verb in kind.verbs]
    return sorted([*_MANNERS, *kinds, *verbs])
