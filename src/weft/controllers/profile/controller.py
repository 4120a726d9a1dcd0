"""Keeps the profiles of workloads and nodes: looks at the history of each once an hour, and once a day for its cycles.

Reads workloads, nodes, allocations and the history of metrics; writes profiles. Woken by time. Only the leader runs it. Each look
reads the last week again, so nothing is kept but what profiles say, and a process that is killed at any moment has lost the batch
under way: the next one finds those that are due. The arithmetic is done elsewhere (``analyse``), so the loop is never kept busy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np

from weft.contracts.history import Floats, History, Span
from weft.controllers.asking import Asking, Later
from weft.controllers.profile.plan import count_fresh, count_silent, plan_finding, plan_without_history
from weft.controllers.profile.series import CPU, INVOCATIONS, RESOURCES, add_up, pick, read_all, read_project
from weft.controllers.profile.subjects import Subject, is_to_search, list_due, list_orphaned
from weft.informer.commit import Commit, delete, unchanged
from weft.informer.leader_lease import LeaderLease, LeadershipLost
from weft.insight.anomalies import SILENT_SAMPLES
from weft.insight.profile import analysis
from weft.insight.profile.analysis import LONG_STEP_SECONDS, STEP_SECONDS, Batch, Finding, Peers, Search, Table
from weft.objects.errors import StoreUnavailable, TooLarge, Unavailable, WeftError

BATCH = 25  # of 48 MB in the process that computes; twice as many take 54, and a fifth less time each
PAUSE_SECONDS = 20.0
IDLE_SHARE = 3.0  # after a batch, so many times as long as it took: a fabric that begins isn't flooded with arithmetic
DAY_SECONDS, WEEK_SECONDS, MONTH_SECONDS = 86_400.0, 604_800.0, 28 * 86_400.0
MOST_PEERS = 2000
_log = logging.getLogger("weft.profiles")


class Analyses(Protocol):
    async def analyse(self, batch: bytes) -> bytes:
        """Run ``analysis.analyse``. Raises Unavailable where it can't be done now."""

    async def rest(self) -> None:
        """Nothing more is asked for a while."""


class Profiles(Asking):
    name = "profiles"
    always = ("profiles",)
    turn_seconds = None  # as long as the arithmetic takes

    def __init__(self, leadership: LeaderLease, history: History | Unavailable, analyst: Analyses) -> None:
        """``history``: or why there is none."""
        self._leadership, self._history, self._analyst = leadership, history, analyst
        self._peers: dict[str, Peers | None] = {}
        self._trouble = ""

    async def take_turn(self, key: str) -> Later:
        clock, more = self._leadership.clock, False
        began = clock.elapsed()
        try:
            more = await self.step()
            self._trouble = ""
        except (LeadershipLost, StoreUnavailable):
            raise
        except WeftError as problem:
            self._note(problem)
        return {key: max(1.0, IDLE_SHARE * (clock.elapsed() - began)) if more else PAUSE_SECONDS}

    async def end(self) -> None:
        await self._analyst.rest()

    async def step(self) -> bool:
        """Look at those that wait longest; whether more are due."""
        view, now = self._leadership.cache.view, self._leadership.clock.now()
        gone = [Commit(one.key, [delete(one)], [unchanged(one)]) for one in list_orphaned(view)]
        due = list_due(view, now)
        batch = due[:BATCH]
        commits = [*gone[:BATCH], *await self._inspect(batch, now)] if batch else gone[:BATCH]
        if commits:
            await self._leadership.perform(commits)
        if len(due) <= BATCH:
            self._peers.clear()
            await self._analyst.rest()
        return len(due) > BATCH

    async def _inspect(self, subjects: Sequence[Subject], now: float) -> list[Commit]:
        history = self._history
        if isinstance(history, Unavailable):
            planned = [plan_without_history(one, history.message, now) for one in subjects]
            return [commit for commit in planned if commit is not None]
        asked = await self._read(history, subjects, now)
        answer = await self._analyst.analyse(msgspec.msgpack.encode(asked))
        findings = msgspec.msgpack.decode(answer, type=list[Finding])
        searched = {search.row for search in asked.searches}
        found = zip(subjects, findings, strict=True)
        planned = [plan_finding(one, finding, row in searched, now) for row, (one, finding) in enumerate(found)]
        return [commit for commit in planned if commit is not None]

    async def _read(self, history: History, subjects: Sequence[Subject], now: float) -> Batch:
        """Read the data to look at them: a week of each, and of those whose cycles are looked for more."""
        week = Span.until(now, WEEK_SECONDS, STEP_SECONDS)
        rows = await self._read_rows(history, subjects, week)
        chosen = [
            row
            for row, subject in enumerate(subjects)
            if is_to_search(subject.status, _measure_length(rows[row]), now, subject.guests_mark)
        ]
        month = Span.until(now, MONTH_SECONDS, LONG_STEP_SECONDS)
        batch = Batch(
            now,
            week.start,
            month.start,
            [self._describe(subject, now) for subject in subjects],
            Table.of(np.array(rows)),
        )
        if chosen:
            wanted = [subjects[row] for row in chosen]
            months = await self._read_rows(history, wanted, month)
            days = await self._read_days(history, wanted, now)
            batch.searches = [
                Search(row, Table.of(of_month[None, :]), list(resources), Table.of(day))
                for row, of_month, (resources, day) in zip(chosen, months, days, strict=True)
            ]
            for project in sorted({one.series.project for one in wanted if one.resource == CPU and one.guests is None}):
                peers = await self._read_peers(history, project, now)
                if peers is not None:
                    batch.peers[project] = peers
        return batch

    async def _read_rows(self, history: History, subjects: Sequence[Subject], span: Span) -> list[Floats]:
        """Its own history, of a function its invocations, of a node the sum of its guests."""
        wanted = {one for subject in subjects for one, _ in subject.guests or ()}
        wanted |= {one.series for one in subjects if one.guests is None and one.resource == CPU}
        found = await read_all(history, CPU, wanted, span)
        functions = [one.series for one in subjects if one.resource == INVOCATIONS]
        found |= await read_all(history, INVOCATIONS, functions, span)
        return [
            pick(found, subject.series, span, subject.item.envelope.created_at)
            if subject.guests is None
            else add_up(found, subject.guests, span)
            for subject in subjects
        ]

    async def _read_days(
        self, history: History, subjects: Sequence[Subject], now: float
    ) -> list[tuple[Sequence[str], Floats]]:
        """The last day of each resource of each."""
        day = Span.until(now, DAY_SECONDS, STEP_SECONDS)
        guests = {one.series for one in subjects if one.guests is None and one.resource == CPU}
        found = {resource: await read_all(history, resource, guests, day) for resource in RESOURCES}
        days: list[tuple[Sequence[str], Floats]] = []
        for subject in subjects:
            if subject.series not in guests:
                days.append(((), np.zeros((0, day.count))))
                continue
            since = subject.item.envelope.created_at
            rows = [pick(found[resource], subject.series, day, since) for resource in RESOURCES]
            days.append((RESOURCES, np.array(rows)))
        return days

    async def _read_peers(self, history: History, project: str, now: float) -> Peers | None:
        """The last day of the project's workloads that use most; None: they are too many to read."""
        if project not in self._peers:
            day = Span.until(now, DAY_SECONDS, STEP_SECONDS)
            try:
                found = await read_project(history, CPU, project, day)
            except TooLarge:
                found = {}
            sums = {of: float(np.nansum(row)) for of, row in found.items()}
            most = sorted(sums, key=lambda of: -sums[of])[:MOST_PEERS]
            rows = np.array([found[of] for of in most]) if most else np.zeros((0, day.count))
            names = [f"{of.kind}/{of.name}" for of in most]
            self._peers[project] = Peers(names, Table.of(rows)) if most else None
        return self._peers[project]

    def _describe(self, subject: Subject, now: float) -> analysis.Subject:
        status, series = subject.status, subject.series
        fresh, silent = count_fresh(status, now), count_silent(status, SILENT_SAMPLES)
        return analysis.Subject(subject.full, fresh, silent, series.project, f"{series.kind}/{series.name}")

    def _note(self, problem: WeftError) -> None:
        """Once for each trouble: profiles stay as they are, and are looked at when it is over."""
        if problem.message != self._trouble:
            self._trouble = problem.message
            _log.warning("profiles are not kept up to date: %s", problem.message)


def _measure_length(row: Floats) -> float:
    known = np.flatnonzero(~np.isnan(row))
    return float(known[-1] - known[0]) * STEP_SECONDS if len(known) else 0.0
