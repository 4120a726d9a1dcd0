"""Preview of a deletion: shows what goes with the object, and asks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from weft.cli.output.terminal import is_terminal
from weft.cli.session import Session
from weft.kinds.fields.cells import dig
from weft.kinds.project import PROJECT
from weft.kinds.registry import BY_NAME

MOST_NAMED = 100  # in an error


def check_person(session: Session, names: list[str], effects: Sequence[str] = ()) -> None:
    """Raises UsageError without a terminal to ask at, unless the command is only explained. ``effects``: sentences on what goes
    with the objects."""
    if session.recorder is None and not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        raise click.UsageError(
            f"deleting {', '.join(names[:MOST_NAMED])}{more} without a terminal needs --yes"
            f"{': ' if effects else ''}{'; '.join(effects)}"
        )


def ask_to_delete(session: Session, found: Sequence[dict[str, Any]]) -> bool:
    """Show what would go with each of these objects, and ask; the answer. Raises UsageError where nobody can answer."""
    check_person(session, [f"{obj['kind']}/{obj['name']}" for obj in found])
    if session.recorder is not None:
        return True  # the request is shown instead, and nothing is sent
    with_volumes = any(obj["kind"] == PROJECT.name for obj in found)
    for obj in found:
        session.notify(f"  {obj['kind']}/{obj['name']}  {describe_loss(obj, with_volumes=with_volumes)}")
    question = "Delete this for good?" if len(found) == 1 else f"Delete these {len(found)} for good?"
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        session.notify("")  # the cursor is behind the question
        raise


def describe_loss(obj: dict[str, Any], *, with_volumes: bool = False) -> str:
    """Describe what goes with the object, in a few words. ``with_volumes``: its volumes are deleted too."""
    parts = [str(dig(obj, "status.phase", ""))]
    kind = BY_NAME[obj["kind"]]
    if kind.workload is not None:
        node = dig(obj, "status.node")
        volumes = kind.workload.volumes(msgspec.convert(obj["spec"], kind.spec))
        parts += [f"on {node}"] if node else []
        stay = "" if with_volumes or not volumes else f"volumes stay: {', '.join(volumes)}"
        goes = "its root disk goes with it" if node else ""
        parts += [f"; {', '.join(filter(None, (goes, stay)))}"] if goes or stay else []
    elif obj["kind"] == "job":
        running = dig(obj, "status.running", 0)
        parts.append(f"; {running} tasks that run, and the logs of all" if running else "; the logs of its tasks")
        parts.append("go with it")
    elif obj["kind"] == "snapshot":
        parts.append(f"; nothing can be restored from it any more ({dig(obj, 'spec.of', '')})")
    elif obj["kind"] == "volume":
        parts.append("; the data on it is lost")
    elif obj["kind"] == "backup":
        parts.append(
            f"; nothing can be restored from it any more: it is removed from its repository ({dig(obj, 'spec.of', '')})"
        )
    return " ".join(part for part in parts if part).replace(" ;", ";")
