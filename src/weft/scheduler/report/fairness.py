"""Answers a Report on fairness: each project's share of the cluster, and what it is entitled to. Pure but for the snapshot, which
counts what has changed."""

from __future__ import annotations

from collections import Counter

from weft.informer.view import View
from weft.kinds.report import ProjectShare, ReportStatus
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.queue.shares import Shares
from weft.scheduler.queue.waiting import find_waiting

MOST_SHOWN = 500  # an answer is one object, of limited size


def report_fairness(view: View, engine: Engine, now: float) -> ReportStatus:
    """The largest shares first. A project is entitled to its part of the weights of all that use something or wait; one that does
    neither to what it would be if it did."""
    shares, pending = (
        Shares(view, engine.snapshot),
        Counter(i.envelope.project or "" for i in find_waiting(view, engine, now)[0]),
    )
    projects = {item.envelope.name for item in view.of_kind("project").values()} | set(pending)
    active = {project for project in projects if pending[project] or shares.dominant(project)[1]}
    weights = sum(shares.weight(project) for project in active)
    found = []
    for project in projects:
        (share, resource), weight = shares.dominant(project), shares.weight(project)
        cpu, memory, gpus = shares.used(project)
        found.append(
            ProjectShare(
                project=project,
                weight=weight,
                dominant_resource=resource,
                dominant_share=round(share, 6),
                entitled_share=round(weight / (weights if project in active else weights + weight), 6),
                pending=pending[project],
                used={"cpu": cpu / 1000, "memory": memory, "gpus": gpus / 1000},
            )
        )
    found.sort(key=lambda one: (-one.dominant_share / one.weight, one.project))
    return ReportStatus(phase="Done", at=now, fairness=found[:MOST_SHOWN])
