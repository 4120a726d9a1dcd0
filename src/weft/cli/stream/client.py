"""A byte stream through the gateway: frames over TLS at one end, standard input, output and error at the other.

One loop carries bytes both ways, so a slow reader holds up a fast writer at either end; no byte is held back.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from weft.cli.output.terminal import find_size
from weft.cli.session import Session
from weft.cli.stream.held_exec import Cut, HeldExec
from weft.client.connection import find_loss
from weft.client.context import Context
from weft.client.server.gateways import DIAL_SECONDS, open_at_gateway
from weft.client.tls import make_tls
from weft.objects.errors import Unavailable
from weft.protocol.frames import (
    MAX_PAYLOAD_BYTES,
    FrameDecoder,
    FrameType,
    encode_data,
    encode_frame,
    encode_hello,
    encode_json,
)

if TYPE_CHECKING:
    from weft.client import Client

_FULL_BYTES = 1024 * 1024  # so much waits to be sent: stop reading what is typed
_POLL_MS = 1000


class Stream:
    """One stream. ``escape`` is a byte that, typed, ends it here (a console); without ``forward_end`` no end of input is sent,
    since a console goes on when the keyboard doesn't. What comes back goes to descriptor ``stdout`` or 2, by ``write``.
    ``cut_hint`` is for people if the connection is lost; with ``held`` the stream goes on through another one, if it can."""

    def __init__(
        self,
        sock: ssl.SSLSocket,
        *,
        escape: bytes = b"",
        forward_end: bool = True,
        stdout: int = 1,
        write: Callable[[int, bytes], None] | None = None,
        cut_hint: str = "the command may still be running",
        held: HeldExec | None = None,
    ) -> None:
        self._held, self._size = held, b""
        self._sock, self._gateway = sock, _name_peer(sock)
        self._escape = escape
        self._forward_end = forward_end
        self._stdout, self._write, self._cut_hint = stdout, write or write_bytes, cut_hint
        self._decoder = FrameDecoder()
        self._out = bytearray()
        self._stdin: int | None = None
        self._code: int | None = None
        self._ended = False

    def send(self, frame: bytes) -> None:
        self._out += frame

    def resize(self, rows: int, columns: int) -> None:
        """Send the size of the terminal here."""
        self._size = encode_json(FrameType.RESIZE, {"rows": rows, "columns": columns})
        self.send(self._size)

    def run(self, stdin: int | None) -> int | None:
        """Carry bytes until the peer ends it; the peer's exit code, None if it sent none.

        ``stdin`` is the descriptor to read from, None for no input. Raises the error that the peer sent, Unavailable when the
        connection was cut."""
        self._stdin = stdin
        if stdin is None and self._forward_end:
            self._send_input(b"")
        self._sock.setblocking(False)
        try:
            while not self._ended:
                try:
                    self._flush()
                    self._receive()
                except Unavailable as problem:
                    if self._held is None:
                        raise
                    self._go_on(self._held.find_again(problem), self._held.repeat())
                if not self._ended:
                    self._wait()
        finally:
            if self._held is not None:
                self._sock.close()
        return self._code

    def _go_on(self, sock: ssl.SSLSocket, repeated: bytes) -> None:
        """Go on over another connection."""
        self._sock.close()
        self._sock, self._gateway, self._decoder = sock, _name_peer(sock), FrameDecoder()
        self._out = bytearray(self._size + repeated)
        sock.setblocking(False)

    def _send_input(self, data: bytes) -> None:
        """Send input; empty: its end."""
        self.send(encode_frame(FrameType.DATA_IN, data) if data else encode_frame(FrameType.END_IN))
        if self._held is not None:
            self._held.put(data)

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._out else 0))
        reads = self._stdin is not None and len(self._out) < _FULL_BYTES
        reads = reads and (self._held is None or self._held.has_capacity)
        if reads and self._stdin is not None:
            poll.register(self._stdin, select.POLLIN)
        for descriptor, _ in poll.poll(_POLL_MS):
            if descriptor == self._stdin:
                self._read_stdin(descriptor)

    def _read_stdin(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, MAX_PAYLOAD_BYTES)
        except OSError:  # the terminal is gone
            data = b""
        if self._escape and self._escape in data:
            data = data[: data.index(self._escape)]
            self._ended = True
        if data:
            self._send_input(data)
        elif not self._ended:
            self._stdin = None
            if self._forward_end:
                self._send_input(b"")

    def _flush(self) -> None:
        while self._out:
            try:
                sent = self._sock.send(memoryview(self._out)[:MAX_PAYLOAD_BYTES])
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            except OSError:
                self._out = (
                    bytearray()
                )  # no clear(): the error holds on to the old one. The last words are still to be read
                return
            del self._out[:sent]

    def _receive(self) -> None:
        while not self._ended:
            try:
                data = self._sock.recv(MAX_PAYLOAD_BYTES)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as problem:
                raise Cut(f"{self._gateway} was lost: {problem.strerror or problem}", hint=self._cut_hint) from None
            if not data:
                raise Cut(f"{self._gateway} was lost before the end", hint=self._cut_hint)
            for frame in self._decoder.feed(data):
                self._take(frame.type, frame.payload, frame)

    def _take(self, type_: int, payload: bytes, frame: Any) -> None:
        if type_ == FrameType.DATA_OUT:
            self._write(self._stdout, payload)
        elif type_ == FrameType.STDERR:
            self._write(2, payload)
        elif type_ == FrameType.EXIT:
            report = frame.json()
            self._code = 128 + int(report["signal"]) if report.get("signal") else int(report.get("code") or 0)
            self._ended = True
        elif type_ == FrameType.ERROR:
            raise frame.error()
        if self._held is not None:
            self.send(self._held.take(type_, payload, frame.json))


def open_stream(
    client: Client,
    kind: str,
    name: str,
    verb: str,
    asked: Mapping[str, Any],
    *,
    project: str | None = None,
    **hello: Any,
) -> ssl.SSLSocket:
    """A connection to a gateway of some server, with a ticket for the verb and ``hello`` shown. Raises Unavailable when none can
    be reached."""
    return open_at_gateway(
        client.http,
        lambda: client.verb(kind, name, verb, dict(asked), project=project),
        lambda ticket, seconds: dial(client.context, ticket, seconds, **hello),
    )


def dial(context: Context, ticket: Mapping[str, Any], seconds: float = DIAL_SECONDS, **hello: Any) -> ssl.SSLSocket:
    """A connection to the gateway that ``ticket`` names, with the ticket and ``hello`` shown. Raises Unavailable."""
    host, _, port = str(ticket["address"]).rpartition(":")
    try:
        plain = socket.create_connection((host.strip("[]"), int(port)), timeout=seconds)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        find_loss(plain)
        sock = make_tls(context).wrap_socket(plain, server_hostname=ticket.get("server_name") or host.strip("[]"))
        sock.sendall(encode_hello(role="client", ticket=ticket["ticket"], **hello))
    except OSError as problem:
        raise Unavailable(
            f"the gateway at {ticket['address']} can't be reached: {problem.strerror or problem}",
            hint="is the server running? weft doctor",
        ) from None
    return sock


def _name_peer(sock: socket.socket) -> str:
    """The connection, as errors name it."""
    try:
        host, port = sock.getpeername()[:2]
    except (OSError, ValueError):
        return "the connection to the gateway"
    return f"the connection to the gateway at {f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def send_resizes(stream: Stream) -> Iterator[None]:
    """Send the peer the terminal's size, now and at each change."""

    def send_size(*_: object) -> None:
        stream.resize(*find_size())

    before: Callable[[int, Any], Any] | int | None = signal.signal(signal.SIGWINCH, send_size)
    send_size()
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def write_bytes(descriptor: int, data: bytes) -> None:
    """All of ``data`` to a descriptor, after what was printed on standard output before."""
    if descriptor == 1:
        sys.stdout.flush()
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def exchange(
    session: Session,
    kind: str,
    name: str,
    verb: str,
    asked: dict[str, Any],
    payload: bytes = b"",
    *,
    cut_hint: str = "try again",
) -> tuple[bytes, dict[str, Any]]:
    """A request over a stream that shows nothing: the answer, and the content of EXIT. Raises the error that the peer sent,
    Unavailable for a stream that was cut."""
    with open_stream(session.client, kind, name, verb, asked) as sock:
        gateway = _name_peer(sock)
        with contextlib.suppress(OSError):  # a peer that refuses it early has sent the reason
            for piece in encode_data(FrameType.DATA_IN, payload):
                sock.sendall(piece)
            sock.sendall(encode_frame(FrameType.END_IN))
        sock.settimeout(None)
        answer, decoder = bytearray(), FrameDecoder()
        while True:
            try:
                data = sock.recv(MAX_PAYLOAD_BYTES)
            except OSError as problem:
                raise Cut(f"{gateway} was lost: {problem.strerror or problem}", hint=cut_hint) from None
            if not data:
                raise Cut(f"{gateway} was lost before the end", hint=cut_hint)
            for frame in decoder.feed(data):
                if frame.type == FrameType.DATA_OUT:
                    answer += frame.payload
                elif frame.type == FrameType.ERROR:
                    raise frame.error()
                elif frame.type == FrameType.EXIT:
                    return bytes(answer), frame.json()
