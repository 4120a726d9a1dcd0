"""How an object is, by its phase: what the CLI and the dashboard colour. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Health = Literal["running", "changing", "waiting", "degraded", "failed", "unknown", "ended"]
_PHASES: Mapping[Health, tuple[str, ...]] = {
    "running": (
        "Running",
        "Ready",
        "Available",
        "Attached",
        "Active",
        "inactive",
        "Promoted",
        "Linked",
        "Replicating",
        "Standby",
        "HandedOver",
    ),
    "changing": (
        *(
            "Prolog",
            "Boot",
            "Migrate",
            "Shutdown",
            "Epilog",
            "Joining",
            "Fetching",
            "Draining",
            "Deleting",
            "Taking",
            "Snapshotting",
            "Copying",
            "Restoring",
            "Seeding",
            "Rehearsing",
            "FailingOver",
        ),
        *(
            "Preparing",
            "Migrating",
            "Switching",
            "Finishing",
            "Stopping",
            "HandingOver",
            "Starting",
            "Undoing",
            "Progressing",
        ),
    ),
    "waiting": (
        "Pending",
        "Waiting",
        "Hold",
        "Scheduled",
        "Planned",
        "Requested",
        "AwaitingConfirmation",
        "Proposed",
        "pending",
        "Paused",
    ),
    "degraded": (
        "Autonomous",
        "Cordoned",
        "Drained",
        "Maintenance",
        "Ready,ConnectionsHigh",
        "NearlyFull",
        "Closed",
        "Failing",
        "Incomplete",
        "NoEndpoints",
        "RolledBack",
        "Undecided",
        "Suspect",
        "Unreachable",
        "Behind",
        "Interrupted",
        "NodeLost",
    ),
    "failed": ("Failed", "Rejected", "Refused", "Stale", "NotReady", "TimedOut", "Full", "firing"),
    "unknown": ("Unknown", "Missing"),
    "ended": ("Stopped", "Suspended", "Done", "Succeeded", "Cancelled", "Confirmed", "Undone"),
}
HEALTH: Mapping[str, Health] = {phase: health for health, phases in _PHASES.items() for phase in phases}
