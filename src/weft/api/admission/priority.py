"""The priority of a lease: a class becomes its number, and no number is above the project's ceiling.

A new object relies on its project's revision anyway, and a change that raises a priority does: a ceiling that is lowered meanwhile
counts. A class that a spec names anew is one of its references, on whose revision the commit relies.
"""

from __future__ import annotations

import functools
from typing import Any

from weft.api.admission.view import View
from weft.contracts.store import AtRevision, Precondition
from weft.kinds.fields.lease import LeaseRequest
from weft.kinds.priority_class import PRIORITY_CLASS, PriorityClassSpec
from weft.kinds.project import PROJECT, ProjectSpec
from weft.kinds.record import Kind
from weft.objects.envelope import decode_part
from weft.objects.errors import Forbidden, InvalidInput


async def settle_priority(view: View, kind: Kind, project: str | None, old: Any, new: Any) -> list[Precondition]:
    """Write the number of its class into the lease of ``new``, which an object gets in place of ``old`` (None: it is a new one).
    Raises InvalidInput for a class and another number, Forbidden above the ceiling; a class that isn't there is the references' to
    refuse."""
    lease = find_lease(kind, new)
    if lease is None or project is None:
        return []
    before = None if old is None else find_lease(kind, old)
    at = f"{kind.template[1]}.lease.priority"
    if (name := lease.priority_class) is not None:
        if before is not None and before.priority_class == name:
            value = before.priority
        elif (found := await view.get(PRIORITY_CLASS, None, name)) is not None:
            value = decode_part(found.spec, PriorityClassSpec).value
        else:
            return []
        if lease.priority not in (0, value, 0 if before is None else before.priority):
            raise InvalidInput(
                f"{at}: {lease.priority} is given, but priorityclass/{name} is {value}",
                field=at,
                hint=f"leave out {at}, or set {at}_class to null",
            )
        lease.priority = value
    if before is not None and lease.priority <= before.priority:  # what was accepted stays, and may be lowered
        return []
    owner = await view.get(PROJECT, None, project)
    ceiling = None if owner is None else decode_part(owner.spec, ProjectSpec).priority_ceiling
    if ceiling is not None and lease.priority > ceiling:
        raise _above(at, lease, project, ceiling)
    return [] if owner is None or old is None or view.is_planned(owner.key) else [AtRevision(owner.key, owner.revision)]


def find_lease(kind: Kind, spec: Any) -> LeaseRequest | None:
    """The lease of the workload that an object of ``kind`` is, or of those that it makes."""
    for step in _list_steps(kind.template[1]):
        spec = getattr(spec, step)
    lease = getattr(spec, "lease", None)
    return lease if isinstance(lease, LeaseRequest) else None


@functools.cache
def _list_steps(path: str) -> list[str]:
    return path.split(".")[1:]


def _above(at: str, lease: LeaseRequest, project: str, ceiling: int) -> Forbidden:
    named = f" (priorityclass/{lease.priority_class})" if lease.priority_class is not None else ""
    return Forbidden(
        f"{at}: {lease.priority}{named} is above {ceiling}, the ceiling of project {project}",
        reason="priorityCeiling",
        field=at,
        hint=f"give {ceiling} or less; an administrator of the fabric may raise spec.priority_ceiling of project {project}",
        details={"requested": lease.priority, "limit": ceiling},
    )
