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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from weft.cli.output.terminal import find_size
from weft.cli.session import Session
from weft.client.context import Context
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

DIAL_SECONDS = 10.0
_FULL_BYTES = 1024 * 1024  # so much waits to be sent: stop reading what is typed
_POLL_MS = 1000


class Cut(Unavailable):
    """The connection was lost after the stream had begun."""


class Stream:
    """One stream. ``escape`` is a byte that, typed, ends it here (a console); without ``forward_end`` no end of input is sent,
    since a console goes on when the keyboard doesn't. What comes back goes to descriptor ``stdout`` or 2, by ``write``.
    ``cut_hint`` is for people if the connection is lost."""

    def __init__(
        self,
        sock: ssl.SSLSocket,
        *,
        escape: bytes = b"",
        forward_end: bool = True,
        stdout: int = 1,
        write: Callable[[int, bytes], None] | None = None,
        cut_hint: str = "the command may still be running",
    ) -> None:
        self._sock = sock
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

    def run(self, stdin: int | None) -> int | None:
        """Carry bytes until the peer ends it; the peer's exit code, None if it sent none.

        ``stdin`` is the descriptor to read from, None for no input. Raises the error that the peer sent, Unavailable when the
        connection was cut."""
        self._stdin = stdin
        if stdin is None and self._forward_end:
            self.send(encode_frame(FrameType.END_IN))
        self._sock.setblocking(False)
        while not self._ended:
            self._flush()
            self._receive()
            if not self._ended:
                self._wait()
        return self._code

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._out else 0))
        reads = self._stdin is not None and len(self._out) < _FULL_BYTES
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
            self.send(encode_frame(FrameType.DATA_IN, data))
        elif not self._ended:
            self._stdin = None
            if self._forward_end:
                self.send(encode_frame(FrameType.END_IN))

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
                raise Cut(f"the connection was lost: {problem.strerror or problem}") from None
            if not data:
                raise Cut("the connection was lost before the end", hint=self._cut_hint)
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


def dial(context: Context, ticket: dict[str, Any]) -> ssl.SSLSocket:
    """A connection to the gateway that ``ticket`` names, with the ticket shown. Raises Unavailable."""
    host, _, port = str(ticket["address"]).rpartition(":")
    try:
        plain = socket.create_connection((host.strip("[]"), int(port)), timeout=DIAL_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock = make_tls(context).wrap_socket(plain, server_hostname=ticket.get("server_name") or host.strip("[]"))
        sock.sendall(encode_hello(role="client", ticket=ticket["ticket"]))
    except OSError as problem:
        raise Unavailable(
            f"the gateway at {ticket['address']} can't be reached: {problem.strerror or problem}",
            hint="is the server running? weft doctor",
        ) from None
    return sock


@contextmanager
def send_resizes(stream: Stream) -> Iterator[None]:
    """Send the peer the terminal's size, now and at each change."""

    def send_size(*_: object) -> None:
        rows, columns = find_size()
        stream.send(encode_json(FrameType.RESIZE, {"rows": rows, "columns": columns}))

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
    ticket = session.client.verb(kind, name, verb, asked)
    with dial(session.client.context, ticket) as sock:
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
                raise Cut(f"the connection was lost: {problem.strerror or problem}") from None
            if not data:
                raise Cut("the connection was lost before the end", hint=cut_hint)
            for frame in decoder.feed(data):
                if frame.type == FrameType.DATA_OUT:
                    answer += frame.payload
                elif frame.type == FrameType.ERROR:
                    raise frame.error()
                elif frame.type == FrameType.EXIT:
                    return bytes(answer), frame.json()
