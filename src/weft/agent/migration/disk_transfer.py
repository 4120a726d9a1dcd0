"""Sends the disk files of a guest that doesn't run to another node, without their holes.

A piece is its offset (u64), its length (u32) and that many bytes; an empty piece is the end, at the file's size. Blocking, for
threads.
"""

from __future__ import annotations

import os
import select
import ssl
import struct
from collections.abc import Sequence
from pathlib import Path

from weft.agent.migration.relay import Limit, Meter, wait_for_all
from weft.objects.errors import InvalidInput, Unavailable

PIECE_BYTES = 256 << 10
_PIECE = struct.Struct(">QI")


def count_data(path: Path) -> int:
    """Bytes of the file that aren't holes."""
    with path.open("rb") as file:
        return sum(length for _, length in _list_data(file.fileno()))


def send_file(secure: ssl.SSLSocket, path: Path, meter: Meter, limits: Sequence[Limit]) -> None:
    """Send the file and its end; stop once the other node sends anything, which can only be a refusal. Raises OSError."""
    with path.open("rb") as file:
        descriptor = file.fileno()
        for start, length in _list_data(descriptor):
            offset, end = start, start + length
            while offset < end:
                allowed = wait_for_all(limits, min(PIECE_BYTES, end - offset))
                if secure.pending() or select.select([secure], [], [], 0)[0]:
                    return
                data = os.pread(descriptor, allowed, offset)
                if not data:
                    raise OSError(f"{path} became shorter during the transfer")
                secure.sendall(_PIECE.pack(offset, len(data)) + data)
                meter.add(len(data), 0)
                offset += len(data)
        secure.sendall(_PIECE.pack(os.fstat(descriptor).st_size, 0))


def receive_file(
    secure: ssl.SSLSocket, path: Path, most_bytes: int, meter: Meter, limits: Sequence[Limit] = ()
) -> None:
    """Write the file to ``path``, synced when this returns. Raises InvalidInput for a file larger than ``most_bytes`` or another
    stream, Unavailable at a lost connection, OSError."""
    with path.open("wb") as file:
        while True:
            offset, length = _PIECE.unpack(_receive(secure, _PIECE.size))
            if length > PIECE_BYTES or offset + length > most_bytes:
                raise InvalidInput(f"a piece of {length} bytes at {offset} is beyond the disk's maximum size")
            if not length:
                file.truncate(offset)
                break
            file.seek(offset)
            file.write(_receive(secure, length, limits))
            meter.add(0, length)
        file.flush()
        os.fsync(file.fileno())


def _list_data(descriptor: int) -> list[tuple[int, int]]:
    size, at, found = os.fstat(descriptor).st_size, 0, []
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:
            break  # a hole up to the end
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        found.append((start, at - start))
    return found


def _receive(secure: ssl.SSLSocket, count: int, limits: Sequence[Limit] = ()) -> bytearray:
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        allowed = wait_for_all(limits, count - done)
        got = secure.recv_into(view[done : done + allowed])
        for limit in limits:
            limit.give_back(allowed - got)
        if not got:
            raise Unavailable("the other node closed the connection")
        done += got
    return data
