"""Shares: an object that its project lets other projects name, as PROJECT/NAME. The field, its check, the verb that changes it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from weft.kinds.record import Object, Reference, Stored, Verb
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_name
from weft.objects.schema import field

EVERY_PROJECT = "*"
SHARED_WITH = "spec.shared_with"
MOST_SHARES = 50  # each is a precondition of the commit

SharedWith = Annotated[
    list[str],
    field("Projects whose objects may name it, as PROJECT/NAME; * is all projects. The verb share changes it"),
]


class ShareInput(msgspec.Struct, rename={"with_": "with"}, kw_only=True):
    with_: Annotated[list[str], field("Projects to share it with; * is all projects")] = []
    stop: Annotated[list[str], field("Projects to stop sharing it with; those that use it already keep it")] = []


class _Shared(msgspec.Struct):
    shared_with: list[str] = []


def is_shared(shared_with: list[str], project: str | None) -> bool:
    """Whether what is shared with these projects is with ``project``."""
    return EVERY_PROJECT in shared_with or project in shared_with


def is_own_or_shared(item: Stored, project: str | None, shared_with: list[str]) -> bool:
    """Whether objects of ``project`` may name ``item``, which is shared with these projects."""
    return item.envelope.project == project or is_shared(shared_with, project)


def check_shares(shared_with: list[str]) -> None:
    """Raises InvalidInput."""
    at = SHARED_WITH
    for index, name in enumerate(shared_with):
        if name != EVERY_PROJECT:
            check_name(name, f"{at}[{index}]")
    if len(set(shared_with)) != len(shared_with):
        raise InvalidInput(f"{at} names a project twice", field=at, hint="name each project once")
    if EVERY_PROJECT in shared_with and len(shared_with) > 1:
        raise InvalidInput(f"{at}: * is all projects", field=at, hint="leave out either * or the other projects")
    if len(shared_with) > MOST_SHARES:
        raise InvalidInput(f"{at}: more than {MOST_SHARES} projects", field=at, hint="use * for all projects")


def share_reference() -> Reference:
    """The projects that it is shared with: a deleted one keeps its name, so that no other gets its shares."""
    return Reference(
        "project",
        SHARED_WITH,
        lambda spec: [name for name in spec.shared_with if name != EVERY_PROJECT],
        blocks=False,
        reserves=True,
    )


def _share(obj: Object, given: ShareInput) -> dict[str, Any]:
    what, now = f"{obj['kind']}/{obj['name']}", list(obj["spec"]["shared_with"])
    if not given.with_ and not given.stop:
        raise InvalidInput(
            "no project is given", field="with", hint="--with PROJECT shares it, --stop PROJECT ends that"
        )
    check_shares(given.with_)
    if both := [name for name in given.stop if name in given.with_]:
        raise InvalidInput(
            f"stop: {both[0][:80]} is in input.with, too",
            field="stop",
            hint="name a project in either input.with or input.stop",
        )
    for name in given.stop:
        if name not in now:
            raise InvalidInput(
                f"stop: {what} is not shared with {name[:80]}",
                field="stop",
                hint=f"it is shared with {', '.join(now)}" if now else "it is shared with no project",
            )
    kept = [name for name in now if name not in given.stop]
    if EVERY_PROJECT in given.with_ or EVERY_PROJECT in kept:
        return {**obj["spec"], "shared_with": [EVERY_PROJECT]}
    return {**obj["spec"], "shared_with": list(dict.fromkeys([*kept, *given.with_]))}


SHARE = Verb(
    "share",
    "Let other projects use it as PROJECT/NAME, or stop that",
    input=ShareInput,
    change=_share,
    needs="write",
)


def read_shares(spec: Any) -> list[str]:
    """The projects that an object, whatever its kind, is shared with; ``spec`` as it is stored."""
    return msgspec.json.decode(spec, type=_Shared).shared_with
