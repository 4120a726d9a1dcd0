"""A Migration's plan, progress and end in words, and the live lines that show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.cli.command.target import Target
from weft.cli.migration.description import format_pause
from weft.cli.wait.progress import Progress
from weft.kinds.fields.cells import dig
from weft.kinds.migration import CLUSTER_UNREACHABLE, ENDED
from weft.objects.quantity import format_bytes

Object = Mapping[str, Any]
_BAR = 24
_REPORT_SECONDS = 25  # percent, off a terminal


def describe_way(obj: Object) -> str:
    """``n1 → n2``, as far as it is known."""
    source, target = dig(obj, "status.source", ""), dig(obj, "status.target", "") or dig(obj, "spec.to", "")
    if dig(obj, "spec.mode") == "storage":
        return f"{dig(obj, 'spec.volume') or 'root disk'} → pool {dig(obj, 'spec.pool')}"
    return f"{source} → {target}" if source and target else f"from {source}" if source else ""


def describe_plan(obj: Object) -> str:
    """``n2 → n1, plain: each pass leaves less; about 4.0 s, downtime about 30 ms (confidence 0.8)``; empty while there is none."""
    plan = dig(obj, "status.plan")
    if not plan or not plan.get("mode"):
        return ""
    streams = f" over {plan['streams']} streams" if plan.get("streams", 0) > 1 else ""
    text = f"{describe_way(obj)}, {plan['mode']}{streams}: {plan['reason']}"
    if plan.get("duration_seconds"):
        pause = format_pause(plan.get("pause_seconds", 0.0) * 1000)
        text += f"; about {plan['duration_seconds']:.1f} s, downtime about {pause}"
        text += f" (confidence {plan['confidence']:g})" if plan.get("confidence") else ""
    return text


def find_share(obj: Object, before: int = 0) -> float:
    """How much of its disks, or then of its memory, is over, 0 to 1: what was sent, to that and what is left. ``before``: the bytes
    that were sent before that began."""
    progress = dig(obj, "status.progress") or {}
    sent: int = max(0, progress.get("sent_bytes", 0) - before)
    left: int = progress.get("remaining_bytes", 0)
    total: int = progress.get("total_bytes", 0)
    if not left and not progress.get("passes") and sent < total:  # what is left isn't counted yet
        return sent / total
    return sent / (sent + left) if sent else 0.0


def describe_progress(obj: Object, before: int = 0) -> str:
    """``81 %   96 MB/s   dirty 3.1 MB/s   left 48 MB``"""
    progress = dig(obj, "status.progress") or {}
    parts = [f"{find_share(obj, before):3.0%}"]
    if progress.get("bytes_per_second"):
        parts.append(f"{format_bytes(progress['bytes_per_second'])}/s")
    if progress.get("dirty_bytes_per_second"):
        parts.append(f"dirty {format_bytes(progress['dirty_bytes_per_second'])}/s")
    parts.append(f"left {format_bytes(progress.get('remaining_bytes', 0))}")
    return "   ".join(parts)


def describe_end(obj: Object) -> str:
    """Describe the end: ``in 3.9 s, downtime 21 ms, 214 MiB on the wire; n2 → n1``"""
    actual = dig(obj, "status.actual") or {}
    text = f"in {actual.get('duration_seconds', 0.0):.1f} s"
    machine = dig(obj, "spec.workload", "").startswith("vm/")
    saved = dig(obj, "status.plan.mode") == "saved"
    if machine and (saved or dig(obj, "spec.mode") == "cold"):
        text = f"{'suspended, its memory and disks' if saved else 'shut down, its disks'} {text}"
    elif not machine:
        text = f"{'saved,' if saved else 'stopped,'} {text}"
    if actual.get("pause_ms"):
        text += f", downtime {format_pause(actual['pause_ms'])}"
    if actual.get("bytes"):
        text += f", {format_bytes(actual['bytes'])} {'copied' if dig(obj, 'spec.mode') == 'storage' else 'on the wire'}"
    return f"{text}; {describe_way(obj)}"


class MigrationProgress(Progress):
    """Shows a Migration: its plan once, then on a terminal a bar, off it a line now and then."""

    _last = ""
    _sent = 0  # before its memory began, with its disks

    def show(self, target: Target, obj: Object | None, over: bool = False) -> None:
        if obj is None or over or dig(obj, "status.phase") in ENDED:
            super().show(target, None, over)
            return
        plan = describe_plan(obj)
        if plan and plan != self._last:
            self._last = plan
            self.notify(f"plan      {plan}")
        phase, note = dig(obj, "status.phase", "Pending"), dig(obj, "status.message", "")
        if phase == "Migrating" and dig(obj, "status.progress.total_bytes"):
            passes = dig(obj, "status.progress.passes", 0)
            before = self._sent if passes else 0
            if not passes:
                self._sent = dig(obj, "status.progress.sent_bytes", 0)
            share = find_share(obj, before)
            filled = int(share * _BAR)
            bar = f"{'█' * filled}{'░' * (_BAR - filled)}  " if self.animated else ""
            what = "memory" if passes else "disks"  # these go over first
            text = f"{what:<9} {bar}{describe_progress(obj, before)}"
            waits = note if dig(obj, "status.reason") == CLUSTER_UNREACHABLE else ""
            text += f"   {waits}" if waits else ""
            self.draw(target, text, f"{what} {int(share * 100) // _REPORT_SECONDS} {'waits' if waits else ''}")
        else:
            text = f"{phase.lower():<9} {describe_way(obj)}" + (f"   {note}" if note else "")
            if phase not in ("Pending", "Migrating") or note:  # printed anyway a moment later
                self.draw(target, text, text)
