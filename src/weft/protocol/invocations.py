"""What gateway and agents say to each other of invocations: many at a time over one connection. Pure but for ``receive``.

The agent dials it as any stream (see ``frames.py``), for claims with the verb ``invocations``; after its HELLO both sides send
messages: u32 length (big endian), then one msgpack document. In each direction they arrive in the order sent. ``id`` is the
invocation's request id, a UUID, everywhere.

An invocation was begun at most once: the gateway asks another node only after ``Refused``, or if this one can't have heard of
it. Each
``Answer`` is kept by the agent until ``Acknowledge``; when the connection is lost the agent dials anew and first says, in
``Underway``, what it
still has: whatever isn't in it is lost, and its caller is told so.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Literal

import msgspec

from weft.contracts.driver.function import Recipe
from weft.objects.errors import InvalidInput

LENGTH = struct.Struct(">I")
MAX_PAYLOAD_BYTES = 6 * 1024 * 1024  # of a request, and of an answer, as Lambda has it
MAX_MESSAGE_BYTES = MAX_PAYLOAD_BYTES + 512 * 1024
VERB = "invocations"


class Define(msgspec.Struct, frozen=True, tag="tell"):
    """To the agent: a recipe that messages after this one name by digest."""

    recipe: Recipe


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """To the agent: fetch what the recipe needs, and see that one instance comes up. Answered by ``Prepared``. For one whose image
    is a tag: fetch what that means now, and tell its digest; nothing of it comes up."""

    id: str
    digest: str


class Invoke(msgspec.Struct, frozen=True, tag="invoke"):
    """To the agent: run it once, now, or refuse at once. ``seconds`` is what is left until its deadline; ``tail`` asks for the
    end of what it
    printed. ``arn`` and ``client_context`` are handed to the code as they are."""

    id: str
    digest: str
    payload: bytes
    seconds: float
    arn: str = ""
    client_context: str = ""
    tail: bool = False


class Keep(msgspec.Struct, frozen=True, tag="keep"):
    """To the agent: how long an idle instance of the recipe may stay (``idle_seconds``), and how many should stand ready ahead
    of demand."""

    digest: str
    idle_seconds: float
    ready: int = 0


class Drop(msgspec.Struct, frozen=True, tag="drop"):
    """To the agent: no more invocations of this recipe will come. Those under way end well."""

    digest: str


class Acknowledge(msgspec.Struct, frozen=True, tag="heard"):
    """To the agent: the answer has arrived and can be let go of."""

    id: str


class Written(msgspec.Struct, frozen=True, tag="written"):
    """To the agent: what it told as ``Printed``, up to the one with that number, is written down and can be let go of."""

    serial: int


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    """From the agent. ``error_type`` empty: an invocation would work. ``message`` tells how far it is while ``done`` is false.
    ``image`` is the digest that a tag means, if that was asked."""

    id: str
    done: bool = True
    error_type: str = ""
    message: str = ""
    seconds: float = 0.0
    image: str = ""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """From the agent: it was not begun here. ``reason`` is a stable token: insufficientResources, unknownRecipe, notServed,
    closing …"""

    id: str
    reason: str
    message: str
    retry_after_seconds: float = 1.0


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """From the agent: how it ended. ``error`` as Lambda's X-Amz-Function-Error: empty; Unhandled, by the runtime or by weft
    (``error_type`` Function.TimedOut, Function.OutOfMemory, Runtime.ExitError, Function.ResponseTooLarge, …); ``payload`` is
    then the JSON {errorType, errorMessage, …}. Seconds: ``init_seconds`` > 0 only if an instance was started for it (``start``
    says how). ``most_memory`` in bytes; ``tail`` is the last 4 KiB at most of what it printed."""

    id: str
    payload: bytes
    error: Literal["", "Handled", "Unhandled"] = ""
    error_type: str = ""
    start: Literal["warm", "pool", "clone", "cold"] = "warm"
    init_seconds: float = 0.0
    seconds: float = 0.0
    most_memory: int = 0
    tail: bytes = b""


class Printed(msgspec.Struct, frozen=True, tag="printed"):
    """From the agent: what an instance printed, in whole lines as far as they come; ``id`` is the invocation it served then,
    if any. ``serial`` grows with each that its node tells; it is kept until ``Written``, and told again on each new connection,
    ``age`` seconds after it was printed."""

    digest: str
    instance: str
    text: bytes
    id: str = ""
    serial: int = 0
    age: float = 0.0


class Count(msgspec.Struct, frozen=True, array_like=True):
    """Instances of one recipe on a node: at work, idle, ready ahead of demand (paused copies, and those that come up for
    nobody)."""

    busy: int = 0
    idle: int = 0
    ready: int = 0


class InstanceState(msgspec.Struct, frozen=True, tag="state"):
    """From the agent, once on each connection: its instances by recipe, and what capacity is left for more. ``isolations`` are
    those that it runs, with why not for the others; ``recipes`` those that it has prepared; ``ready_memory`` bytes that paused
    copies take, which go when an invocation needs the capacity. ``InstanceStateChange`` follows it."""

    counts: dict[str, Count] = {}
    free_cpu: float = 0.0
    free_memory: int = 0
    isolations: dict[str, str] = {}
    recipes: list[str] = []
    ready_memory: int = 0


class InstanceStateChange(msgspec.Struct, frozen=True, tag="change", omit_defaults=True):
    """From the agent, whenever its standing changes (at most every 50 ms): what is another than it told before on this
    connection. A count of nothing: no instance is left. ``recipes`` are new, ``dropped`` are gone; the figures are told always."""

    free_cpu: float = 0.0
    free_memory: int = 0
    ready_memory: int = 0
    counts: dict[str, Count] = {}
    isolations: dict[str, str] = {}
    recipes: list[str] = []
    dropped: list[str] = []


def diff_state(before: InstanceState, now: InstanceState) -> InstanceStateChange:
    """What changed since ``before``."""
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
    """The state after it; it shares with ``before`` what didn't change."""
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
    """From the agent, first on each connection: ids that it has begun and not heard to have arrived, and of each the digest of
    its recipe, so that a gateway that begins anew counts them to their functions."""

    ids: list[str] = []
    digests: list[str] = []


ToAgent = Define | Prepare | Invoke | Keep | Drop | Acknowledge | Written
FromAgent = Prepared | Refused | Answer | Printed | InstanceState | InstanceStateChange | Underway

_ENCODER = msgspec.msgpack.Encoder()
_TO_AGENT: msgspec.msgpack.Decoder[ToAgent] = msgspec.msgpack.Decoder(ToAgent)
_FROM_AGENT: msgspec.msgpack.Decoder[FromAgent] = msgspec.msgpack.Decoder(FromAgent)


def encode(message: ToAgent | FromAgent) -> bytes:
    """Its bytes, length and all. Raises InvalidInput for one that is too long."""
    body = _ENCODER.encode(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise InvalidInput(f"a message of {len(body)} bytes: at most {MAX_MESSAGE_BYTES}", reason="tooLarge")
    return LENGTH.pack(len(body)) + body


def decode_to_agent(body: bytes) -> ToAgent:
    """Raises InvalidInput for what is no message to an agent."""
    try:
        return _TO_AGENT.decode(body)
    except msgspec.MsgspecError as problem:
        raise InvalidInput(f"a message that isn't understood: {problem}") from None


def decode_from_agent(body: bytes) -> FromAgent:
    """Raises InvalidInput for what is no message from an agent."""
    try:
        return _FROM_AGENT.decode(body)
    except msgspec.MsgspecError as problem:
        raise InvalidInput(f"a message that isn't understood: {problem}") from None


async def receive(reader: asyncio.StreamReader) -> bytes | None:
    """The next message's body; None at the end, clean or not. Raises InvalidInput for one that is too long."""
    try:
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        if length > MAX_MESSAGE_BYTES:
            raise InvalidInput(f"a message of {length} bytes: at most {MAX_MESSAGE_BYTES}", reason="tooLarge")
        return await reader.readexactly(length)
    except (OSError, asyncio.IncompleteReadError):
        return None
