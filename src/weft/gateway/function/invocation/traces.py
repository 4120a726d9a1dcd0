"""The traces of invocations: a sample of them, and those whose callers trace theirs. Without one an invocation costs a look at
a number."""

from __future__ import annotations

import random

from weft.contracts.clock import Clock
from weft.contracts.trace.context import Context, new_span, new_trace, read_traceparent, write_traceparent
from weft.contracts.trace.span import Tracer, Value

CLIENT = 3  # the kind of a span that another machine answers


class InvocationTrace:
    """One invocation. ``carried``: the context for the node, as its ``traceparent``; it may be of a caller who doesn't sample."""

    def __init__(self, tracer: Tracer, above: Context, root: bool, about: str) -> None:
        self._tracer, self._above, self._about = tracer, above, about
        self._began = tracer.clock.now()
        self._root = Context(above.trace, new_span())
        self._parent = "" if root else above.span
        self._dispatch = Context(above.trace, new_span())
        self._sent: list[tuple[str, float]] = []
        self.carried = write_traceparent(self._dispatch)

    def note_sent(self, node: str) -> None:
        """It goes to this node now: after the first, because the one before refused it."""
        self._sent.append((node, self._tracer.clock.now()))

    def end(self, error: str, start: str = "") -> None:
        record, now = self._tracer.record, self._tracer.clock.now()
        first = self._sent[0][1] if self._sent else now
        if first - self._began >= 0.001:
            record(self._root, "queue", self._began, first, about=self._about)
        for (node, begin), (_, end) in zip(self._sent, self._sent[1:], strict=False):
            record(self._dispatch, f"refused by {node}", begin, end, about=self._about)
        if self._sent:
            node = self._sent[-1][0]
            record(
                self._root,
                f"dispatch to {node}",
                first,
                now,
                id=self._dispatch.span,
                about=self._about,
                attributes={"weft.node": node},
                kind=CLIENT,
            )
        attributes: dict[str, Value] = {"weft.start": start} if start else {}
        above = Context(self._above.trace, self._parent)
        record(
            above,
            "invoke",
            self._began,
            now,
            id=self._root.span,
            about=self._about,
            error=error,
            attributes=attributes,
            kind=2,
        )


class InvocationTraces:
    """Traces of a gateway's invocations. ``sample``: which part of the invocations is traced (0 to 1)."""

    def __init__(self, tracer: Tracer, sample: float) -> None:
        self._tracer, self._sample = tracer, sample

    @property
    def clock(self) -> Clock:
        return self._tracer.clock

    def begin(self, traceparent: str, about: str) -> InvocationTrace | None:
        """None: it isn't traced. ``traceparent`` is the caller's, as it came."""
        given = read_traceparent(traceparent) if traceparent else None
        if given is not None and given.sampled:
            return InvocationTrace(self._tracer, given, False, about)
        if self._sample > 0 and random.random() < self._sample:  # noqa: S311 (a sample, no secret)
            return InvocationTrace(self._tracer, given or Context(new_trace(), ""), given is None, about)
        return None
