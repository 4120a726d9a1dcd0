"""Plans migrations ahead of shortages: watches the nodes' profiles, asks the scheduler (a Report) what should leave a node that
will be short of cores, and makes Migrations of the answer, proposed or planned as each project wants it.

Reads profiles of nodes, Reports, Migrations, projects, workloads; makes Reports and Migrations, and cancels those that no shortage
needs any more. Woken by profiles, its Reports, and time. A Migration's name follows from the Report and its number there, and it is
made only if there is none: never twice, whatever is killed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from weft.controllers.loop import Plan
from weft.controllers.node.trouble import find_trouble
from weft.controllers.profile.subjects import list_guests, mark_guests
from weft.informer.commit import Commit, Draft, unchanged
from weft.informer.view import Changed, Item, View
from weft.insight.course import expect_hours, find_shortage, is_calm, is_urgent
from weft.kinds.migration import (
    AHEAD_LABEL,
    ENDED,
    GROUP_LABEL,
    HAS_LEFT,
    MIGRATION,
    MIGRATIONS_AHEAD,
    NOT_ACCEPTED,
    WORKLOAD_DELETED,
    MigrationActions,
    MigrationMarks,
    MigrationSpec,
    MigrationStatus,
)
from weft.kinds.profile import NodeProfileSpec, ProfileStatus
from weft.kinds.project import ProjectSpec
from weft.kinds.rebalance_plan import PlannedStep
from weft.kinds.report import REPORT, ReportSpec, ReportStatus
from weft.objects.identity import cut_name, object_key

LOOK_SECONDS = 600.0
HOURS = 24  # of the forecast
ANSWER_SECONDS = 30.0  # in which the migrations of an answer are made
RESTS_SECONDS = 4 * 3600.0  # after a plan that failed or that somebody cancelled
_NO_REST = (NOT_ACCEPTED, HAS_LEFT, WORKLOAD_DELETED)  # reasons of the end of one, after which another is planned
NOT_NEEDED = "cancelled, as "  # begins the reason of one that weft cancelled
CALM_LOOKS = 2  # of the profile, before a plan is cancelled


class PlansAhead:
    """Its notes are of looks at profiles; without them, as after a start, it asks once more, or cancels a plan a look later."""

    name = "plans ahead"
    kinds = ("nodeprofile", "report")

    def __init__(self) -> None:
        self._asked: dict[str, float] = {}  # by profile key, the look that was asked about last
        self._short: dict[
            str, float
        ] = {}  # the first of the looks running at which a shortage was forecast: one alone is too few
        self._calm: dict[str, list[float]] = {}  # looks running at which no shortage was in sight

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == "nodeprofile":
            return [change.key]
        node = change.item.envelope.labels.get(AHEAD_LABEL)
        return [object_key("nodeprofile", None, node)] if node else ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            profile = view.get(key)
            if profile is None or profile.deleting:
                self._asked.pop(key, None)
                self._calm.pop(key, None)
                self._short.pop(key, None)
                continue
            commits = self._plan_one(view, profile, now)
            plan.commits += commits or []
            plan.later[key] = ANSWER_SECONDS if commits is None else LOOK_SECONDS
        return plan

    def _plan_one(self, view: View, profile: Item, now: float) -> list[Commit] | None:
        """None: it waits for the answer about another node, whose migrations count."""
        node, status = profile.spec(NodeProfileSpec).node.name, profile.status(ProfileStatus)
        made = view.find(MIGRATIONS_AHEAD, node)
        going = [one for one in made if one.status(MigrationStatus).phase not in ENDED]
        if going:
            self._short.pop(profile.key, None)
            return self._cancel(view, profile.key, status, going, now)
        self._calm.pop(profile.key, None)
        report = view.get(object_key("report", None, name_report(profile, status)))
        if report is not None and asks_about(report, node):
            self._asked[profile.key] = status.looked_at
            return make_migrations(view, report, node, made, now)
        if self._asked.get(profile.key) == status.looked_at or _rests(made, status, now):
            self._short.pop(profile.key, None)  # looks that are running are after the last plan
            return []
        short = find_shortage(status, now)
        if short is None or _is_of_others(view, profile):
            self._short.pop(profile.key, None)
            return []
        first = self._short.setdefault(profile.key, status.looked_at) == status.looked_at
        if first and not is_urgent(status, short):
            return []
        reports = view.of_kind("report").values()
        if any(
            AHEAD_LABEL in one.envelope.labels and 0 <= now - one.envelope.created_at < ANSWER_SECONDS
            for one in reports
        ):
            return None
        asked = ReportSpec(subject="shortage", node=node)
        draft = Draft(profile)
        draft.make(REPORT.make(name_report(profile, status), asked, now, labels={AHEAD_LABEL: node}))
        commit = draft.commit(profile.key)
        return [commit] if commit is not None else []

    def _cancel(self, view: View, key: str, status: ProfileStatus, going: Sequence[Item], now: float) -> list[Commit]:
        """Cancel what hasn't begun: once the forecast was calm at several looks running, or is gone or old; if its project
        wants none; or if its target takes nothing."""
        looks, known = self._calm.setdefault(key, []), expect_hours(status, now, HOURS) is not None
        if not known or not is_calm(status, now):
            looks.clear()
        elif status.looked_at not in looks:
            looks.append(status.looked_at)
        general = "" if known else "nothing is forecast any more"
        if len(looks) >= CALM_LOOKS:
            general = "no shortage is forecast any more"
        commits = []
        for item in going:
            spec, asked = item.spec(MigrationSpec), item.actions(MigrationActions)
            if item.status(MigrationStatus).started_at is not None or asked.cancel or item.deleting:
                continue
            off = "plans_ahead of its project is off" if _find_mode(view, item.envelope.project or "") == "off" else ""
            why = general or off or find_trouble(view, spec.to or "")
            if not why:
                continue
            draft, reason = Draft(), f"{NOT_NEEDED}{why}: {spec.reason}"[:200]
            draft.change(
                item,
                spec=msgspec.structs.replace(spec, reason=reason),
                actions=msgspec.structs.replace(asked, cancel=True),
            )
            if commit := draft.commit(key):
                commits.append(commit)
        return commits


def _is_of_others(view: View, profile: Item) -> bool:
    """Whether other guests are on the node than when its cycles were found: its profile is renewed within the hour."""
    mark, node = profile.status(ProfileStatus).guests, view.get(object_key("node", None, profile.envelope.name))
    return bool(mark) and node is not None and mark_guests(list_guests(view, node)) != mark


def asks_about(report: Item, node: str) -> bool:
    """Whether it is this controller's question about the node: labels alone prove nothing, anybody may set them."""
    asked = report.spec(ReportSpec)
    return report.envelope.labels.get(AHEAD_LABEL) == node and (asked.subject, asked.node) == ("shortage", node)


def name_report(profile: Item, status: ProfileStatus) -> str:
    """One for each look at the node."""
    return f"ahead-{profile.uid[:8]}-{int(status.looked_at)}"


def _rests(made: Sequence[Item], status: ProfileStatus, now: float) -> bool:
    """Whether the profile is older than the last migration, or one failed or was cancelled lately, unless nobody accepted it
    in time, or its workload is gone from the node."""
    for one in made:
        found, by_us = one.status(MigrationStatus), one.spec(MigrationSpec).reason.startswith(NOT_NEEDED)
        ended = found.ended_at or 0.0
        if found.phase == "Succeeded":
            if ended > status.looked_at:
                return True
        elif not by_us and found.reason not in _NO_REST and now - ended < RESTS_SECONDS:
            return True
    return False


def make_migrations(view: View, report: Item, node: str, made: Sequence[Item], now: float) -> list[Commit]:
    """One commit for each group of the answer that isn't there yet."""
    answer = report.status(ReportStatus)
    if answer.phase != "Done":
        return []
    known = {one.envelope.name for one in made}
    drafts: dict[int, Draft] = {}
    for number, (step, window, group) in enumerate(zip(answer.steps, answer.windows, answer.groups, strict=True)):
        name = name_migration(report, step, number)
        workload = view.get(_key_of(step))
        if name in known or workload is None or workload.uid != step.uid or workload.deleting:
            continue
        mode = _find_mode(view, step.project)
        if mode == "off":
            continue
        draft = drafts.setdefault(group, Draft(report))
        draft.preconditions.append(unchanged(workload))
        draft.make(
            MIGRATION.make(
                name,
                MigrationSpec(
                    workload=step.workload,
                    to=step.to,
                    not_before=window.start,
                    not_after=window.end,
                    window="auto",
                    reason=step.reason,
                ),
                now,
                marks=MigrationMarks(proposed=mode == "propose", ahead=node),
                project=step.project,
                creator=workload.envelope.creator,
                labels={AHEAD_LABEL: node, GROUP_LABEL: name_group(report, group)},
            )
        )
    found = (draft.commit(object_key("nodeprofile", None, node)) for draft in drafts.values())
    return [commit for commit in found if commit is not None]


def name_migration(report: Item, step: PlannedStep, number: int) -> str:
    mark = hashlib.sha256(f"{report.uid}/{number}".encode()).hexdigest()[:8]
    name = step.workload.partition("/")[2]
    return cut_name(name, f"-{mark}")


def name_group(report: Item, number: int) -> str:
    """A digest: the first of a group may be of another project, whose names it mustn't tell."""
    return hashlib.sha256(f"{report.uid}/{number}".encode()).hexdigest()[:16]


def _key_of(step: PlannedStep) -> str:
    kind, _, name = step.workload.partition("/")
    return object_key(kind, step.project, name)


def _find_mode(view: View, project: str) -> str:
    item = view.get(object_key("project", None, project))
    return item.spec(ProjectSpec).plans_ahead if item is not None else ProjectSpec().plans_ahead
