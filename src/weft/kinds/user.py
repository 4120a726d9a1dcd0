"""User: a person who logs in. What users may do stands in role bindings; the password is set by its own verb, never by a spec."""

from __future__ import annotations

from typing import Annotated

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig, joined, text
from weft.kinds.record import Access, Admission, Column, Display, Kind, Object, Reference
from weft.objects.envelope import take_from_spec
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_name
from weft.objects.schema import field

MOST_GROUPS = 200
LEAST_CHARACTERS, MOST_BYTES = 8, 1024  # of a password


class UserSpec(msgspec.Struct, kw_only=True):
    full_name: Annotated[str, field("The person's full name", max_length=200)] = ""
    disabled: Annotated[bool, field("Whether the user can't log in, and no token of the user is valid")] = False
    groups: Annotated[list[str], field("Groups that the user is in")] = []
    identity: Annotated[
        str, field("The person at the OIDC provider, ISSUER#SUB, if the user logs in there", max_length=600)
    ] = ""


class UserMarks(msgspec.Struct, kw_only=True):
    password: Annotated[str, field("Sealed hash of the password; weft user passwd sets it", max_length=1000)] = ""


class UserStatus(msgspec.Struct, kw_only=True):
    pass


def check_user(spec: UserSpec) -> None:
    """Raises InvalidInput for a group that can't be one."""
    check_names(spec.groups, "spec.groups", MOST_GROUPS)


def check_names(names: list[str], at: str, most: int) -> None:
    """Raise InvalidInput if ``names`` are too many, or one of them is no name or comes twice."""
    if len(names) > most:
        raise InvalidInput(f"{at}: more than {most} names", field=at, hint=f"give at most {most}")
    for name in names:
        check_name(name, at)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInput(f"{at}: {twice} is given twice", field=at, hint="give each name once")


def check_password(password: object, field: str = "password") -> str:
    """``password`` if it can be one. Raises InvalidInput, which never contains it."""
    if not isinstance(password, str) or len(password) < LEAST_CHARACTERS:
        raise InvalidInput(
            f"{field} has fewer than {LEAST_CHARACTERS} characters", field=field, hint="choose a longer one"
        )
    if len(password.encode(errors="replace")) > MOST_BYTES:
        raise InvalidInput(f"{field} is longer than {MOST_BYTES} bytes", field=field, hint="choose a shorter one")
    return password


def place_of_password(uid: str) -> str:
    """Place that a user's hash is sealed for: it can't be opened for anyone else."""
    return f"password/{uid}"


def _login(obj: Object) -> str:
    ways = [word for word, path in (("password", "marks.password"), ("oidc", "spec.identity")) if dig(obj, path)]
    return "disabled" if dig(obj, "spec.disabled") else ",".join(ways) or "–"


USER = Kind(
    name="user",
    plural="users",
    title="user",
    summary="People who log in",
    scope="fabric",
    spec=UserSpec,
    marks=UserMarks,
    status=UserStatus,
    schema=2,
    upgrades=(take_from_spec(marks=UserMarks),),
    references=(Reference("group", "spec.groups", lambda spec: spec.groups),),
    access=Access(readers="guarded", status_writer="api", mark_writers={"password": ("api",)}),
    admission=Admission(check=check_user),
    display=Display(
        topic="People and projects",
        columns=(
            NAME,
            Column("FULL NAME", text("spec.full_name"), flexible=True),
            Column("GROUPS", joined("spec.groups"), flexible=True),
            Column("LOGIN", _login),
            AGE,
        ),
    ),
)
