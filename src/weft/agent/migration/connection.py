"""A source's connections to the target's listener: requests over one, memory and disks over as many as the machine opens.

The machine sends to unix sockets made here; each connection to one is relayed by a TLS connection to the other node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
import ssl
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from weft.agent.migration.credentials import Credentials, check_peer, is_refusal
from weft.agent.migration.disk_transfer import send_file
from weft.agent.migration.relay import Limit, Meter, Relay
from weft.contracts.clock import Clock
from weft.objects.errors import DriverFailed, Unavailable, WeftError
from weft.protocol.migration import (
    Channel,
    Hello,
    MigrationAnswer,
    MigrationRequest,
    allow_to_stall,
    is_lost,
    receive_message,
    send_message,
    tune,
)

log = logging.getLogger("weft.agent")
DIAL_SECONDS = 10.0
ANSWER_SECONDS = 120.0  # the target starts a machine meanwhile
WATCH_SECONDS = 1.0


class TlsConnection:
    """Connects to the listener of migration ``key`` at ``address`` (host:port) on node ``peer_uid``, of another cluster if there is
    a ``peer_ca``. Raises InvalidInput for an unusable one."""

    def __init__(
        self,
        key: str,
        address: str,
        peer_uid: str,
        credentials: Credentials,
        limits: Iterable[Limit],
        clock: Clock,
        peer_ca: str = "",
    ) -> None:
        self.meter = Meter()
        self._key, self._address, self._peer_uid = key, address, peer_uid
        self._tls = credentials.dial(peer_ca)
        self._limits, self._clock = list(limits), clock
        self._asking = ThreadPoolExecutor(1, "weft-migration")  # its own: the guest's pause includes an answer
        self._control: ssl.SSLSocket | None = None
        self._lock = threading.Lock()
        self._relays: set[Relay] = set()
        self._offered: dict[Path, socket.socket] = {}
        self._ahead: list[Future[ssl.SSLSocket]] = []
        self._files: set[ssl.SSLSocket] = set()
        self._closed = False

    async def ask(self, ask: MigrationRequest) -> MigrationAnswer:
        return await asyncio.get_running_loop().run_in_executor(self._asking, self._ask, ask)

    async def order(self, ask: MigrationRequest) -> None:
        answer = await self.ask(ask)
        if not answer.done:
            raise DriverFailed(f"the target: {answer.message}", reason=answer.reason, details={"step": ask.do})

    def offer(self, sockets: dict[Channel, Path], *, ahead: int = 0) -> None:
        """Listen at these paths for the machine, and dial ``ahead`` connections for its memory meanwhile. Raises DriverFailed."""
        if ahead:
            dialling = ThreadPoolExecutor(ahead, "weft-dial")
            self._ahead = [dialling.submit(self._dial, "memory", ahead=True) for _ in range(ahead)]
            dialling.shutdown(wait=False)
        for channel, path in sockets.items():
            listener = socket.socket(socket.AF_UNIX)
            try:
                path.unlink(missing_ok=True)
                listener.bind(str(path))
                path.chmod(0o700)
                listener.listen(16)
            except OSError as problem:
                listener.close()
                raise DriverFailed(f"{path}: {problem.strerror or problem}", details={"step": "migration"}) from problem
            self._offered[path] = listener
            threading.Thread(target=self._accept, args=(listener, channel), name="weft-offer", daemon=True).start()

    async def carry_file(self, disk: str, path: Path, form: str = "qcow2") -> None:
        await asyncio.to_thread(self._carry_file, disk, path, form)

    def _carry_file(self, disk: str, path: Path, form: str) -> None:
        with self._dial("disks", disk, form=form) as secure:
            secure.settimeout(ANSWER_SECONDS)
            with self._lock:
                self._files.add(secure)
            try:
                send_file(secure, path, self.meter, self._limits)
                answer = receive_message(secure, MigrationAnswer)
            except OSError as problem:
                raise Unavailable(f"the connection to the target was lost: {problem}", reason="lineLost") from problem
            finally:
                with self._lock:
                    self._files.discard(secure)
        if not answer.done:
            raise DriverFailed(f"the target: {answer.message}", reason=answer.reason, details={"step": "disk"})

    def close(self) -> None:
        with self._lock:
            self._closed = True
            control, unused, self._ahead = self._control, self._ahead, []
        for dialled in unused:
            dialled.add_done_callback(_drop)
        for path, listener in self._offered.items():
            with contextlib.suppress(OSError):  # it is closed already
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            path.unlink(missing_ok=True)
        self._cut([control] if control is not None else [])
        self._asking.shutdown(wait=False, cancel_futures=True)

    def _cut(self, others: Iterable[ssl.SSLSocket] = ()) -> None:
        """End the connections for the machine's bytes and disks, and ``others``."""
        with self._lock:
            relays, files = list(self._relays), [*self._files, *others]
        for relay in relays:
            relay.cut()
        for secure in files:
            with contextlib.suppress(OSError):  # it is closed already
                socket.socket.shutdown(secure, socket.SHUT_RDWR)

    def _watch(self, control: ssl.SSLSocket) -> None:
        """End all connections with the control connection, on which the kernel probes whether the other node can be reached."""
        poll = select.poll()
        poll.register(control.fileno(), 0)  # errors and hang-ups
        while self._control is control and not self._closed:
            if poll.poll(WATCH_SECONDS * 1000) and self._control is control:
                log.info("migration %s: the connection to the target was lost", self._key)
                self._cut()
                return

    def _ask(self, ask: MigrationRequest) -> MigrationAnswer:
        try:
            if self._control is None:
                self._control = self._dial("control")
                threading.Thread(target=self._watch, args=(self._control,), name="weft-line", daemon=True).start()
            self._control.settimeout(ANSWER_SECONDS)
            send_message(self._control, ask)
            return receive_message(self._control, MigrationAnswer)
        except (OSError, WeftError) as problem:
            control, self._control = self._control, None
            if control is not None:
                control.close()
            if is_lost(problem):
                self._cut()
            if is_refusal(problem):
                message = (
                    f"this node and the target at {self._address} don't trust each other's certificates: {problem}"
                )
                raise Unavailable(message, reason="peerRefused") from problem
            message = f"the target doesn't answer at {self._address}: {problem}"
            raise Unavailable(message, reason="lineLost") from problem

    def _dial(self, channel: Channel, disk: str = "", *, ahead: bool = False, form: str = "qcow2") -> ssl.SSLSocket:
        host, _, port = self._address.rpartition(":")
        if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
            raise Unavailable(f"{self._address!r} is not the address of a target", reason="lineLost")
        sock = socket.create_connection((host.strip("[]"), int(port)), DIAL_SECONDS)
        try:
            tune(sock)
            secure = self._tls.wrap_socket(sock)
        except BaseException:
            sock.close()
            raise
        try:
            check_peer(secure, self._peer_uid)
            send_message(secure, Hello(self._key, channel, disk, ahead, form))
            answer = receive_message(secure, MigrationAnswer)
            if not answer.done:
                raise Unavailable(answer.message, reason=answer.reason)
            if channel != "control":
                allow_to_stall(secure)
            return secure
        except BaseException:
            secure.close()
            raise

    def _accept(self, listener: socket.socket, channel: Channel) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return  # the listener is closed
            threading.Thread(target=self._carry, args=(plain, channel), name="weft-migration", daemon=True).start()

    def _carry(self, plain: socket.socket, channel: Channel) -> None:
        try:
            secure = self._take_ahead(channel) or self._dial(channel)
        except (OSError, WeftError) as problem:
            log.warning("migration %s: can't open a connection for its %s: %s", self._key, channel, problem)
            plain.close()
            return
        relay = Relay(plain, secure, self.meter, self._limits, self._clock)
        with self._lock:
            self._relays.add(relay)
            closed = self._closed
        if closed:
            relay.cut()
        try:
            relay.run()
        finally:
            with self._lock:
                self._relays.discard(relay)

    def _take_ahead(self, channel: Channel) -> ssl.SSLSocket | None:
        """A connection that was dialled ahead, if one is left. Raises OSError, WeftError."""
        with self._lock:
            dialled = self._ahead.pop(0) if channel == "memory" and self._ahead else None
        return dialled.result() if dialled is not None else None


def _drop(dialled: Future[ssl.SSLSocket]) -> None:
    """Close a connection that wasn't needed."""
    if not dialled.cancelled() and dialled.exception() is None:
        dialled.result().close()
