"""One invocation as its callers and the dispatcher see it: the call and its outcome. Pure."""

from __future__ import annotations

from typing import Protocol

import msgspec

from weft.gateway.function.definition.catalogue import Function
from weft.protocol.invocations import Answer


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """Run ``name`` of ``project`` once. ``qualifier`` is a version's number or an alias; empty or $LATEST: the newest spec.

    ``id`` is the request id, a UUID that the caller draws. ``seconds`` is how long its caller waits at most (None: as long as
    the function may take). ``node`` is where the caller is, if that is known. ``tail`` asks for the end of
    what it prints, ``client_context`` is handed to the code as it is (base64, as it came). ``again``: it may have been begun under
    this id before, perhaps through a gateway that is no more; then it isn't begun anew, and what that comes to is its outcome."""

    id: str
    project: str
    name: str
    qualifier: str = ""
    payload: bytes = b""
    seconds: float | None = None
    node: str = ""
    tail: bool = False
    client_context: str = ""
    again: bool = False


class Outcome(Answer, frozen=True, kw_only=True):
    """What the function answered, of which ``version`` ($LATEST, 3), on which node."""

    version: str = "$LATEST"
    node: str = ""


class Dispatches(Protocol):
    """The dispatcher, as its callers see it."""

    async def know(self) -> None:
        """Wait a moment for what a gateway that has just begun has yet to read. Raises Unavailable."""

    async def invoke(self, call: Call, function: Function | None = None) -> Outcome:
        """Run it at most once; ``function`` is the one that it names, if that was found already.

        Raises, by stable reason: NotFound (``functionNotFound``); Unavailable, not begun:
        ``tooManyRequests`` (max_concurrent is reached), ``insufficientResources`` or ``noAvailableAgents`` (no node has
        capacity), ``functionNotReady``; Unavailable ``invocationLost``: it may have run, and is not run again."""


class AcceptsEvents(Protocol):
    """The queue of events, as those see it who take asynchronous invocations."""

    async def accept(self, call: Call) -> None:
        """Keep it until it was run; durable when this returns. Raises TooLarge, Throttled, Unavailable."""
