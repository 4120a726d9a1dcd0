"""Redis' protocol (RESP2) as far as a cache needs it: commands of texts, and answers that are one word, one number or one value.

A server's answer is a stranger's: lines, values and numbers are bounded, and lists, which no command here is answered with, are
refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

MOST_LINE_BYTES = 4096
MOST_WORD_BYTES = 64  # of an answer that is no value: a server can't fill the memory with answers to a thousand writes
_MOST_DIGITS = 20


class Broken(Exception):
    """A reply that is not an answer: the connection can't be used any more."""


class Refusal(msgspec.Struct, frozen=True):
    """The server's error, as it says it."""

    text: str

    @property
    def code(self) -> str:
        """Its first word, like ``OOM``."""
        return self.text.partition(" ")[0]


def write_command(*words: str | bytes) -> bytes:
    parts = [f"*{len(words)}\r\n".encode()]
    for word in words:
        raw = word.encode() if isinstance(word, str) else word
        parts += [b"$%d\r\n" % len(raw), raw, b"\r\n"]
    return b"".join(parts)


async def read_reply(reader: asyncio.StreamReader, most_bytes: int) -> bytes | int | Refusal | None:
    """The next answer: a value or word (bytes), a number, nothing, or a refusal. Raises Broken, OSError."""
    try:
        line = (await reader.readuntil(b"\r\n"))[:-2]
        if len(line) > MOST_LINE_BYTES:
            raise Broken("a line that is too long")
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            return Refusal(rest.decode("utf-8", "replace"))
        if kind == b":":
            return _read_number(rest)
        if kind != b"$":
            raise Broken(f"an answer that begins with {kind!r}")
        size = _read_number(rest)
        if size == -1:
            return None
        if not 0 <= size <= most_bytes:
            raise Broken(f"a value of {size} bytes")
        body = await reader.readexactly(size + 2)
    except asyncio.IncompleteReadError:
        raise Broken("it closed the connection") from None
    except asyncio.LimitOverrunError:
        raise Broken("a line that is too long") from None
    if body[-2:] != b"\r\n":
        raise Broken("a value without its end")
    return body[:-2]


def _read_number(text: bytes) -> int:
    if len(text) > _MOST_DIGITS or not text.removeprefix(b"-").isdigit():
        raise Broken("a number that is none")
    return int(text)


def explain_login(refusal: Refusal) -> str:
    """Why it refuses a password, without a word of its own: servers repeat what they didn't understand, and cut it off, so a part
    of the password couldn't be found in it."""
    meaning = _MEANINGS.get(refusal.code)
    if meaning:
        return f"{refusal.code}: {meaning}"
    return "it refuses the login: ask it with redis-cli; it may have no password, or not know this user"


def explain_refusal(refusal: Refusal, secrets: Sequence[str] = ()) -> str:
    """Explain to people what a refusal means. Servers repeat what they didn't understand, so ``secrets`` are left out."""
    meaning = _MEANINGS.get(refusal.code)
    if meaning:
        return f"{refusal.code}: {meaning}"
    text = refusal.text
    for secret in secrets:
        if secret:
            text = text.replace(secret, "…")
    return "".join(one if one.isprintable() else "?" for one in text)[:200]


_MEANINGS = {
    "NOAUTH": "it wants a password; write its file as cache_password",
    "WRONGPASS": "it refuses the password in the file of cache_password",
    "NOPERM": "its user may not do that; allow set, del and select for keys weft:*",
    "OOM": "its memory is full; raise maxmemory, or set maxmemory-policy allkeys-lru",
    "READONLY": "it is a replica; give the address of the one that takes writes",
    "LOADING": "it still loads its file",
    "MISCONF": "it can't save its file, so it takes no writes",
    "MASTERDOWN": "it is a replica without its source",
    "MOVED": "it is part of a cluster; give the address of a Redis that holds all keys itself",
    "ASK": "it is part of a cluster; give the address of a Redis that holds all keys itself",
    "CROSSSLOT": "it is part of a cluster; give the address of a Redis that holds all keys itself",
    "CLUSTERDOWN": "it is part of a cluster, which is down; give the address of a Redis that holds all keys itself",
    "WRONGTYPE": "another program keeps something else under that key; give the gateway a database of its own",
}
