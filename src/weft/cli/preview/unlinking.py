"""Preview of the deletion of a link with another cluster: shows what hangs on it here. What goes the other way is refused by the
server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weft.cli.session import Session
from weft.kinds.fields.cells import dig
from weft.kinds.replica import PRIMARY, REPLICA
from weft.objects.errors import Forbidden
from weft.objects.identity import CLUSTER_PREFIX

_MOST_NAMED = 10


def warn_of_unlinking(session: Session, name: str) -> None:
    """List what ends with the link with cluster ``name``, as far as the caller may see it."""
    try:
        replicas = session.client.list(REPLICA.name, all_projects=True).items
    except Forbidden:
        return
    for line in describe_unlinking(name, replicas, session.client.project):
        session.notify(line)


def describe_unlinking(name: str, replicas: Sequence[dict[str, Any]], project: str) -> list[str]:
    """``replicas``: all that are here; those of ``project`` are named by their name alone. Pure."""
    held = [
        one
        for one in replicas
        if one.get("created_by") == f"{CLUSTER_PREFIX}{name}" and dig(one, "marks.role") != PRIMARY
    ]
    armed = [one for one in held if dig(one, "marks.automatic")]
    lines = []
    if held:
        lines.append(f"replicas from {name} that stay, and get no points any more: {_list_names(held, project)}")
    if armed:
        lines.append(
            f"replicas that take over no more: {_list_names(armed, project)}; while the witness doesn't answer {name}, the VMs of "
            "these end there within half a minute"
        )
    return lines


def _list_names(found: Sequence[dict[str, Any]], project: str) -> str:
    names = [one["name"] if one["project"] == project else f"{one['project']}/{one['name']}" for one in found]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(sorted(names)[:_MOST_NAMED]) + more
