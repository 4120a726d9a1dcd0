"""A question to weft's agent in a guest that it answers with one frame of the same kind; and what the two that there are say.

The guest is a stranger: of its answers a flag and one number count.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping

from weft.contracts.driver.identity import Identity
from weft.drivers.runtime.qemu.guest_agent.frames import Frame, OutOfStep, decode_number

FREEZE, IDENTITY, UNUSED = "F", "I", "U"
LEAST_VERSIONS = {FREEZE: 3, IDENTITY: 3, UNUSED: 4}  # of agents that know them
# What may fail of a renewal, by the bit that says so: see images/agent/identity.h.
_FAILURES = (
    "its randomness", "its clock", "its host name", "its machine id", "a MAC address", "its SSH host keys", "the message"
)  # fmt: skip


class GuestQuestion:
    """``answer`` is None when the guest was lost before it came."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.answer: asyncio.Future[tuple[bool, int] | None] = asyncio.get_running_loop().create_future()

    def take(self, frame: Frame) -> None:
        if frame.kind == self._kind and not self.answer.done():
            try:
                self.answer.set_result((frame.channel == 0, decode_number(frame)))
            except OutOfStep:
                self.answer.set_result((False, 0))

    def lose(self, why: str = "", *, for_good: bool = False) -> None:
        if not self.answer.done():
            self.answer.set_result(None)


def encode_freeze(limit_ms: int) -> bytes:
    """Freeze file systems for at most so long; 0: let them go."""
    return limit_ms.to_bytes(4, "little")


def encode_renewal(seed: bytes, unix_seconds: float, identity: Identity | None, macs: Mapping[str, str]) -> bytes:
    """Fresh randomness and the time, and who it is from now on, unless it stays who it was."""
    own = [identity.hostname, identity.machine_id] if identity is not None else ["", ""]
    words = [*own, *(word for pair in macs.items() for word in pair)] if identity is not None else own
    return seed + struct.pack("<Q", int(unix_seconds * 1e9)) + b"".join(word.encode() + b"\0" for word in words)


def describe_failures(bits: int) -> str:
    """Describe what failed of a renewal; "" is nothing."""
    return ", ".join(what for place, what in enumerate(_FAILURES) if bits >> place & 1) or ("something" if bits else "")
