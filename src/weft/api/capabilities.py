"""What this server can do, by names: a client of another release asks for the name of what it needs, not for a version.

A name keeps its meaning; what becomes different gets a new one. Pure."""

from __future__ import annotations

from weft.kinds.registry import KINDS

# What isn't seen from the kinds: routes and manners of the API.
_MANNERS = (
    "apply.dry-run",  # POST /v1/apply with dry_run stores nothing and says what would change
    "apply.generation",  # an object's uid and generation in a manifest are preconditions
    "batch",  # POST …:batch makes up to 1,000 objects
    "delete.uid",  # DELETE ?uid= is for that very object
    "events.follow",
    "idempotency-key",
    "list.fields",
    "list.labels",
    "moments.rfc3339",  # times in specs may be written as text
    "usage",
    "watch",
)


def list_capabilities() -> list[str]:
    """All names, in order: the manners of the API, each kind, each verb of a kind."""
    kinds = [f"kind.{kind.name}" for kind in KINDS]
    verbs = [f"verb.{kind.name}.{verb.name}" for kind in KINDS for verb in kind.verbs]
    return sorted([*_MANNERS, *kinds, *verbs])
