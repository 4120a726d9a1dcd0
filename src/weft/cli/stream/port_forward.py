"""A port of this machine that leads into a stream: each connection gets a ticket and a stream of its own."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

from weft.cli.command.target import Target
from weft.cli.session import Session
from weft.cli.stream.client import Stream, open_stream
from weft.objects.errors import InUse, InvalidInput, WeftError


def listen_here(port: int) -> socket.socket:
    """A listener on loopback; port 0 is any free one. Raises InUse."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OverflowError:
        raise InvalidInput(f"{port} is not a port", field="port", hint="give one from 1 to 65535") from None
    except OSError as problem:
        raise InUse(f"local port {port} can't be used: {problem.strerror}", hint="choose another port") from None


def relay(session: Session, listener: socket.socket, target: Target, verb: str, given: dict[str, Any]) -> None:
    """Serve connections until interrupted; a failure of one is reported and doesn't end the others."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve, args=(session, connection, target, verb, given), daemon=True).start()


def carry(
    session: Session,
    target: Target,
    verb: str,
    given: dict[str, Any],
    stdin: int | None,
    stdout: int,
    write: Callable[[int, bytes], None] | None = None,
) -> int:
    """One stream between two descriptors of ours; its exit code. Raises the error that the peer sent, and what ``write``
    raises."""
    with open_stream(session.make_client(), target.kind.name, target.name, verb, given) as sock:
        return Stream(sock, stdout=stdout, write=write).run(stdin) or 0


def _serve(session: Session, connection: socket.socket, target: Target, verb: str, given: dict[str, Any]) -> None:
    with connection:
        try:
            carry(session, target, verb, given, connection.fileno(), connection.fileno())
        except BrokenPipeError:
            return  # the local client has gone
        except (WeftError, OSError) as problem:
            session.notify(f"{target.what}: {problem.message if isinstance(problem, WeftError) else problem}")
        finally:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
