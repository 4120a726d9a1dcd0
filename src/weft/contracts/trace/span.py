"""Spans, which say what took how long, and how a process records its own. A span costs about a microsecond until it is written, and
nothing where nobody asked for a trace."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.trace.context import Context, new_span

MOST_TEXT = 300  # characters of a name, an error, an attribute
MOST_ATTRIBUTES = 32
Value = str | int | float | bool
_NONE: dict[str, Value] = {}


class Span(msgspec.Struct, frozen=True, array_like=True):
    """One thing that was done. Times in unix nanoseconds. ``about``: KIND/PROJECT/NAME, - for no project."""

    trace: str
    id: str
    parent: str  # "": none
    name: str
    begin: int
    end: int  # 0: not over
    process: str  # api, controllers, gateway, node/NAME
    about: str = ""
    error: str = ""
    attributes: dict[str, Value] = {}
    kind: int = 1  # as OTLP numbers them: 1 internal, 2 server, 3 client

    @property
    def project(self) -> str | None:
        """None: it belongs to no project."""
        parts = self.about.split("/", 2)
        return parts[1] if len(parts) == 3 and parts[1] != "-" else None


class Tracer:
    """The tracer of one process or, on a node, of its agent. ``put`` takes spans; it never waits and never raises."""

    def __init__(self, process: str, clock: Clock, put: Callable[..., None]) -> None:
        self.process, self.clock, self.put = process, clock, put

    def record(
        self,
        context: Context,
        name: str,
        begin: float,
        end: float,
        *,
        id: str = "",
        about: str = "",
        error: str = "",
        attributes: dict[str, Value] | None = None,
        kind: int = 1,
    ) -> str:
        """A span under ``context`` of these times (unix seconds; ``end`` 0: not over yet). Returns its id."""
        one = self.make(
            context, name, begin, end, id=id, about=about, error=error, attributes=attributes or {}, kind=kind
        )
        self.put(one)
        return one.id

    def make(
        self,
        context: Context,
        name: str,
        begin: float,
        end: float,
        *,
        id: str = "",
        about: str,
        error: str = "",
        attributes: dict[str, Value] = _NONE,
        kind: int = 1,
    ) -> Span:
        """The same, to ``put`` it with others: several at once cost little more than one."""
        begins = int(begin * 1e9)
        return Span(
            context.trace,
            id or new_span(),
            context.span,
            name[:MOST_TEXT],
            begins,
            max(int(end * 1e9), begins) if end else 0,
            self.process,
            about,
            error[:MOST_TEXT],
            attributes,
            kind,
        )


class Active(msgspec.Struct, frozen=True):
    """The work that is done now, and who does it."""

    tracer: Tracer
    context: Context
    about: str


active: ContextVar[Active | None] = ContextVar("weft-active-span", default=None)


class span:
    """A part of what is being done, as its child: ``with span("qemu", machine="q35"): …``. Nothing, if that isn't traced. An
    error that passes through is the span's."""

    def __init__(self, name: str, **attributes: Value) -> None:
        self.name, self.attributes = name, attributes
        self._under: Active | None = None
        self._token: Token[Active | None] | None = None

    def __enter__(self) -> span:
        under = self._under = active.get()
        if under is not None:
            self._id, self._began = new_span(), under.tracer.clock.now()
            context = Context(under.context.trace, self._id)
            self._token = active.set(Active(under.tracer, context, under.about))
        return self

    def __exit__(
        self, type_: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        under = self._under
        if under is None or self._token is None:
            return
        active.reset(self._token)
        under.tracer.record(
            under.context,
            self.name,
            self._began,
            under.tracer.clock.now(),
            id=self._id,
            about=under.about,
            error=describe(problem),
            attributes=self.attributes,
        )


class Phases:
    """Work that goes on in phases, also after the step that began it is over: each is a span, a child of what was active at
    first."""

    def __init__(self) -> None:
        self._under = active.get()
        self._name = ""
        self._began = 0.0

    def enter(self, name: str, error: str = "") -> None:
        """The phase before is over, and ``name`` begins; "": nothing does. ``error``: why the one before failed."""
        under = self._under
        if under is None:
            return
        now = under.tracer.clock.now()
        if self._name:
            under.tracer.record(under.context, self._name, self._began, now, about=under.about, error=error)
        self._name, self._began = name, now

    def note(self, name: str, seconds: float) -> None:
        """Something that took so long until now."""
        if self._under is not None:
            now = self._under.tracer.clock.now()
            self._under.tracer.record(self._under.context, name, now - seconds, now, about=self._under.about)


def describe(problem: BaseException | None) -> str:
    """Describe the problem in one line, for a span; "": no error."""
    if problem is None:
        return ""
    message: Any = getattr(problem, "message", "") or str(problem) or type(problem).__name__
    return str(message).split("\n", 1)[0]
