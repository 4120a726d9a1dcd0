"""Group: users who get the same roles. A user's spec says which groups the user is in."""

from __future__ import annotations

from typing import Annotated

import msgspec

from weft.kinds.fields.cells import AGE, NAME, text
from weft.kinds.record import Access, Column, Display, Kind
from weft.objects.schema import field


class GroupSpec(msgspec.Struct, kw_only=True):
    description: Annotated[str, field("Description, for people", max_length=200)] = ""


class GroupStatus(msgspec.Struct, kw_only=True):
    pass


GROUP = Kind(
    name="group",
    plural="groups",
    title="group",
    summary="Users who get the same roles",
    scope="fabric",
    spec=GroupSpec,
    status=GroupStatus,
    access=Access(readers="guarded"),
    display=Display(
        topic="People and projects",
        columns=(NAME, Column("DESCRIPTION", text("spec.description", ""), flexible=True), AGE),
    ),
)
