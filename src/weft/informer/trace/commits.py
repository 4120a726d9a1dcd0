"""The traces of controllers and scheduler: what was decided about an object that people have just written, and when its state
was reached."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar

import msgspec

from weft.contracts.trace.context import Context, read_ended, read_mark, read_time
from weft.contracts.trace.span import Tracer, Value
from weft.informer.commit import Commit
from weft.informer.view import Item, View
from weft.kinds.operation import read_operation
from weft.kinds.registry import is_workload
from weft.objects.envelope import Envelope, encode_envelope

MOST_FOLLOWED = 20_000  # objects
LATE_SECONDS = 60.0  # after the write; what takes longer is followed by then, for its progress is committed
READY = "Ready"
_RESTS = ("Stopped", "Suspended", "Succeeded", "Failed")


class Work(msgspec.Struct, frozen=True):
    """Work of this task: by whom, and since when (unix seconds) it has planned what it commits next."""

    name: str
    since: float = 0.0


work: ContextVar[Work | None] = ContextVar("weft-work", default=None)


class CommitTraces:
    """Traces of one process's commits. An object is followed from the write that people made until it is ready, or gone."""

    def __init__(self, tracer: Tracer, view: View) -> None:
        self._tracer, self._view = tracer, view
        self._followed: dict[
            str, tuple[str, str]
        ] = {}  # by key: its mark, and what it is; "" once its state was reached

    def note(self, commits: Sequence[Commit], began: float, seconds: float) -> None:
        """These are stored: their commit began at ``began`` (unix seconds) and took so long. The view has them."""
        doing = work.get()
        for commit in commits:
            item = self._view.get(commit.key)
            if item is None:
                self._end(commit.key, doing, began, seconds)
            elif item.envelope.trace is not msgspec.UNSET:
                self._follow(item, item.envelope.trace, commit, doing, began, seconds)

    def _follow(self, item: Item, mark: str, commit: Commit, doing: Work | None, began: float, seconds: float) -> None:
        former, what = self._followed.get(item.key, ("", ""))
        now, ended = began + seconds, read_ended(mark)
        context = ended or read_mark(mark, now)
        if context is None or (former == mark and not what):
            return
        if ended is not None and (not what or read_mark(former, now) != ended):
            return  # it was done before this process followed it
        of = item.envelope
        if not (what or is_workload(of.kind)) and now - read_time(mark) > LATE_SECONDS and _is_over(of):
            self._remember(item.key, mark, "")  # an earlier process saw the end of it: this commit has another cause
            return
        about = f"{of.kind}/{of.project or '-'}/{of.name}"
        self._remember(item.key, mark, about)
        self._record(context, about, commit, doing, began, now)
        if item.deleting:
            return
        ready = of.condition(READY)
        if ready is not None and is_reached(of):
            self._tracer.record(context, f"ready: {ready.reason}", now, now, about=about)
            self._remember(item.key, mark, "")
        elif not is_workload(of.kind) and _is_over(of):
            self._remember(item.key, mark, "")

    def _record(
        self, context: Context, about: str, commit: Commit, doing: Work | None, began: float, now: float
    ) -> None:
        since = min(doing.since, began) if doing is not None and doing.since else began
        if commit.planned_at:
            since = min(since, commit.planned_at)
        attributes: dict[str, Value] = {}
        if commit.events:
            attributes["weft.event"] = commit.events[0].message[:200]
        self._tracer.record(
            context, doing.name if doing is not None else "commit", since, now, about=about, attributes=attributes
        )

    def _end(self, key: str, doing: Work | None, began: float, seconds: float) -> None:
        mark, about = self._followed.pop(key, ("", ""))
        context = read_mark(mark, began + seconds) if mark and about else None
        if context is not None:
            name = doing.name if doing is not None else "commit"
            self._tracer.record(context, name, began, began + seconds, about=about)
            self._tracer.record(context, "Removed", began + seconds, began + seconds, about=about)

    def _remember(self, key: str, mark: str, about: str) -> None:
        self._followed.pop(key, None)
        self._followed[key] = (mark, about)
        if len(self._followed) > MOST_FOLLOWED:
            del self._followed[next(iter(self._followed))]


def _is_over(of: Envelope) -> bool:
    """Whether what people asked of an object is done, or has failed."""
    try:
        return read_operation(msgspec.json.decode(encode_envelope(of))).state != "running"
    except Exception:  # of another version of weft, maybe: what was committed stays committed
        return True


def is_reached(workload: Envelope) -> bool:
    """Whether the workload is as people want it, or won't be."""
    ready, current = workload.condition(READY), workload.condition("Current")
    if (
        ready is None
        or ready.generation != workload.generation
        or (ready.status != "True" and ready.reason not in _RESTS)
    ):
        return False
    return current is None or current.status != "False"
