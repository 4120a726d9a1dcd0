"""The agent's spans of an invocation: that it serves it, the start of an instance for it, and the run of the code."""

from __future__ import annotations

import msgspec

from weft.contracts.trace.context import Context, new_span, read_traceparent, write_traceparent
from weft.contracts.trace.span import Tracer, Value
from weft.protocol.invocations import InvocationAnswer, InvocationRefused, Invoke

MOST_TRACED = 10_000  # at the same time
SERVER = 2  # the kind of a span that answers another machine


class _Traced(msgspec.Struct, frozen=True):
    above: Context
    serving: str
    running: str
    about: str
    began: float  # unix seconds


class ServedTraces:
    """Traces of the invocations that a node serves."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._traced: dict[str, _Traced] = {}

    def begin(self, call: Invoke) -> Invoke:
        """The invocation for the code, whose spans are children of its run."""
        above = read_traceparent(call.traceparent)
        if above is None or not above.sampled or len(self._traced) >= MOST_TRACED:
            return call
        project, _, name = call.arn.removeprefix("arn:weft:lambda:weft:").partition(":function:")
        about = f"function/{project or '-'}/{name.partition(':')[0]}"
        one = _Traced(above, new_span(), new_span(), about, self._tracer.clock.now())
        self._traced[call.id] = one
        return msgspec.structs.replace(call, traceparent=write_traceparent(Context(above.trace, one.running)))

    def end(self, message: InvocationAnswer | InvocationRefused) -> None:
        one = self._traced.pop(message.id, None)
        if one is None:
            return
        record, now = self._tracer.record, self._tracer.clock.now()
        within = Context(one.above.trace, one.serving)
        error, attributes = "", dict[str, Value]()
        if isinstance(message, InvocationAnswer):
            error, attributes = message.error_type, {"weft.start": message.start}
            began = max(one.began, now - message.seconds)
            if message.init_seconds:
                up = min(began, one.began + message.init_seconds)
                record(within, f"start instance ({message.start})", one.began, up, about=one.about)
            record(within, "run", began, now, id=one.running, about=one.about, error=error)
        else:
            error = message.message
        record(
            one.above,
            "serve",
            one.began,
            now,
            id=one.serving,
            about=one.about,
            error=error,
            attributes=attributes,
            kind=SERVER,
        )
