"""Web and mail servers for receivers, well-behaved and hostile, each on a loopback port of its own."""

from __future__ import annotations

import base64
import contextlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

Answer = Callable[[socket.socket, dict[str, str], bytes], None]


class WebServer:
    """Answers each request as ``answer`` does; keeps what came: (request line, headers, body)."""

    def __init__(self, answer: Answer, context: ssl.SSLContext | None = None) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    sock = context.wrap_socket(self.request, server_side=True) if context else self.request
                    with contextlib.closing(sock), contextlib.closing(sock.makefile("rb")) as reader:
                        line = reader.readline().decode().strip()
                        head = dict(row.decode().strip().split(": ", 1) for row in iter(reader.readline, b"\r\n"))
                        headers = {name.lower(): value for name, value in head.items()}
                        body = reader.read(int(headers.get("content-length", "0")))
                        outer.requests.append((line, headers, body))
                        answer(sock, headers, body)

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.port}/hook"


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, *_: Any) -> None:
        pass


class MailServer:
    """Takes mail as SMTP says; keeps the commands and the messages. Asks for a password if ``password`` is set."""

    def __init__(self, password: str = "", rejects: str = "", endless: bool = False) -> None:
        self.commands: list[str] = []
        self.mails: list[bytes] = []
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def say(self, text: str) -> None:
                self.wfile.write(text.encode() + b"\r\n")

            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    while endless:
                        self.say("220-" + "a" * 400)
                    self.say("220 mail.test")
                    for raw in self.rfile:
                        outer.commands.append(raw.decode().strip())
                        if not self.answer(raw.decode().strip()):
                            return

            def answer(self, command: str) -> bool:
                verb = command[:4].upper()
                if verb == "EHLO":
                    self.say("250-mail.test\r\n250 AUTH PLAIN" if password else "250 mail.test")
                elif verb == "AUTH":
                    given = base64.b64decode(command.split()[-1]).split(b"\0")[-1].decode()
                    self.say("235 ok" if given == password else f"535 wrong password: {given}")
                elif verb == "RCPT" and rejects and rejects in command:
                    self.say("550 no such person")
                elif verb == "DATA":
                    self.say("354 go on")
                    outer.mails.append(b"".join(iter(self.rfile.readline, b".\r\n")))
                    self.say("250 queued")
                else:
                    self.say("221 bye" if verb == "QUIT" else "250 ok")
                return verb != "QUIT"

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.where = f"127.0.0.1:{self.server.server_address[1]}"


T = TypeVar("T", WebServer, MailServer)


@contextlib.contextmanager
def serving(far_end: T) -> Iterator[T]:
    thread = threading.Thread(target=far_end.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield far_end
    finally:
        far_end.server.shutdown()
        far_end.server.server_close()
        thread.join()


def server_context(chain: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    return context


def says(text: bytes) -> Answer:
    return lambda sock, headers, body: sock.sendall(text)
