"""``python relay.py FROM TO``: connections that arrive at FROM go on to TO, each ``unix:PATH`` or ``tcp:HOST:PORT``.

Run inside a network namespace: what QEMU alone is given to reach its other end.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading

PIECE_BYTES = 256 << 10


def _address(text: str) -> tuple[int, str | tuple[str, int]]:
    kind, _, rest = text.partition(":")
    if kind == "unix":
        return socket.AF_UNIX, rest
    host, _, port = rest.rpartition(":")
    return socket.AF_INET, (host, int(port))


def carry(source: socket.socket, target: socket.socket) -> None:
    piece = memoryview(bytearray(PIECE_BYTES))
    with contextlib.suppress(OSError):
        while count := source.recv_into(piece):
            target.sendall(piece[:count])
    for end, how in ((target, socket.SHUT_WR), (source, socket.SHUT_RD)):
        with contextlib.suppress(OSError):
            end.shutdown(how)


def serve(here: str, there: str) -> None:
    family, address = _address(here)
    door = socket.socket(family, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if isinstance(address, str) and os.path.exists(address):
        os.unlink(address)
    door.bind(address)
    door.listen(16)
    print("ready", flush=True)
    while True:
        came, _ = door.accept()
        family, address = _address(there)
        on = socket.socket(family, socket.SOCK_STREAM)
        try:
            on.connect(address)
        except OSError:
            came.close()
            continue
        for one, other in ((came, on), (on, came)):
            if one.family == socket.AF_INET:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=carry, args=(one, other), daemon=True).start()


serve(*sys.argv[1:3])
