"""Project: a room for people's objects; names are unique inside one."""

from __future__ import annotations

from typing import Annotated

import msgspec

from weft.kinds.cells import AGE, NAME, text
from weft.kinds.record import Column, Kind
from weft.objects.schema import field


class ProjectSpec(msgspec.Struct, kw_only=True):
    description: Annotated[str, field("What it is for", max_length=200)] = ""


class ProjectStatus(msgspec.Struct, kw_only=True):
    pass


PROJECT = Kind(
    name="project",
    plural="projects",
    title="project",
    summary="A room for objects",
    scope="fabric",
    spec=ProjectSpec,
    status=ProjectStatus,
    columns=(NAME, Column("DESCRIPTION", text("spec.description", ""), flexible=True), AGE),
)
