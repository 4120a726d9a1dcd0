"""An HTTP server that answers with whatever bytes a test gives it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def serving(
    pieces: Callable[[], Iterable[bytes]],
    pause: float = 0,
    tls: ssl.SSLContext | None = None,
    asked: list[bytes] | None = None,
) -> Iterator[str]:
    """The URL of a server that answers each request with ``pieces``, and waits ``pause`` seconds before each; the requests
    come into ``asked``."""
    over = threading.Event()

    def serve(link: socket.socket) -> None:
        request = link.recv(4096)
        if asked is not None:
            asked.append(request)
        for piece in pieces():
            over.wait(pause)
            link.sendall(piece)

    with socket.create_server(("127.0.0.1", 0)) as door:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    link, _ = door.accept()
                    with link, contextlib.suppress(OSError):
                        serve(tls.wrap_socket(link, server_side=True) if tls else link)

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http{'s' if tls else ''}://127.0.0.1:{door.getsockname()[1]}/x"
        finally:
            over.set()
            door.shutdown(socket.SHUT_RDWR)
