"""Choose the way a container migrates: saved while it runs and continued at its target, or stopped and started there. Pure."""

from __future__ import annotations

from typing import Literal

from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.migration import MigrationSpec
from weft.kinds.node import NodeReport
from weft.kinds.registry import WORKLOADS
from weft.scheduler.node.facts import CAN, SAVED

NOT_SAVED = "notSaved"
Saves = Literal["", "may", "must"]


def name_runtime(kind: str) -> str:
    """Name of the runtime that a node must have for it."""
    return f"{kind}/{SAVED}"


def find_missing_capability(report: NodeReport, kind: str = "container") -> str:
    """Why that node can't save workloads of that kind for another node; empty: it can."""
    answers = [one.checkpoint for one in report.runtimes if one.usable and kind in one.kinds and one.checkpoint]
    if CAN in answers:
        return ""
    return answers[0] if answers else f"the node has no runtime that can save {kind}s"


def has_choice(spec: AllocationSpec) -> bool:
    """Whether its kind has both ways: VMs are never saved."""
    return WORKLOADS[spec.workload.kind].checkpoint_bar is not None


def find_checkpoint_obstacle(spec: AllocationSpec, report: AllocationReport) -> str:
    """Why no node can save that workload; empty: one can."""
    bar = WORKLOADS[spec.workload.kind].checkpoint_bar
    why = bar(spec) if bar is not None else f"a {spec.workload.kind} can't be saved"
    return why or ("" if report.state == "running" else "it is not running")


def choose_checkpointing(
    spec: MigrationSpec, bar: str, source: tuple[str, NodeReport], target: tuple[str, NodeReport]
) -> tuple[Saves, str]:
    """Whether it is saved, and a sentence on it; ``bar``: why no node can save it. Nodes by name."""
    here, there = source[0], target[0]
    lacks = [f"{name}: {lack}" for name, report in (source, target) if (lack := find_missing_capability(report))]
    if spec.mode == "cold":
        return "", f"it is stopped on {here} and starts on {there}"
    if why := bar or next(iter(lacks), ""):
        return "", f"it is stopped on {here} and starts on {there} ({why})"
    return "must" if spec.mode == "live" else "may", f"it is saved on {here} and continues on {there}"
