"""The socket between a worker and the scheduler: frames of a length and a message, arrays as bytes.

The scheduler trusts nothing that comes back: it accepts plain data only, within bounds of size and time.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

_HEAD = 4
_encode = msgspec.msgpack.Encoder().encode

Left = Callable[[], float]  # the seconds that are left; raises TimeoutError when none are


class Ended(Exception):
    """The peer closed the line, or sent an invalid message."""


class PolicyLine:
    """One end of the line. After a timeout the next ``receive`` continues a partial message."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._came = bytearray()

    def send(self, message: Any, left: Left | None = None) -> None:
        """Raises TimeoutError, Ended."""
        body = _encode(message)
        try:
            self._end.settimeout(None if left is None else left())
            self._end.sendall(len(body).to_bytes(_HEAD, "little") + body)
        except TimeoutError:
            raise
        except OSError as problem:
            raise Ended(str(problem)) from None

    def receive(self, most: int, left: Left | None = None) -> Any:
        """The next message, of at most ``most`` bytes. Raises TimeoutError, Ended."""
        self._fill(_HEAD, left)
        size = int.from_bytes(self._came[:_HEAD], "little")
        if size > most:
            raise Ended(f"a message of {size} bytes, {most} at most")
        self._fill(_HEAD + size, left)
        body = bytes(self._came[_HEAD : _HEAD + size])
        del self._came[: _HEAD + size]
        try:
            return msgspec.msgpack.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
            raise Ended(f"a message that can't be read: {problem}") from None

    def close(self) -> None:
        self._end.close()

    def _fill(self, size: int, left: Left | None) -> None:
        """Have ``size`` bytes there."""
        while len(self._came) < size:
            try:
                self._end.settimeout(None if left is None else left())
                part = self._end.recv(min(size - len(self._came), 1 << 20))
            except TimeoutError:
                raise
            except OSError as problem:
                raise Ended(str(problem)) from None
            if not part:
                raise Ended("the line was closed")
            self._came += part


def pack(array: NDArray[Any]) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes()


def unpack(packed: Any) -> NDArray[Any]:
    """The array that ``pack`` packed; read-only."""
    kind, shape, data = packed
    array: NDArray[Any] = np.frombuffer(data, dtype=np.dtype(kind)).reshape(shape)
    return array
