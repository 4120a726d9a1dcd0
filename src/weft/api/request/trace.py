"""The spans of one request: itself, its admission, its commit. A write by people is always traced, what only reads now and
then, or if its caller asked for it."""

from __future__ import annotations

import random
from contextvars import ContextVar

from weft.api.request.call import Call
from weft.api.route import Topic
from weft.contracts.clock import Clock
from weft.contracts.trace.context import (
    Context,
    Marks,
    make_mark,
    marks,
    new_span,
    new_trace,
    read_mark,
    read_traceparent,
)
from weft.contracts.trace.span import Tracer, Value
from weft.objects.envelope import Envelope

MOST_READS = 120  # of a person in a minute that are recorded; twice as many where they were slow or failed
SLOW_SECONDS = 1.0
MOST_MARKED = 100  # objects of one request whose way is followed
SERVER = 2  # the kind of a request's span
TRACEPARENT = b"traceparent"
Phase = tuple[str, float, float]


class RequestTrace:
    """One traced request; ``phases`` are its parts: name, begin, end (unix seconds)."""

    def __init__(self, context: Context, parent: str, began: float, *, writes: bool) -> None:
        self.context, self.parent, self.began, self.writes = context, parent, began, writes
        self.phases: list[Phase] = []


traced: ContextVar[RequestTrace | None] = ContextVar("weft-traced-request", default=None)


class RequestTraces:
    """Traces of the API server's requests. ``sample``: which part of what only reads is traced (0 to 1)."""

    def __init__(self, tracer: Tracer, sample: float) -> None:
        self._tracer, self._clock, self._sample = tracer, tracer.clock, sample
        self._minute, self._reads = 0, dict[str, int]()  # of each person in this minute, that were recorded

    def begin(self, call: Call, *, writes: bool) -> RequestTrace | None:
        """None: it isn't traced. A caller's ids that can't be read count as none."""
        given = call.request.header(TRACEPARENT)
        parent = read_traceparent(given) if given else None
        if not writes and (parent is None or not parent.sampled):
            if self._sample <= 0 or random.random() >= self._sample:  # noqa: S311 (a sample, no secret)
                return None
        now = self._clock.now()
        context = Context(parent.trace if parent is not None else new_trace(), new_span())
        request = RequestTrace(context, parent.span if parent is not None else "", now, writes=writes)
        traced.set(request)
        if writes:
            marks.set(Marks(make_mark(context, now), MOST_MARKED))
        return request

    def _may_fill(self, person: str, seconds: float, status: int) -> bool:
        """Whether a read is recorded: a person who has every read traced would push out what others did."""
        minute = int(self._clock.elapsed() / 60)
        if minute != self._minute:
            self._minute = minute
            self._reads.clear()
        count = self._reads.get(person, 0)
        most = MOST_READS if seconds < SLOW_SECONDS and status < 500 else 2 * MOST_READS
        if count >= most:
            return False
        self._reads[person] = count + 1
        return True

    def note_report(self, allocation: Envelope, state: str, began: float) -> None:
        """A node has reported that a traced workload's place is in another ``state`` now: that took from ``began`` (unix
        seconds)."""
        now = self._clock.now()
        context = read_mark(allocation.trace, now)
        if context is not None:
            self._tracer.record(context, f"report: {state}", began, now, about=name_owner(allocation))

    def end(self, request: RequestTrace, call: Call, topic: Topic, status: int) -> None:
        """Record it, unless no person made it: a stranger fills nothing here."""
        actor = call.known_actor
        if actor is None or actor.kind != "person" or call.is_dry_run:
            return
        if not request.writes and not self._may_fill(actor.name, self._clock.now() - request.began, status):
            return
        about = f"{topic.kind or 'request'}/{topic.project or '-'}/{topic.name or '-'}"
        if call.changed:
            first = call.changed[0].envelope
            about = f"{first.kind}/{first.project or '-'}/{first.name}"
        attributes: dict[str, Value] = {
            "http.request.method": call.method,
            "http.response.status_code": status,
            "weft.actor": actor.name,
            "weft.request": call.request_id,
        }
        if len(call.changed) > 1:
            attributes["weft.objects"] = len(call.changed)
        error = call.problem.message.split("\n", 1)[0] if call.problem is not None else ""
        make, context = self._tracer.make, request.context
        name = f"{call.method} {call.shown_path}"
        spans = [make(context, phase, begin, end, about=about) for phase, begin, end in request.phases]
        above = Context(context.trace, request.parent)
        now = self._clock.now()
        spans.append(
            make(
                above,
                name,
                request.began,
                now,
                id=context.span,
                about=about,
                error=error,
                attributes=attributes,
                kind=SERVER,
            )
        )
        self._tracer.put(*spans)


def name_owner(allocation: Envelope) -> str:
    """The workload that an allocation belongs to, as spans name it."""
    of = allocation.owner
    return f"{of.kind}/{of.project or '-'}/{of.name}" if of is not None else ""


def note_phase(name: str, began: float, clock: Clock) -> float:
    """A part of the present request is over, if that is traced. Returns the time now (unix seconds)."""
    request = traced.get()
    if request is None:
        return 0.0
    now = clock.now()
    request.phases.append((name, began or request.began, now))
    return now
