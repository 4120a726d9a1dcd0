"""The frames between host and guest agent, as values: what ``images/agent/agent.c`` describes, seen from the host.

Pure: bytes in, frames out. Before the guest has answered our HELLO everything is noise (the rest of a frame to a
predecessor that was killed in the middle of it), and the random nonce is what ends the noise.

Root in the guest writes these bytes: nothing is kept of them but what a frame of ours may hold, and no word of
theirs is longer than WORD_LETTERS.
"""

from __future__ import annotations

import re
import struct
from typing import Literal, NamedTuple

from weft.contracts.driver.runtime import ProcessFacts

PAYLOAD_BYTES = 16384
WINDOW_BYTES = 262144
REQUEST_BYTES = 2 << 20
NONCE_BYTES = 16
NAME_BYTES = 16
WORD_LETTERS = 64  # of a guest's own words: an id has 36, a host name 64
MOST_CODE = 255
MAGIC = b"weftga\r\n"
END_MARK = 0xA5
STDIN, STDOUT, STDERR = 0, 1, 2

_HEADER = struct.Struct("<BBHI")
_OVERHEAD = _HEADER.size + 1
_ARRIVED = struct.Struct("<QQ")
_PROCESS = struct.Struct("<II")
_STANDING = struct.Struct("<QQB")
_NUMBER = struct.Struct("<I")
_ZEROS = re.compile(rb"\0*")


class Frame(NamedTuple):
    """``kind`` is one letter, see ``images/agent/agent.c``."""

    kind: str
    channel: int
    session: int
    payload: bytes


class Hello(NamedTuple):
    """A guest's words about itself."""

    version: int
    boot_id: str
    hostname: str
    run_id: str = ""  # of its agent: sessions with names live as long; "": it knows no names


class GuestStanding(NamedTuple):
    """The standing of the guest's agent with a session that was named to it: its stdin's bytes that have arrived there, those that
    the command has taken, and whether its end has come."""

    how: Literal["new", "goes on", "gone"]
    received: int = 0
    taken: int = 0
    ended: bool = False


class OutOfStep(Exception):
    """The stream is not where a frame begins: say HELLO again."""


def encode_frame(kind: str, *, channel: int = 0, session: int = 0, payload: bytes = b"") -> bytes:
    return b"%b%b\xa5" % (_HEADER.pack(ord(kind), channel, len(payload), session), payload)


def encode_hello(nonce: bytes) -> bytes:
    """Zeros that end whatever frame a predecessor left unfinished, then HELLO; once more for an agent that knows no names."""
    hellos = [encode_frame("H", channel=channel, payload=MAGIC + nonce) for channel in (1, 0)]
    return bytes(_OVERHEAD + PAYLOAD_BYTES) + b"".join(hellos)


def encode_name(session: int, name: bytes, *, stdout: int = 0, stderr: int = 0, resume: bool = False) -> bytes:
    """Give a session its name, before its request; ``resume``: go on with the one that has it, of which so many bytes have
    arrived, or begin it if there never was one."""
    payload = name + _ARRIVED.pack(stdout, stderr)
    return encode_frame("N", channel=int(resume), session=session, payload=payload)


def decode_standing(frame: Frame) -> GuestStanding:
    """The guest's answer to a name; one that can't be is that it knows the name no more."""
    if frame.channel not in (0, 1) or len(frame.payload) != _STANDING.size:
        return GuestStanding("gone")
    received, taken, ended = _STANDING.unpack(frame.payload)
    if not 0 <= received - taken <= WINDOW_BYTES:
        return GuestStanding("gone")
    return GuestStanding("goes on", received, taken, bool(ended)) if frame.channel else GuestStanding("new")


def decode_number(frame: Frame) -> int:
    """The one number that it holds. Raises OutOfStep if it holds anything else."""
    if len(frame.payload) != _NUMBER.size:
        raise OutOfStep
    return int(_NUMBER.unpack(frame.payload)[0])


def decode_word(text: bytes) -> str:
    """Decode what a guest calls itself, or its boot: printable ASCII of it, WORD_LETTERS at most."""
    return "".join(chr(letter) for letter in text[:WORD_LETTERS] if 0x20 <= letter < 0x7F).strip()


def decode_process(frame: Frame) -> ProcessFacts | None:
    """Decode what the guest says of its process; None if it makes no sense."""
    if frame.channel not in (0, 1) or len(frame.payload) != _PROCESS.size:
        return None
    ends, code = _PROCESS.unpack(frame.payload)
    if code > MOST_CODE:
        return None
    return ProcessFacts(frame.channel == 0, ends, code if ends else None)


def encode_request(session: int, argv: list[str], env: dict[str, str], folder: str, *, tty: bool) -> list[bytes]:
    """The frames that start a command. Raises ValueError if a string can't be passed to a program (a NUL in it)."""
    words = [folder, str(len(argv)), *argv, *(f"{name}={value}" for name, value in env.items())]
    if not argv or any("\0" in word for word in words):
        raise ValueError("a command needs a program, and no string of it may hold a NUL")
    request = b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in words)
    frames = [
        encode_frame("A", session=session, payload=request[at : at + PAYLOAD_BYTES])
        for at in range(0, len(request), PAYLOAD_BYTES)
    ]
    return [*frames, encode_frame("X", channel=int(tty), session=session)]


def encode_size(session: int, rows: int, columns: int) -> bytes:
    """The size of a command's terminal, for one that has begun."""
    return encode_frame("R", session=session, payload=rows.to_bytes(2, "little") + columns.to_bytes(2, "little"))


def decode_hello(payload: bytes, nonce: bytes) -> Hello | None:
    """None if it doesn't answer this nonce."""
    head = MAGIC + nonce
    words = payload[len(head) + 1 :].split(b"\0")
    if not payload.startswith(head) or len(payload) <= len(head) or len(words) < 2:
        return None
    run_id = decode_word(words[2]) if payload[len(head)] >= 2 and len(words) > 2 else ""
    return Hello(payload[len(head)], decode_word(words[0]), decode_word(words[1]), run_id)


class FrameReader:
    """Cuts a byte stream into frames; ``hello`` is set once the guest has answered ``nonce``."""

    def __init__(self, nonce: bytes) -> None:
        self._nonce = nonce
        self._held = bytearray()
        self.hello: Hello | None = None

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete now. Raises OutOfStep once the stream can't be trusted any more."""
        held = self._held
        held += data
        if self.hello is None and not self._seek_hello():
            return []
        frames: list[Frame] = []
        at, end = 0, len(held)
        while at < end:
            if held[at] == 0:
                at = _ZEROS.match(held, at).end()  # type: ignore[union-attr]  # it matches anything
                continue
            if end - at < _HEADER.size:
                break
            kind, channel, length, session = _HEADER.unpack_from(held, at)
            if length > PAYLOAD_BYTES:
                raise OutOfStep
            after = at + _OVERHEAD + length
            if after > end:
                break
            if held[after - 1] != END_MARK:
                raise OutOfStep
            frames.append(Frame(chr(kind), channel, session, bytes(held[at + _HEADER.size : after - 1])))
            at = after
        del held[:at]
        return frames

    def _seek_hello(self) -> bool:
        held, wanted = self._held, MAGIC + self._nonce
        at = held.find(wanted)
        if at < 0:
            del held[: max(0, len(held) - len(wanted) - _HEADER.size)]
            return False
        start = at - _HEADER.size
        if start < 0:  # can't be: the header comes before; not ours
            del held[: at + 1]
            return False
        _, _, length, _ = _HEADER.unpack_from(held, start)
        if len(held) < start + _OVERHEAD + length:
            del held[:start]
            return False
        self.hello = decode_hello(bytes(held[at : at + length]), self._nonce)
        del held[: start + _OVERHEAD + length]
        return self.hello is not None
