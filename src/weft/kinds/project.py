"""Project: a namespace for people's objects; names are unique inside one."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.kinds.fields.cells import AGE, NAME, text
from weft.kinds.fields.lease import MOST_PRIORITY
from weft.kinds.fields.strategy import policies_named, read_strategy
from weft.kinds.record import Access, Admission, Column, Display, Kind, Lifetime, Reference
from weft.objects.envelope import Envelope
from weft.objects.errors import IllegalTransition
from weft.objects.schema import field

FIRST = "default"  # every fabric has it: the API server creates it when it starts

# A workload without a lease counts as 0, so no ceiling is below that.
Ceiling = Annotated[int, msgspec.Meta(ge=0, le=MOST_PRIORITY)]
Weight = Annotated[float, msgspec.Meta(ge=0.01, le=1000)]


class ProjectSpec(msgspec.Struct, kw_only=True):
    description: Annotated[str, field("Description, for people", max_length=200)] = ""
    strategy: Annotated[str | None, field("Default strategies of workloads, or @POLICY")] = None
    priority_ceiling: Annotated[Ceiling | None, field("Highest priority of leases in the project; unset: any")] = None
    plans_ahead: Annotated[
        Literal["off", "propose", "act"],
        field("Migrations ahead of a shortage of cores: none, proposals that wait to be accepted, or carried out"),
    ] = "propose"
    weight: Annotated[Weight, field("Weight of its share, where best-effort work of several projects waits")] = 1.0


def check_project(spec: ProjectSpec) -> None:
    """The strategy gets its one spelling. Raises InvalidStrategy."""
    if spec.strategy is not None:
        spec.strategy = read_strategy(spec.strategy)


def refuse_deletion(name: str) -> None:
    """Raises IllegalTransition for the project that always is there."""
    if name == FIRST:
        raise IllegalTransition(
            f'project "{FIRST}" can\'t be deleted: every cluster has it',
            hint="delete what is in it by kind and name, like weft vm delete NAME",
        )


def _guard_deletion(project: Envelope, now: float) -> None:
    refuse_deletion(project.name)


class ProjectStatus(msgspec.Struct, kw_only=True):
    pass


PROJECT = Kind(
    name="project",
    plural="projects",
    title="project",
    summary="A namespace for objects",
    scope="fabric",
    spec=ProjectSpec,
    status=ProjectStatus,
    references=(
        Reference("placementpolicy", "spec.strategy", lambda spec: policies_named(spec.strategy), awaited=True),
    ),
    access=Access(readers="shared"),
    admission=Admission(check=check_project, delete_guard=_guard_deletion),
    display=Display(
        topic="People and projects",
        columns=(
            NAME,
            Column("STRATEGY", text("spec.strategy", "")),
            Column("CEILING", text("spec.priority_ceiling", ""), align="right"),
            Column("DESCRIPTION", text("spec.description", ""), flexible=True),
            AGE,
        ),
    ),
    lifetime=Lifetime(holds_objects=True),
)
