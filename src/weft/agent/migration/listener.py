"""The target's end of a migration: one TLS listener on the node's underlay address, for one named peer and one key.

Every connection names its channel first: the source's requests are answered, memory and disks are relayed to the waiting machine.
Any other connection is closed, as is a silent one, and affects none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TypeVar

from weft.agent.migration.credentials import Credentials, check_peer
from weft.agent.migration.disk_transfer import PIECE_BYTES, receive_file
from weft.agent.migration.relay import BUFFER_BYTES, Limit, Meter, Relay
from weft.agent.problem import describe_problem
from weft.contracts.clock import Clock
from weft.objects.errors import DriverFailed, WeftError
from weft.protocol.migration import (
    Channel,
    Hello,
    MigrationAnswer,
    MigrationRequest,
    Receive,
    allow_to_stall,
    is_lost,
    receive_message,
    send_message,
    tune,
)

log = logging.getLogger("weft.agent")
HELLO_SECONDS = 10.0  # until a connection must have named its channel
REFUSED_SECONDS = 1.0  # for a refused peer to read the reason
SILENCE_SECONDS = 60.0  # within a file, before it is abandoned
MOST_STRANGERS = 32  # connections at once that haven't named their channel yet

Respond = Callable[[MigrationRequest], Awaitable[MigrationAnswer]]
T = TypeVar("T")


class TlsListener:
    """Listens for migration ``key`` from node ``peer_uid``, of another cluster if there is a ``peer_ca``. ``respond`` is called in
    the loop that opens it; ``limits`` bound the incoming rate."""

    def __init__(
        self,
        key: str,
        peer_uid: str,
        credentials: Credentials,
        respond: Respond,
        limits: Iterable[Limit],
        clock: Clock,
        peer_ca: str = "",
    ) -> None:
        self.meter = Meter()
        self.receive: Receive | None = None
        self._key, self._peer_uid, self._credentials, self._respond = key, peer_uid, credentials, respond
        self._limits, self._clock, self._peer_ca = list(limits), clock, peer_ca
        self._sockets: dict[Channel, str] = {}
        self._listener: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._strangers: dict[threading.Thread, ssl.SSLSocket] = {}
        self._inside: dict[threading.Thread, ssl.SSLSocket] = {}
        self._relays: set[Relay] = set()
        self._control: ssl.SSLSocket | None = None

    def open(self, address: str, port: int = 0) -> str:
        """Listen at ``address``, at ``port`` if that is free; returns ``host:port``. Raises DriverFailed, InvalidInput."""
        tls, self._loop = self._credentials.accept(self._peer_ca), asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for wanted in dict.fromkeys((port, 0)):
            try:
                self._listener = socket.create_server((address, wanted), family=family, backlog=MOST_STRANGERS)
                break
            except OSError as problem:
                failed = problem
        if self._listener is None:
            raise DriverFailed(
                f"the agent can't listen at {address}: {failed.strerror}",
                hint="weft agent --underlay-address must be an address of this machine",
                details={"step": "migration"},
            )
        self._listener.settimeout(None)
        threading.Thread(target=self._accept, args=(self._listener, tls), name="weft-listen", daemon=True).start()
        return f"[{address}]:{self.port}" if ":" in address else f"{address}:{self.port}"

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1]) if self._listener is not None else 0

    def lead(self, sockets: dict[Channel, str]) -> None:
        self._sockets = sockets

    def close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is None:
            return
        _shut(listener)
        listener.close()
        self._cut()

    def _cut(self) -> None:
        with self._lock:
            inside, relays = [*self._strangers.values(), *self._inside.values()], list(self._relays)
        for relay in relays:
            relay.cut()
        for sock in inside:
            _shut(sock)

    def _accept(self, listener: socket.socket, tls: ssl.SSLContext) -> None:
        while self._listener is listener:
            try:
                sock, place = listener.accept()
            except OSError:
                return  # the listener is closed
            thread = threading.Thread(
                target=self._let_in, args=(sock, tls, place[0]), name="weft-migration", daemon=True
            )
            thread.start()

    def _let_in(self, sock: socket.socket, tls: ssl.SSLContext, place: str) -> None:
        me = threading.current_thread()
        try:
            sock.settimeout(HELLO_SECONDS)
            tune(sock)
            with tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False) as secure:
                self._note_stranger(me, secure)
                try:
                    secure.do_handshake()
                except ssl.SSLError:
                    _flush_alert(secure)
                    raise
                check_peer(secure, self._peer_uid)
                hello = receive_message(secure, Hello)
                refused = self._refuse(hello)
                send_message(secure, MigrationAnswer() if not refused else MigrationAnswer(False, "refused", refused))
                if refused:
                    log.warning("migration %s: refused a connection from %s: %s", self._key, place, refused)
                    return
                with self._lock:
                    self._strangers.pop(me, None)
                    self._inside[me] = secure
                    if self._listener is None:
                        return
                if hello.channel == "control":
                    self._converse(secure)
                    return
                allow_to_stall(secure)
                if hello.disk:
                    self._take_file(secure, hello.disk, hello.form)
                else:
                    self._carry(secure, hello)
        except (OSError, WeftError) as problem:
            log.info("migration %s: a connection from %s ended: %s", self._key, place, problem)
        finally:
            sock.close()
            with self._lock:
                self._strangers.pop(me, None)
                self._inside.pop(me, None)

    def _note_stranger(self, thread: threading.Thread, sock: ssl.SSLSocket) -> None:
        """Count a connection without a channel yet; beyond the bound the oldest is closed, so that they keep no other out."""
        with self._lock:
            self._strangers[thread] = sock
            oldest = next(iter(self._strangers.values()))
            if len(self._strangers) > MOST_STRANGERS:
                _shut(oldest)

    def _refuse(self, hello: Hello) -> str:
        if hello.key != self._key:
            return "it is for another migration"
        if hello.disk:
            return "" if self.receive is not None else "this migration carries no disks as files"
        if hello.channel != "control" and not self._sockets.get(hello.channel):
            return f"no machine here expects its {hello.channel}"
        return ""

    def _converse(self, secure: ssl.SSLSocket) -> None:
        """Answer requests on the newest control connection: a later one comes from the peer's restarted agent. All transfers end
        when it is lost: on it the kernel probes whether the other node can be reached."""
        with self._lock:
            before, self._control = self._control, secure
        if before is not None:
            _shut(before)
        secure.settimeout(None)
        while True:
            try:
                ask = receive_message(secure, MigrationRequest)
            except OSError as problem:
                if is_lost(problem):
                    log.warning("migration %s: the connection to the source was lost", self._key)
                    self._cut()
                raise
            send_message(secure, self._in_loop(_answer(self._respond, ask)))

    def _take_file(self, secure: ssl.SSLSocket, disk: str, form: str) -> None:
        assert self.receive is not None
        secure.settimeout(SILENCE_SECONDS)
        try:
            path, most_bytes = self._in_loop(self.receive.begin(disk))
            receive_file(secure, path, most_bytes, self.meter, self._limits)
            self._in_loop(self.receive.complete(disk, form))
        except (WeftError, OSError) as problem:
            _refuse_rest(secure, MigrationAnswer(False, *describe_problem(problem)))
            raise
        send_message(secure, MigrationAnswer())

    def _in_loop(self, work: Coroutine[None, None, T]) -> T:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _carry(self, secure: ssl.SSLSocket, hello: Hello) -> None:
        first = b""
        if hello.ahead:  # once connected, a machine waits for its first bytes and does nothing else
            secure.settimeout(None)
            first = secure.recv(BUFFER_BYTES)
            if not first:
                return
        plain = socket.socket(socket.AF_UNIX)
        try:
            plain.connect(self._sockets[hello.channel])
        except OSError:
            plain.close()
            raise
        relay = Relay(plain, secure, self.meter, [], self._clock, incoming=self._limits, first=first)
        with self._lock:
            self._relays.add(relay)
        try:
            relay.run()
        finally:
            with self._lock:
                self._relays.discard(relay)


async def _answer(respond: Respond, ask: MigrationRequest) -> MigrationAnswer:
    try:
        return await respond(ask)
    except (WeftError, OSError) as problem:
        return MigrationAnswer(False, *describe_problem(problem))


def _flush_alert(sock: ssl.SSLSocket) -> None:
    """Let the peer read TLS's alert: closing at once, with bytes unread, would discard it. Raises OSError."""
    sock.settimeout(REFUSED_SECONDS)
    socket.socket.shutdown(sock, socket.SHUT_WR)
    while socket.socket.recv(sock, PIECE_BYTES):
        pass


def _refuse_rest(secure: ssl.SSLSocket, answer: MigrationAnswer) -> None:
    """Send it, and wait until the peer has closed: closing with bytes unread would discard the answer. Raises OSError."""
    send_message(secure, answer)
    while secure.recv(PIECE_BYTES):
        pass


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
