"""PriorityClass: a name for a priority of leases. A workload that names a class gets its number when it is admitted, and keeps it:
a later change of the class, or its deletion, changes no workload."""

from __future__ import annotations

from typing import Annotated

import msgspec

from weft.kinds.fields.cells import AGE, NAME, text
from weft.kinds.fields.lease import MOST_PRIORITY
from weft.kinds.record import Access, Column, Display, Kind
from weft.objects.schema import field


class PriorityClassSpec(msgspec.Struct, kw_only=True):
    value: Annotated[
        int,
        field("Priority of leases that name the class", ge=-MOST_PRIORITY, le=MOST_PRIORITY),
    ]
    description: Annotated[str, field("Description, for people", max_length=200)] = ""


class PriorityClassStatus(msgspec.Struct, kw_only=True):
    pass


PRIORITY_CLASS = Kind(
    name="priorityclass",
    plural="priorityclasses",
    title="priority class",
    summary="A name for a priority of leases",
    scope="fabric",
    spec=PriorityClassSpec,
    status=PriorityClassStatus,
    access=Access(readers="shared"),
    display=Display(
        topic="Placement",
        columns=(
            NAME,
            Column("VALUE", text("spec.value"), align="right"),
            Column("DESCRIPTION", text("spec.description", ""), flexible=True),
            AGE,
        ),
    ),
)
