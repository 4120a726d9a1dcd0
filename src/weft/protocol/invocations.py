"""The messages between gateway and agents about invocations: many at a time over one connection. Pure except for ``receive``.

The connection is opened as any stream (see ``frames.py``), for claims with the verb ``invocations``; after its HELLO both sides
send messages: u32 length (big endian), then one msgpack document. In each direction they arrive in the order sent. ``id`` is
always the invocation's request id, a UUID.

An invocation begins at most once: the gateway asks another node only after ``InvocationRefused``, or if this one can't have
received it. The agent keeps each ``InvocationAnswer`` until ``Acknowledge``. After a lost connection it sends ``Underway`` first,
the list of all invocations that it still has: any other is lost, and its caller gets an error. Of several gateways each gets what
it asked for, and what those asked for that are away, since their callers may come to it.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Literal

import msgspec

from weft.contracts.driver.function import Recipe
from weft.objects.errors import InvalidInput
from weft.objects.identity import Ref

LENGTH = struct.Struct(">I")
MAX_PAYLOAD_BYTES = 6 * 1024 * 1024  # of a request, and of an answer, as Lambda has it
MAX_MESSAGE_BYTES = MAX_PAYLOAD_BYTES + 512 * 1024
VERB = "invocations"


class Define(msgspec.Struct, frozen=True, tag="define"):
    """Message to the agent: a recipe that later messages name by digest."""

    recipe: Recipe


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Message to the agent: fetch what the recipe needs, and check that one instance comes up. Answered by ``Prepared``. If the
    recipe's image is a tag: resolve it and return its digest, and start nothing."""

    id: str
    digest: str


class Invoke(msgspec.Struct, frozen=True, tag="invoke"):
    """Message to the agent: run the function once, now, or refuse immediately."""

    id: str
    digest: str
    payload: bytes
    seconds: float  # left until its deadline
    arn: str = ""  # for the code, as ``client_context``
    client_context: str = ""
    tail: bool = False  # the answer includes the end of its output
    traceparent: str = ""  # whose children the agent's spans are, for the code in its place; "": it isn't traced


class Keep(msgspec.Struct, frozen=True, tag="keep"):
    """Message to the agent: how many instances of the recipe to keep, and for how long."""

    digest: str
    idle_seconds: float  # how long an idle instance may stay
    ready: int = 0  # instances that stand ready ahead of demand


class Drop(msgspec.Struct, frozen=True, tag="drop"):
    """Message to the agent: no more invocations of this recipe will come. Pending ones run to their end."""

    digest: str


class Acknowledge(msgspec.Struct, frozen=True, tag="acknowledge"):
    """Message to the agent: the answer has arrived and may be dropped."""

    id: str


class Written(msgspec.Struct, frozen=True, tag="written"):
    """Message to the agent: all ``Printed`` up to this serial are written down and may be dropped."""

    serial: int


class LocalFunction(msgspec.Struct, frozen=True):
    """A function that a node serves at an address of its own, also while no server can be reached."""

    uid: str
    recipe: Recipe
    secret: str  # the name of the secret with the token that callers present
    most: int  # invocations at once


class ServeLocally(msgspec.Struct, frozen=True, tag="serveLocally"):
    """Message to the agent, once on each connection and when something changes: all such functions of the node."""

    functions: list[LocalFunction] = []
    unready: list[str] = []  # uids of those that the node keeps as it has them: their present code isn't ready
    secrets: dict[str, str] = {}  # of the unready ones, by uid: the names of the secrets with their tokens
    beyond: list[Ref] = []  # functions that name the node and don't fit there any more, some of them


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    """Message from the agent: progress and result of ``Prepare``."""

    id: str
    done: bool = True
    error_type: str = ""  # "": an invocation would work
    message: str = ""  # progress, while not ``done``
    seconds: float = 0.0
    image: str = ""  # the digest of a tag, if the recipe names one


class InvocationRefused(msgspec.Struct, frozen=True, tag="refused"):
    """Message from the agent: the invocation was not begun here."""

    id: str
    reason: str  # a stable token: insufficientResources, unknownRecipe, notServed, closing …
    message: str
    retry_after_seconds: float = 1.0


class InvocationAnswer(msgspec.Struct, frozen=True, tag="answer"):
    """Message from the agent: how the invocation ended."""

    id: str
    payload: bytes  # after an error: the JSON {errorType, errorMessage, …}
    error: Literal["", "Handled", "Unhandled"] = ""  # as Lambda's X-Amz-Function-Error
    error_type: str = ""  # Function.TimedOut, Function.OutOfMemory, Runtime.ExitError, Function.ResponseTooLarge …
    start: Literal["warm", "pool", "clone", "cold"] = "warm"
    init_seconds: float = 0.0  # > 0 only if an instance was started for it
    seconds: float = 0.0
    most_memory: int = 0  # bytes
    tail: bytes = b""  # the end of its output, 4 KiB at most


class Printed(msgspec.Struct, frozen=True, tag="printed"):
    """Message from the agent: output of an instance, in whole lines where possible. The agent keeps it until ``Written``, and sends
    it again on each new connection."""

    digest: str
    instance: str
    text: bytes
    id: str = ""  # the invocation that the instance served then, if any
    serial: int = 0  # grows with each that the node sends
    age: float = 0.0  # seconds since it was printed


class Count(msgspec.Struct, frozen=True, array_like=True):
    """Instances of one recipe on a node."""

    busy: int = 0
    idle: int = 0
    ready: int = 0  # ahead of demand: paused clones, and those that are starting for no invocation


class InstanceState(msgspec.Struct, frozen=True, tag="state"):
    """Message from the agent, once on each connection: its instances and its free capacity. ``InstanceStateChange`` follows it."""

    counts: dict[str, Count] = {}  # by recipe
    free_cpu: float = 0.0
    free_memory: int = 0
    isolations: dict[str, str] = {}  # "", or why the node can't run it
    recipes: list[str] = []  # prepared ones
    ready_memory: int = 0  # bytes that paused clones take; freed when an invocation needs them


class InstanceStateChange(msgspec.Struct, frozen=True, tag="change", omit_defaults=True):
    """Message from the agent, at most every 50 ms: what has changed since its last message on this connection."""

    free_cpu: float = 0.0  # the first three are always set
    free_memory: int = 0
    ready_memory: int = 0
    counts: dict[str, Count] = {}  # an empty count: no instance is left
    isolations: dict[str, str] = {}
    recipes: list[str] = []  # new ones
    dropped: list[str] = []


def diff_state(before: InstanceState, now: InstanceState) -> InstanceStateChange:
    """The changes from ``before`` to ``now``."""
    counts = {digest: count for digest, count in now.counts.items() if before.counts.get(digest) != count}
    counts |= {digest: Count() for digest in before.counts.keys() - now.counts.keys()}
    isolations = {name: why for name, why in now.isolations.items() if before.isolations.get(name) != why}
    recipes: list[str] = []
    dropped: list[str] = []
    if now.recipes != before.recipes:
        old, new = set(before.recipes), set(now.recipes)
        recipes, dropped = sorted(new - old), sorted(old - new)
    return InstanceStateChange(now.free_cpu, now.free_memory, now.ready_memory, counts, isolations, recipes, dropped)


def apply_change(before: InstanceState, change: InstanceStateChange) -> InstanceState:
    """The state after ``change``; it shares with ``before`` what didn't change."""
    counts, recipes = before.counts, before.recipes
    if change.counts:
        counts = counts | change.counts
        for digest in [digest for digest, count in change.counts.items() if count == Count()]:
            del counts[digest]
    if change.recipes or change.dropped:
        recipes = sorted({*recipes, *change.recipes} - {*change.dropped})
    isolations = before.isolations | change.isolations if change.isolations else before.isolations
    return InstanceState(counts, change.free_cpu, change.free_memory, isolations, recipes, change.ready_memory)


class Underway(msgspec.Struct, frozen=True, tag="underway"):
    """Message from the agent, first on each connection: invocations that it has begun and that aren't acknowledged."""

    ids: list[str] = []
    digests: list[str] = []  # of their recipes, by which a restarted gateway counts them to their functions


class Adrift(msgspec.Struct, frozen=True, tag="adrift"):
    """Message from the agent: invocations that it has begun for another gateway, which is away now. Their answers follow."""

    ids: list[str]
    digests: list[str]  # as in ``Underway``


ToAgent = Define | Prepare | Invoke | Keep | Drop | Acknowledge | Written | ServeLocally
FromAgent = (
    Prepared | InvocationRefused | InvocationAnswer | Printed | InstanceState | InstanceStateChange | Underway | Adrift
)

_ENCODER = msgspec.msgpack.Encoder()
_TO_AGENT: msgspec.msgpack.Decoder[ToAgent] = msgspec.msgpack.Decoder(ToAgent)
_FROM_AGENT: msgspec.msgpack.Decoder[FromAgent] = msgspec.msgpack.Decoder(FromAgent)


def encode(message: ToAgent | FromAgent) -> bytes:
    """The message's bytes with their length. Raises InvalidInput for one that is too long."""
    body = _ENCODER.encode(message)
    _check_length(len(body))
    return LENGTH.pack(len(body)) + body


def decode_to_agent(body: bytes) -> ToAgent:
    """Raises InvalidInput for anything but a message to an agent."""
    try:
        return _TO_AGENT.decode(body)
    except msgspec.MsgspecError as problem:
        raise InvalidInput(f"the message is not one to an agent: {problem}") from None


def decode_from_agent(body: bytes) -> FromAgent:
    """Raises InvalidInput for anything but a message from an agent."""
    try:
        return _FROM_AGENT.decode(body)
    except msgspec.MsgspecError as problem:
        raise InvalidInput(f"the message is not one from an agent: {problem}") from None


async def receive(reader: asyncio.StreamReader) -> bytes | None:
    """The next message's body; None at the end, clean or not. Raises InvalidInput for one that is too long."""
    try:
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        _check_length(length)
        return await reader.readexactly(length)
    except (OSError, asyncio.IncompleteReadError):
        return None


def _check_length(length: int) -> None:
    if length > MAX_MESSAGE_BYTES:
        raise InvalidInput(
            f"the message has {length} bytes; at most {MAX_MESSAGE_BYTES} are allowed", reason="tooLarge"
        )
