"""Project: a namespace for people's objects; names are unique inside one."""

from __future__ import annotations

from typing import Annotated

import msgspec

from weft.kinds.fields.cells import AGE, NAME, text
from weft.kinds.fields.strategy import policies_named, read_strategy
from weft.kinds.record import Column, Kind, Reference
from weft.objects.schema import field


class ProjectSpec(msgspec.Struct, kw_only=True):
    description: Annotated[str, field("Description, for people", max_length=200)] = ""
    strategy: Annotated[str | None, field("Default strategies of workloads, or @POLICY")] = None


def check_project(spec: ProjectSpec) -> None:
    """The strategy gets its one spelling. Raises InvalidStrategy."""
    if spec.strategy is not None:
        spec.strategy = read_strategy(spec.strategy)


class ProjectStatus(msgspec.Struct, kw_only=True):
    pass


PROJECT = Kind(
    name="project",
    plural="projects",
    title="project",
    summary="A namespace for objects",
    access="shared",
    scope="fabric",
    holds_objects=True,
    spec=ProjectSpec,
    check=check_project,
    references=(
        Reference("placementpolicy", "spec.strategy", lambda spec: policies_named(spec.strategy), awaited=True),
    ),
    status=ProjectStatus,
    columns=(
        NAME,
        Column("STRATEGY", text("spec.strategy", "")),
        Column("DESCRIPTION", text("spec.description", ""), flexible=True),
        AGE,
    ),
)
