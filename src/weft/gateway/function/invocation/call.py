"""One invocation as its callers and the dispatcher see it: the call and its outcome. Pure."""

from __future__ import annotations

import json
from typing import Any, Protocol

import msgspec

from weft.gateway.function.definition.catalogue import Function
from weft.objects.errors import InvalidInput
from weft.protocol.invocations import InvocationAnswer

MOST_CONTEXT_BYTES = 3583 * 3 // 4  # Lambda bounds its base64 text


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """Run ``name`` of ``project`` once.

    ``again``: an earlier request may have begun it under this id, perhaps through a former gateway; then it isn't begun again, and
    has the outcome of that one."""

    id: str  # the request id: a UUID that the caller draws
    project: str
    name: str
    qualifier: str = ""  # a version's number or an alias; "" or $LATEST: the newest spec
    payload: bytes = b""
    seconds: float | None = None  # the caller waits so long at most; None: as long as the function may take
    node: str = ""  # where the caller is, if that is known
    tail: bool = False  # the answer includes the end of the output
    client_context: str = ""  # a JSON object, as read_client_context returns it
    again: bool = False
    traceparent: str = ""  # the caller's, as it came


class InvocationOutcome(InvocationAnswer, frozen=True, kw_only=True):
    """The function's answer, the ``version`` ($LATEST, 3) and the node."""

    version: str = "$LATEST"
    node: str = ""


class Dispatches(Protocol):
    """The dispatcher, as its callers see it."""

    async def know(self) -> None:
        """Wait a moment until a gateway that has just started has read the functions. Raises Unavailable."""

    async def invoke(self, call: Call, function: Function | None = None) -> InvocationOutcome:
        """Run it at most once; ``function`` is the one that it names, if the caller has found it already.

        Raises, by stable reason: NotFound (``functionNotFound``); Unavailable, not begun:
        ``tooManyRequests`` (max_concurrent is reached), ``insufficientResources`` or ``noAvailableAgents`` (no node has
        capacity), ``functionNotReady``; Unavailable ``invocationLost``: it may have run, and is not run again."""


class AcceptsEvents(Protocol):
    """The queue of events, for the parts that accept asynchronous invocations."""

    async def accept(self, call: Call) -> None:
        """Keep the event until it has run; durable when this returns. Raises TooLarge, Throttled, Unavailable."""


def read_client_context(text: str | bytes, field: str) -> str:
    """A caller's context as the JSON object, in one line of ASCII, that the Runtime API hands to the code: runtimes parse the
    header ``Lambda-Runtime-Client-Context`` as JSON. Raises InvalidInput."""
    try:
        context = msgspec.json.decode(text, type=dict[str, Any]) if len(text) <= MOST_CONTEXT_BYTES else None
        written = json.dumps(context, separators=(",", ":"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        context, written = None, ""
    if context is None:
        raise InvalidInput(
            f"{field} must be a JSON object of at most {MOST_CONTEXT_BYTES} bytes",
            reason="invalidPayload",
            field=field,
            hint='write, for example, {"custom": {"tenant": "lab"}}',
        )
    return written
