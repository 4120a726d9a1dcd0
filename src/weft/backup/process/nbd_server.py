"""A server of the Network Block Device protocol: disks of a backup, to read only, on a Unix socket without a name in any folder.

Source: the NBD project's doc/proto.md: fixed newstyle handshake, NBD_OPT_GO, simple replies. An export is a disk, by its name. Only
processes of ``users`` may connect, by what the kernel says of the peer. A read that fails is tried again until it succeeds: a guest
that waits goes on where it was; after an error it would not.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

from weft.objects.errors import WeftError

_MAGIC, _OPTION, _REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
_REQUEST, _SIMPLE = 0x25609513, 0x67446698
_EXPORT_NAME, _ABORT, _INFO, _GO = 1, 2, 6, 7
_REP_ACK, _REP_INFO, _ERR_UNSUPPORTED, _ERR_UNKNOWN = 1, 3, 0x80000001, 0x80000006
_FIXED, _NO_ZEROES = 1, 2
_HAS_FLAGS, _READ_ONLY, _SEND_FLUSH, _MULTI_CONNECTION = 1, 2, 4, 1 << 8
_FLAGS = _HAS_FLAGS | _READ_ONLY | _SEND_FLUSH | _MULTI_CONNECTION
_READ, _DISCONNECT, _FLUSH = 0, 2, 3
_EPERM, _EINVAL = 1, 22
_MOST_OPTION, _MOST_BYTES = 4096, 32 << 20
_THREADS = 4
RETRY_SECONDS = 2.0

Read = Callable[[str, int, int], bytes]  # of a disk, by offset and length


class NbdServer:
    """``waits`` is called with why a read can't be done now, and with "" once one could again."""

    def __init__(
        self,
        name: str,
        disks: Mapping[str, int],
        users: Collection[int],
        read: Read,
        waits: Callable[[str], None],
    ) -> None:
        self._disks, self._users, self._read, self._waits = disks, users, read, waits
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="serve")
        self._waiting, self._closed = "", threading.Event()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(f"\0{name}")
        self._socket.listen(16)

    def serve(self) -> None:
        """Serve for ever."""
        while True:
            peer, _ = self._socket.accept()
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        self._socket.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _serve(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError), peer:
            _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if user not in self._users:
                return
            disk = self._shake_hands(peer)
            if disk is not None:
                self._answer(peer, disk)

    def _shake_hands(self, peer: socket.socket) -> str | None:
        """The disk that the client wants; None: it has gone."""
        peer.sendall(struct.pack(">QQH", _MAGIC, _OPTION, _FIXED | _NO_ZEROES))
        struct.unpack(">I", _receive(peer, 4))
        while True:
            magic, option, length = struct.unpack(">QII", _receive(peer, 16))
            if magic != _OPTION or length > _MOST_OPTION:
                raise ValueError("no NBD client")
            data = _receive(peer, length)
            if option == _EXPORT_NAME:
                disk = data.decode(errors="replace")
                peer.sendall(struct.pack(">QH", self._disks[disk], _FLAGS))
                return disk
            if option in (_GO, _INFO):
                (size,) = struct.unpack_from(">I", data)
                disk = data[4 : 4 + size].decode(errors="replace")
                if disk not in self._disks:
                    peer.sendall(struct.pack(">QIII", _REPLY, option, _ERR_UNKNOWN, 0))
                    continue
                info = struct.pack(">HQH", 0, self._disks[disk], _FLAGS)
                peer.sendall(struct.pack(">QIII", _REPLY, option, _REP_INFO, len(info)) + info)
                peer.sendall(struct.pack(">QIII", _REPLY, option, _REP_ACK, 0))
                if option == _GO:
                    return disk
                continue
            reply = _REP_ACK if option == _ABORT else _ERR_UNSUPPORTED
            peer.sendall(struct.pack(">QIII", _REPLY, option, reply, 0))
            if option == _ABORT:
                return None

    def _answer(self, peer: socket.socket, disk: str) -> None:
        lock, size = threading.Lock(), self._disks[disk]

        def reply(handle: bytes, error: int, data: bytes = b"") -> None:
            with lock, contextlib.suppress(OSError):  # a client that has gone is noticed by the next read from it
                peer.sendall(struct.pack(">II", _SIMPLE, error) + handle + data)

        def read(handle: bytes, offset: int, length: int) -> None:
            reply(handle, 0, self._insist(disk, offset, length))

        while True:
            magic, _, type_, handle, offset, length = struct.unpack(">IHH8sQI", _receive(peer, 28))
            if magic != _REQUEST or type_ == _DISCONNECT:
                return
            if type_ == _READ and length <= _MOST_BYTES and offset + length <= size:
                self._pool.submit(read, handle, offset, length)
            elif type_ == _FLUSH:
                reply(handle, 0)
            else:
                reply(handle, _EINVAL if type_ == _READ else _EPERM)
                if type_ == 1:  # its data follows, which nobody reads
                    return

    def _insist(self, disk: str, offset: int, length: int) -> bytes:
        while not self._closed.is_set():
            try:
                data = self._read(disk, offset, length)
            except (WeftError, OSError) as problem:
                self._note(str(problem) or type(problem).__name__)
                self._closed.wait(RETRY_SECONDS)
                continue
            self._note("")
            return data
        raise EOFError

    def _note(self, why: str) -> None:
        if why != self._waiting:
            self._waiting = why
            self._waits(why)


def _receive(peer: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = peer.recv(length - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
