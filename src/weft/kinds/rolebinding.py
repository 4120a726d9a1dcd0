"""Role binding: gives a role, in one project or in all, to users and to groups. A user has the rights of all bindings together."""

from __future__ import annotations

from typing import Annotated

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig, text
from weft.kinds.record import Access, Admission, Column, Display, Kind, Object, Reference
from weft.kinds.role import ROLE_REFERENCE
from weft.kinds.user import check_names
from weft.objects.errors import InvalidInput
from weft.objects.roles import EVERYWHERE
from weft.objects.schema import field

MOST_SUBJECTS = 1000
LONGEST_CLAIM = 256


class RoleBindingSpec(msgspec.Struct, kw_only=True):
    role: Annotated[str, field("The role that the users and groups get, built-in or an own one", name=True)]
    project: Annotated[str | None, field("The only project in which they have it; left out: all", name=True)] = None
    users: Annotated[list[str], field("Users who get it")] = []
    groups: Annotated[list[str], field("Groups whose users get it")] = []
    claims: Annotated[list[str], field("Groups at the OIDC provider, as its groups claim names them")] = []


class RoleBindingStatus(msgspec.Struct, kw_only=True):
    pass


def check_rolebinding(spec: RoleBindingSpec) -> None:
    """Raises InvalidInput for contradictory fields."""
    check_names(spec.users, "spec.users", MOST_SUBJECTS)
    check_names(spec.groups, "spec.groups", MOST_SUBJECTS)
    if len(spec.claims) > MOST_SUBJECTS or any(not 0 < len(claim) <= LONGEST_CLAIM for claim in spec.claims):
        raise InvalidInput(
            f"spec.claims: at most {MOST_SUBJECTS} groups of at most {LONGEST_CLAIM} characters",
            field="spec.claims",
            hint="give the groups as the provider names them",
        )
    if spec.project and spec.role in EVERYWHERE:
        raise InvalidInput(
            f"the role {spec.role} holds in all projects",
            field="spec.project",
            hint="leave it out, or give another role, like admin",
        )


def _subjects(obj: Object) -> str:
    shown = [
        *(dig(obj, "spec.users") or []),
        *(f"group {name}" for name in dig(obj, "spec.groups") or []),
        *(f"claim {name}" for name in dig(obj, "spec.claims") or []),
    ]
    return ", ".join(shown) or "–"


ROLE_BINDING = Kind(
    name="rolebinding",
    plural="rolebindings",
    title="role binding",
    summary="Roles of users and groups",
    scope="fabric",
    spec=RoleBindingSpec,
    status=RoleBindingStatus,
    references=(
        ROLE_REFERENCE,
        Reference("project", "spec.project", lambda spec: [spec.project] if spec.project else []),
        Reference("user", "spec.users", lambda spec: spec.users, blocks=False, reserves=True),
        Reference("group", "spec.groups", lambda spec: spec.groups),
    ),
    access=Access(readers="administered"),
    admission=Admission(check=check_rolebinding),
    display=Display(
        topic="People and projects",
        aliases=("binding",),
        columns=(
            NAME,
            Column("ROLE", text("spec.role")),
            Column("PROJECT", text("spec.project", "all")),
            Column("SUBJECTS", _subjects, flexible=True),
            AGE,
        ),
    ),
)
