"""Asks the history of metrics for deployments, beside the controller's plans: what requests say of a new revision, and the figure
that sets the number of instances. One question at a time; what it answered last stands until the next answer."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from weft.contracts.history import History
from weft.controllers.deployment.facts import Verdict
from weft.controllers.deployment.requests import Watched, ask_figure, ask_verdict
from weft.informer.view import Item, View
from weft.kinds.deployment import DeploymentSpec
from weft.kinds.fields.deployment.instance import REVISION_LABEL
from weft.kinds.fields.deployment.status import DeploymentStatus, find_since
from weft.kinds.parts.workload import WORKLOADS_BY_OWNER
from weft.objects.errors import TimedOut, TooLarge, Unavailable, WeftError

LOOK_SECONDS, JUDGE_SECONDS = 5.0, 1.0  # between two questions, and while requests are judged
SLOW_SECONDS = 300.0  # after which an expression is asked again that took too long
_log = logging.getLogger("weft.deployments")


class Observed(msgspec.Struct):
    """Observations of one deployment."""

    since: float | None = None  # the start of the step that the verdict is on; None: there is none of the present step
    verdict: Verdict = Verdict("wait", "")
    judged: bool = False
    figure: float | None = None
    figure_at: float = -1e12  # since when it is known
    figure_trouble: str = ""  # why there is no figure
    trouble: str = ""  # why there is no verdict


class Observer:
    def __init__(self, history: History | Unavailable) -> None:
        """``history``: or why there is none."""
        self._history = history
        self._known: dict[str, Observed] = {}  # by the deployment's uid
        self._judged_at: dict[str, float] = {}
        self._figure_due: dict[str, float] = {}
        # Two, as a figure is people's own expression: one that takes long holds no verdict up.
        self._judging: asyncio.Task[None] | None = None
        self._figuring: asyncio.Task[None] | None = None

    def find(self, deployment: Item) -> Observed:
        """The newest observation of its present step."""
        known = self._known.get(deployment.uid, Observed())
        since = find_since(deployment.status(DeploymentStatus))
        if known.since != since or since is None:
            known = msgspec.structs.replace(known, since=None, verdict=Verdict("wait", ""), judged=False)
        return known

    def refresh(self, view: View, now: float) -> None:
        """Begin to ask what is due."""
        every = view.of_kind("deployment").values()
        there = {one.uid for one in every}
        for gone in [uid for uid in self._known if uid not in there]:
            del self._known[gone]
            self._judged_at.pop(gone, None)
            self._figure_due.pop(gone, None)
        if self._judging is None or self._judging.done():
            watched = [
                (one, found)
                for one in every
                if not 0 <= now - self._judged_at.get(one.uid, -1e12) < JUDGE_SECONDS
                and (found := read_watched(view, one)) is not None
            ]
            if watched:
                self._judged_at |= {one.uid: now for one, _ in watched}
                self._judging = asyncio.ensure_future(self._judge(watched, now))
        if self._figuring is None or self._figuring.done():
            due = [
                one
                for one in every
                if one.spec(DeploymentSpec).autoscale is not None
                and not 0 < self._figure_due.get(one.uid, 0.0) - now <= SLOW_SECONDS
            ]
            if due:
                self._figure_due |= {one.uid: now + LOOK_SECONDS for one in due}
                self._figuring = asyncio.ensure_future(self._ask_figures(due, now))

    async def _judge(self, due: list[tuple[Item, Watched]], now: float) -> None:
        for item, watched in due:
            known = self._known.setdefault(item.uid, Observed())
            try:
                verdict, judged = await ask_verdict(self._read(), watched, now)
                known.since, known.verdict, known.judged = watched.since, verdict, judged
                known.trouble = ""
            except WeftError as problem:
                known.trouble = problem.message
            except Exception:  # a defect here must not end the controllers
                _log.exception("%s: the history can't be read", item.key)
                known.trouble = "the history can't be read"

    async def _ask_figures(self, due: list[Item], now: float) -> None:
        for item in due:
            known, scale = self._known.setdefault(item.uid, Observed()), item.spec(DeploymentSpec).autoscale
            assert scale is not None
            try:
                project = item.envelope.project or ""
                known.figure, known.figure_at = await ask_figure(self._read(), scale.metric, project, now), now
                known.figure_trouble = ""
            except WeftError as problem:
                known.figure_trouble, known.figure = problem.message, None
                if isinstance(problem, TimedOut | TooLarge):  # others wait for theirs meanwhile
                    self._figure_due[item.uid] = now + SLOW_SECONDS
            except Exception:  # a defect here must not end the controllers
                _log.exception("%s: the history can't be read", item.key)
                known.figure_trouble, known.figure = "the history can't be read", None

    def _read(self) -> History:
        if isinstance(self._history, Unavailable):
            raise self._history
        return self._history


def needs_history(deployment: Item) -> bool:
    return (
        find_since(deployment.status(DeploymentStatus)) is not None
        or deployment.spec(DeploymentSpec).autoscale is not None
    )


def find_pause(deployment: Item) -> float:
    return JUDGE_SECONDS if find_since(deployment.status(DeploymentStatus)) is not None else LOOK_SECONDS


def read_watched(view: View, deployment: Item) -> Watched | None:
    """The instances whose requests are compared; None if none are."""
    spec, status = deployment.spec(DeploymentSpec), deployment.status(DeploymentStatus)
    since = find_since(status)
    if since is None:
        return None
    new, old = set[str](), set[str]()
    for one in view.find(WORKLOADS_BY_OWNER, deployment.uid):
        is_new = one.envelope.labels.get(REVISION_LABEL) == str(status.revision)
        (new if is_new else old).add(f"{one.envelope.kind}/{one.envelope.name}")
    return Watched(
        project=deployment.envelope.project or "",
        since=since,
        new=frozenset(new),
        old=frozenset(old),
        threshold=spec.strategy.success_threshold,
    )
