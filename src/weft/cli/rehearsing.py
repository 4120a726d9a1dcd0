"""What ``--dry-run`` of something new says beside that it would be made: whether and where it would be placed, by the scheduler's
own answer. Nothing of it stays."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from weft.cli.advice import tell_recommendation
from weft.cli.asking import ask
from weft.cli.exit_codes import OK, UNPLACEABLE
from weft.cli.following import print_one
from weft.cli.goals import is_stuck
from weft.cli.session import Session
from weft.cli.terminal import find_width
from weft.cli.words import Target
from weft.kinds.cells import dig
from weft.kinds.registry import is_workload
from weft.objects.errors import WeftError

Object = Mapping[str, Any]


def rehearse(session: Session, target: Target, made: Object, done: str) -> int:
    """Print what would be ``done``, with ``made`` as the server would have made it; 6 where no node would take it now."""
    asked = _ask_where(session, target, made)
    status = asked["status"] if asked is not None else {}
    if status.get("best"):
        print_one(
            session, made, f"{target.what}  would be {done}, and placed on {status['best']} by {status['policy']}"
        )
    elif status.get("phase") == "Failed":
        print_one(session, made, f"{target.what}  would be {done}, and wait: {status['reason']}: {status['message']}")
    else:
        print_one(
            session, made, f"{target.what}  would be {done}" + (", and stay Pending" if asked is not None else "")
        )
    if status.get("phase") == "Failed":
        return UNPLACEABLE if is_stuck(status["reason"]) else OK
    if asked is None or status.get("best"):
        return OK
    if not session.is_data:
        print(tell_recommendation(asked, target.what, find_width(sys.stdout), session.paint))
    return UNPLACEABLE


def _ask_where(session: Session, target: Target, made: Object) -> Object | None:
    """The scheduler's answer; None where there is nothing to place now, or nobody to tell."""
    spec = dig(made, "spec.task") if target.kind.name == "job" else made["spec"]
    kind = "container" if target.kind.name == "job" else target.kind.name
    waits = dig(made, "spec.hold") or dig(made, "spec.run", "run") != "run" or dig(made, "spec.schedule")
    elsewhere = made.get("project") not in (None, session.client.project)
    if not is_workload(kind) or waits or elsewhere:
        return None
    try:
        return ask(session, "recommendation", {"kind": kind, "wish": spec})
    except WeftError as problem:
        session.say(f"whether a node would take it can't be told now: {problem.message}")
        return None
