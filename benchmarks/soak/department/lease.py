"""One lease of a department, as it was acknowledged."""

from __future__ import annotations

import subprocess
from typing import Any

WITHIN = "in a reservation"  # the mode of a workload that uses a slot of one


class Lease:
    """One workload with a lease, as it was acknowledged."""

    def __init__(self, project: str, kind: str, name: str, asked: dict[str, Any]) -> None:
        self.project, self.kind, self.name, self.mode = project, kind, name, str(asked["mode"])
        self.duration: float | None = asked.get("duration")
        self.asked_start = asked.get("start")
        self.reservation, self.gang, self.priority = "", "", 0
        self.deadline = asked.get("deadline_at")
        self.cancelled = self.deleted = self.given_up = False
        self.start: float | None = None  # as promised
        self.probe: subprocess.Popen[str] | None = None
        self.node, self.answers = "", list[float]()  # where it is asked, and when it answered where it was asked before
        self.verdict = ""  # of its start: in time, late, told, none

    def __str__(self) -> str:
        return f"{self.kind}/{self.name} of {self.project} ({self.mode})"
