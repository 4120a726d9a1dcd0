"""A Conversion's progress and end in words, with what to type next, and the live lines that show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.cli.command.target import Target
from weft.cli.wait.progress import Progress
from weft.kinds.conversion import ENDED
from weft.kinds.fields.cells import dig

Object = Mapping[str, Any]
_WORDS = {
    "Pending": "pending",
    "Preparing": "preparing",
    "Stopping": "stopping",
    "HandingOver": "handing over",
    "Starting": "starting",
    "AwaitingConfirmation": "ready",
    "Undoing": "undoing",
}
_WIDTH = max(map(len, _WORDS.values()))


def describe_way(obj: Object) -> str:
    """``container/web → vm/web``"""
    old = str(dig(obj, "spec.workload", ""))
    return f"{old} → {dig(obj, 'status.new') or dig(obj, 'spec.to', '')}"


def describe_step(obj: Object) -> str:
    """``starting      container/web → vm/web   vm/web is booting``"""
    phase, note = str(dig(obj, "status.phase", "Pending")), dig(obj, "status.message", "")
    return f"{_WORDS.get(phase, phase):<{_WIDTH}}  {describe_way(obj)}" + (f"   {note}" if note else "")


def describe_end(obj: Object, node: str) -> str:
    """``vm/web  Running on n2 in place of container/web; downtime 4.2 s``"""
    status = obj["status"]
    old, new = dig(obj, "spec.workload"), status["new"]
    stopped, running = status.get("stopped_at"), status.get("running_at")
    if not running:
        return f"{new}  Stopped, as {old} was"
    pause = f"; downtime {running - stopped:.1f} s" if stopped else ""
    return f"{new}  Running{f' on {node}' if node else ''} in place of {old}{pause}"


def describe_next(obj: Object) -> str:
    """Describe what to do with the old workload now."""
    name, old = obj["name"], dig(obj, "spec.workload")
    if dig(obj, "status.phase") == "Confirmed":
        return f"{old} is being deleted"
    return f"{old} is kept, stopped: weft conversion confirm {name} deletes it; weft conversion undo {name} switches back to it"


class Converting(Progress):
    """Shows a Conversion: on a terminal a line that changes, off it a line for each step."""

    def show(self, target: Target, obj: Object | None, over: bool = False) -> None:
        if obj is None or over or dig(obj, "status.phase") in (*ENDED, "AwaitingConfirmation"):
            super().show(target, None, over)
        elif dig(obj, "status.phase", "Pending") != "Pending":
            self.draw(target, describe_step(obj), str(dig(obj, "status.phase")))
