"""``GET /v1/dashboard/summary``: what is wrong, what changes now, and how full the nodes are, without reading all objects.

Made once a second at most for all who see the same, from selections that are kept change by change.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from contextlib import suppress

import msgspec

from weft.api.auth.authorise import require_own_person
from weft.api.context import ApiContext
from weft.api.dashboard.row import Amount, Row
from weft.api.dashboard.selection import Query, Selection, find_newest
from weft.api.dashboard.table import find_sights
from weft.api.request.call import JSON, Call
from weft.api.route import Route, Topic
from weft.kinds.fields.health import Health
from weft.kinds.registry import KINDS, is_workload
from weft.objects.errors import WeftError
from weft.objects.identity import check_name
from weft.protocol.heartbeat import LEASE_PREFIX, Use, read_digest, total
from weft.serving.answer import Answer
from weft.trust.credentials import Actor

MOST_LISTED = 100  # problems, and as many operations
EVERY_SECONDS = 1.0
_encoder = msgspec.json.Encoder()
# The kinds whose objects have a state that people wait for.
WATCHED = [
    kind
    for kind in KINDS
    if kind.access.writer == "people"
    and not kind.lifetime.ephemeral
    and {"phase", "state"} & set(kind.status.__struct_fields__)
]
_NODES = [kind for kind in KINDS if kind.lifetime.runs_workloads]
_WORST: dict[Health, int] = {"failed": 0, "unknown": 1, "degraded": 2, "waiting": 3}  # problems, in this order


class NodeLine(msgspec.Struct, frozen=True):
    name: str
    phase: str
    health: Health
    note: str
    cpu: Amount  # cores
    memory: Amount  # bytes
    disk: Amount
    workloads: int


class Problem(msgspec.Struct, frozen=True):
    kind: str
    project: str | None
    name: str
    phase: str
    health: Health
    note: str
    hint: str
    since: float  # unix seconds


class OperationLine(msgspec.Struct, frozen=True):
    kind: str
    project: str | None
    name: str
    act: str
    subject: str  # what it is done to, as KIND/NAME
    phase: str
    note: str
    started_at: float  # unix seconds; 0: nobody knows


class Queue(msgspec.Struct, frozen=True):
    waiting: int  # workloads
    oldest_since: float | None  # unix seconds


class SummaryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``GET /v1/dashboard/summary``."""

    nodes: list[NodeLine]
    phases: dict[str, dict[str, int]]  # how many objects, by kind and phase
    problems: list[Problem]  # the worst ones
    problems_total: int
    operations: list[OperationLine]  # the newest ones
    operations_total: int
    queue: Queue
    cursor: str


class Summary:
    """Summary of these selections, encoded; ``version`` changes with it."""

    def __init__(self, selections: Mapping[str, Selection], *, with_usage: bool) -> None:
        self.selections, self.with_usage = selections, with_usage
        self.body = b""
        self._versions: tuple[int, ...] = ()
        self._made_at = -EVERY_SECONDS
        self._used: Mapping[str, Use] = {}

    @property
    def cursor(self) -> str:
        return find_newest(selection.cursor for selection in self.selections.values())

    def make(self, now: float, used: Mapping[str, Use]) -> bytes:
        """The summary, at most ``EVERY_SECONDS`` old. ``used`` is the use of nodes by their uid."""
        versions = tuple(selection.version for selection in self.selections.values())
        is_same = versions == self._versions and used is self._used
        if not is_same and now - self._made_at >= EVERY_SECONDS:
            self._versions, self._used, self._made_at = versions, used, now
            self.body = _encoder.encode(make_summary(self.selections, used if self.with_usage else {}))
        return self.body


async def summary(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/dashboard/summary``."""
    require_own_person(call.actor, "use the dashboard")
    project = read_project(call.query("project").get("project"))
    async with context.lists.take(call.actor):
        found = await find_summary(context, call.actor, project)
        body = found.make(context.clock.elapsed(), await read_usage(context))
    return Answer(200, body, JSON)


def read_project(text: str | None) -> str | None:
    return check_name(text, "project") if text else None


async def find_summary(context: ApiContext, actor: Actor, project: str | None) -> Summary:
    """The summary of what ``actor`` sees, one for all who see the same."""
    sights = await find_sights(context, actor, WATCHED, project)
    with_usage = actor.permits("usage:get", None)
    boards, key = context.boards, (tuple(sights), with_usage)
    selections = {sight.kind: await boards.select(Query(sights=(sight,))) for sight in sights}
    known = boards.summaries.get(key)
    if known is None or known.selections != selections:
        boards.summaries[key] = known = Summary(selections, with_usage=with_usage)
    return known


async def read_usage(context: ApiContext) -> Mapping[str, Use]:
    """The use of nodes by their uid, read once a second for all."""
    boards, now = context.boards, context.clock.elapsed()
    if now - boards.usage_at >= EVERY_SECONDS:
        boards.usage_at = now
        with suppress(WeftError):  # while the store is away, as it was
            leases = await context.store.leases(LEASE_PREFIX, digests=True)
            digests = {lease.name.removeprefix(LEASE_PREFIX): read_digest(lease.digest) for lease in leases}
            found = {uid: total(digest) for uid, digest in digests.items() if digest is not None and digest.measured}
            if found != boards.usage:
                boards.usage = found
    return boards.usage


def make_summary(selections: Mapping[str, Selection], used: Mapping[str, Use]) -> SummaryAnswer:
    unsettled = [row for selection in selections.values() for row in selection.unsettled.values()]
    problems = list(filter(_is_problem, unsettled))
    worst = heapq.nsmallest(MOST_LISTED, problems, key=lambda row: (_WORST[row.health], row.since, row.order))
    running = [row for row in unsettled if row.operation is not None]
    waiting = [row for row in unsettled if row.health == "waiting" and is_workload(row.kind)]
    rows = [row for kind in _NODES if kind.name in selections for row in selections[kind.name].rows]
    return SummaryAnswer(
        nodes=[_make_node(row, used.get(row.uid)) for row in rows],
        phases={kind: dict(selection.phases) for kind, selection in selections.items() if selection.phases},
        problems=[_make_problem(row) for row in worst],
        problems_total=len(problems),
        operations=list(_make_operations(heapq.nlargest(MOST_LISTED, running, key=_started))),
        operations_total=len(running),
        queue=Queue(len(waiting), min((row.since for row in waiting), default=None)),
        cursor=find_newest(selection.cursor for selection in selections.values()),
    )


def _is_problem(row: Row) -> bool:
    """True for a problem. A row that waits is one only if something says why."""
    return row.health in _WORST and (row.health != "waiting" or bool(row.note))


def _make_problem(row: Row) -> Problem:
    return Problem(row.kind, row.project, row.name, row.phase, row.health, row.note, row.hint, row.since)


def _started(row: Row) -> float:
    return row.operation.since if row.operation is not None else 0.0


def _make_operations(rows: Iterable[Row]) -> Iterable[OperationLine]:
    for row in rows:
        if (one := row.operation) is not None:
            yield OperationLine(row.kind, row.project, row.name, one.act, one.object, one.phase, one.message, one.since)


def _make_node(row: Row, use: Use | None) -> NodeLine:
    node = row.node
    assert node is not None  # kinds that run workloads have it
    cpu, memory, disk = node.cpu, node.memory, node.disk
    if use is not None:
        cpu = msgspec.structs.replace(cpu, used=round(use.cpu / 1000, 2))
        memory, disk = (
            msgspec.structs.replace(memory, used=use.memory),
            msgspec.structs.replace(disk, used=use.disk),
        )
    return NodeLine(row.name, row.phase, row.health, row.note, cpu, memory, disk, node.workloads)


ROUTES = (
    Route(
        "GET",
        "/v1/dashboard/summary",
        summary,
        "What is wrong, what changes now, and how full the nodes are, as far as the caller may list it",
        topic=Topic("refused", "read"),
        query=("project",),
        answers=SummaryAnswer,
        names=(NodeLine, Amount, Problem, OperationLine, Queue),
    ),
)
