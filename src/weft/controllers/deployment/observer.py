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
from weft.objects.errors import Unavailable, WeftError

LOOK_SECONDS, JUDGE_SECONDS = 5.0, 1.0  # between two questions, and while requests are judged
_log = logging.getLogger("weft.deployments")


class Observed(msgspec.Struct):
    """What is known of one deployment."""

    since: float | None = None  # the start of the step that the verdict is on; None: there is none of the present step
    verdict: Verdict = Verdict("wait", "")
    judged: bool = False
    figure: float | None = None
    figure_at: float = -1e12  # since when it is known
    trouble: str = ""  # why there is none


class Observer:
    def __init__(self, history: History | Unavailable) -> None:
        """``history``: or why there is none."""
        self._history = history
        self._known: dict[str, Observed] = {}  # by the deployment's uid
        self._asked: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    def find(self, deployment: Item) -> Observed:
        """What was observed last of its present step."""
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
            self._asked.pop(gone, None)
        due = [
            one
            for one in every
            if needs_history(one) and not 0 <= now - self._asked.get(one.uid, -1e12) < find_pause(one)
        ]
        if not due or (self._task is not None and not self._task.done()):
            return
        self._asked |= {one.uid: now for one in due}
        self._task = asyncio.ensure_future(self._ask([(one, read_watched(view, one)) for one in due], now))

    async def _ask(self, due: list[tuple[Item, Watched | None]], now: float) -> None:
        for item, watched in due:
            known = self._known.setdefault(item.uid, Observed())
            try:
                if isinstance(self._history, Unavailable):
                    raise self._history
                if watched is not None:
                    verdict, judged = await ask_verdict(self._history, watched, now)
                    known.since, known.verdict, known.judged = watched.since, verdict, judged
                scale = item.spec(DeploymentSpec).autoscale
                if scale is not None:
                    project = item.envelope.project or ""
                    known.figure, known.figure_at = await ask_figure(self._history, scale.metric, project, now), now
                known.trouble = ""
            except WeftError as problem:
                known.trouble, known.figure = problem.message, None
            except Exception:  # a defect here must not end the controllers
                _log.exception("%s: the history can't be read", item.key)
                known.trouble, known.figure = "the history can't be read", None


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
