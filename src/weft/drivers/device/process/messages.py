"""Messages between a gateway and a driver in a process of its own: JSON behind four bytes with its length."""

from __future__ import annotations

import asyncio

import msgspec

from weft.contracts.device import AnnouncedDevice, Thing, Value
from weft.objects.errors import DriverFailed, InvalidInput, NotFound, TimedOut, Unavailable, WeftError, shorten

MOST_BYTES = 1 << 20  # of a message
_ERRORS: dict[str, type[WeftError]] = {
    one.__name__: one for one in (InvalidInput, NotFound, TimedOut, Unavailable, DriverFailed)
}


class Call(msgspec.Struct, tag="call", omit_defaults=True):
    """A call to the driver: ``do`` is a method of its contract. ``number`` is in the answer."""

    number: int
    do: str
    thing: Thing | None = None
    uid: str = ""
    id: str = ""
    names: list[str] = []
    values: dict[str, Value] = {}
    seconds: float = 0.0


class DriverAnswer(msgspec.Struct, tag="answer", omit_defaults=True):
    """An answer to the gateway. ``error``: the name of the exception that the call raised, with its words."""

    number: int
    words: str = ""
    values: dict[str, Value] = {}
    found: list[AnnouncedDevice] = []
    error: str = ""
    hint: str = ""


class Note(msgspec.Struct, tag="note", omit_defaults=True):
    """A note to the gateway: ``about`` which of its listener's methods; ``name``: of what is refused."""

    about: str
    uid: str = ""
    values: dict[str, Value] = {}
    words: str = ""
    name: str = ""


FromDriver = DriverAnswer | Note
read_call = msgspec.json.Decoder(Call).decode
read_from_driver = msgspec.json.Decoder(FromDriver).decode


def frame(message: Call | DriverAnswer | Note) -> bytes:
    body = msgspec.json.encode(message)
    return len(body).to_bytes(4, "big") + body


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next message; b"" at the end, and where the other side doesn't keep to the form."""
    try:
        size = int.from_bytes(await reader.readexactly(4), "big")
        return await reader.readexactly(size) if size <= MOST_BYTES else b""
    except (asyncio.IncompleteReadError, OSError):
        return b""


def answer_error(number: int, failure: Exception) -> DriverAnswer:
    if not isinstance(failure, WeftError):
        return DriverAnswer(number, f"the driver failed: {type(failure).__name__}", error="DriverFailed")
    name = next((name for name, one in _ERRORS.items() if isinstance(failure, one)), "DriverFailed")
    return DriverAnswer(number, shorten(failure.message, 500), error=name, hint=shorten(failure.hint or "", 200))


def raise_answered(answer: DriverAnswer) -> None:
    if answer.error:
        raise _ERRORS.get(answer.error, DriverFailed)(answer.words, hint=answer.hint)
