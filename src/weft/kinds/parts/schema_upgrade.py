"""Objects that an older weft stored, brought to the schema of this one: a kind's ``upgrades``, one step after the other. Pure."""

from __future__ import annotations

from typing import Any

from weft.kinds.record import Kind
from weft.objects.envelope import Envelope
from weft.objects.errors import IllegalTransition


def upgrade(kind: Kind, stored: dict[str, Any]) -> dict[str, Any] | None:
    """The whole object ``stored`` as plain data of ``kind.schema``; None if it is of that schema, or of a newer one."""
    schema = int(stored.get("schema", 1))
    if schema >= kind.schema:
        return None
    for step in kind.upgrades[schema - 1 :]:
        stored = step(stored)
    return {**stored, "schema": kind.schema}


def refuse_newer(kind: Kind, envelope: Envelope) -> None:
    """Raises IllegalTransition for an object of a newer schema: writing it by this version's rules could lose data."""
    if envelope.schema > kind.schema:
        raise IllegalTransition(
            f"{kind.name}/{envelope.name} was written by a newer weft (schema {envelope.schema}; this server knows "
            f"{kind.schema}), so it can't be changed here",
            reason="newerSchema",
            hint="upgrade this server; nothing was changed",
        )
