"""A replica at another cluster, or of this one, as a node that sends to it reaches it: through the API, and by a stream through a
gateway there. Blocking, for threads. Who answers there may be anyone who got hold of that cluster: answers are bounded and read
strictly.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import tee
from typing import Any

import msgspec

from weft.backup.process.nbd import NbdClient
from weft.client.cluster.peer import MOST_ANSWER_BYTES, MOST_SECONDS, PeerClient
from weft.client.context import Context
from weft.client.server.gateways import open_at_gateway
from weft.client.tls import make_tls
from weft.contracts.driver.layers import ServedDisk
from weft.kinds.fields.replication.work import OWN_FIELDS
from weft.kinds.parts.stream_verbs import ReceiveInput
from weft.kinds.replica import PRIMARY
from weft.objects.errors import AlreadyExists, IllegalTransition, InvalidInput, NotFound, Unavailable, describe_failure
from weft.objects.identity import SERVER_NAME
from weft.protocol.frames import FrameDecoder, FrameType, encode_data, encode_frame, encode_hello
from weft.protocol.points import DATA, PIECE_BYTES, ZERO, encode_head
from weft.protocol.report import OpenedLink

ASK_SECONDS = 10.0
STALL_SECONDS = 30.0  # without a byte taken by the other side
END_SECONDS = 300.0  # until the last byte is on its disk
SHOWN_TRIES, SHOWN_AGAIN_SECONDS = 100, 0.3  # until a last point stands in the replica's status
_RECEIVE_BYTES = 64 << 10


class _Point(msgspec.Struct):
    source: str = ""


class _Status(msgspec.Struct):
    points: list[_Point] = []


class _Replica(msgspec.Struct):
    """The fields that are read of a Replica."""

    spec: dict[str, Any]
    status: _Status
    marks: dict[str, Any] = {}

    @property
    def is_primary(self) -> bool:
        return PRIMARY in (self.marks.get("role"), self.spec.get("role"))  # an older weft has it in its spec


def make_context(link: OpenedLink) -> Context:
    """The context of a client of a linked cluster."""
    return Context(server=link.url, ca=link.ca, token=link.token, server_name=SERVER_NAME, others=link.others)


class Peer:
    """``stopped``: set to end what another thread does here."""

    def __init__(self, context: Context, project: str, own_project: str) -> None:
        self.stopped = threading.Event()
        context = msgspec.structs.replace(context, project=project)
        self._client = PeerClient(
            context,
            own_project,
            timeout_seconds=ASK_SECONDS,
            most_answer_bytes=MOST_ANSWER_BYTES,
            most_seconds=MOST_SECONDS,
        )
        self._tls = make_tls(context)

    def close(self) -> None:
        self.stopped.set()
        self._client.close()

    def put_replica(self, name: str, spec: Mapping[str, Any], *, has_points: bool) -> None:
        """Make the replica, or change what differs. Raises AlreadyExists (``nameTaken``) for another's, IllegalTransition
        (``staleGeneration``) for one that was promoted, (``replicaGone``) for one that had points and is gone, since it may have
        been promoted before, and what the other cluster refuses it for."""
        try:
            found = self._read(name)
        except NotFound:
            if has_points:
                raise _gone(name) from None
            self._client.create({"kind": "replica", "name": name, "spec": dict(spec)})
            return
        if found.spec.get("origin") != spec["origin"]:
            raise _taken(name, self._client.project, is_same=found.spec.get("of") == spec.get("of"))
        if found.is_primary:
            raise _promoted(name)
        differs = {key: spec[key] for key in OWN_FIELDS if key in spec and found.spec.get(key) != spec[key]}
        if differs:
            self._client.patch("replica", name, {"spec": differs})

    def check_standby(self, name: str, origin: str) -> None:
        """Raises IllegalTransition (``staleGeneration``) once the replica was promoted, (``replicaGone``) once it, or the one that
        was made by ``origin``, is gone."""
        try:
            found = self._read(name)
        except NotFound:
            raise _gone(name) from None
        if found.spec.get("origin") != origin:
            raise _gone(name)
        if found.is_primary:
            raise _promoted(name)

    def send(self, name: str, point: ReceiveInput, disks: Sequence[ServedDisk], sent: Callable[[int], None]) -> int:
        """Send the point; the number that it got there. Raises what the other side refuses it for, Unavailable (``streamLost``)."""
        asked = msgspec.to_builtins(point)
        ask = partial(self._client.verb, "replica", name, "receive", asked)
        with open_at_gateway(self._client.http, ask, self._dial) as sock:
            stream, total = _Stream(sock), 0
            for head, data in list_pieces(disks, [disk.whole for disk in point.disks.values()]):
                if self.stopped.is_set():
                    raise Unavailable("the point is not wanted any more", reason="streamLost")
                if (number := stream.peek()) is not None:
                    return number  # it has the point already
                for frame in encode_data(FrameType.DATA_IN, head + data):
                    stream.send(frame)
                total += len(data)
                sent(total)
            stream.send(encode_frame(FrameType.END_IN))
            return stream.await_end()

    def await_point(self, name: str, source: str, *, as_standby: bool = False) -> None:
        """Return once the replica shows the point that is a copy of the snapshot ``source``, so that a promotion begins from it.
        Raises Unavailable (``replicaNotReady``), and with ``as_standby`` IllegalTransition (``staleGeneration``) if it was
        promoted, be it with that point or without."""
        for _ in range(SHOWN_TRIES):
            there = self._read(name)
            if as_standby and there.is_primary:
                raise _promoted(name)
            if any(one.source == source for one in there.status.points):
                return
            if self.stopped.wait(SHOWN_AGAIN_SECONDS):
                break
        raise Unavailable(f"replica {name} has the last point, but doesn't show it yet", reason="replicaNotReady")

    def _read(self, name: str) -> _Replica:
        """Raises NotFound, InvalidInput (``badPiece``), Unavailable."""
        try:
            return msgspec.convert(self._client.get("replica", name), _Replica)
        except msgspec.ValidationError as problem:
            raise InvalidInput(f"the other cluster's replica can't be read: {problem}", reason="badPiece") from None

    def _dial(self, ticket: Mapping[str, Any], seconds: float) -> ssl.SSLSocket:
        address = str(ticket.get("address"))
        host, _, port = address.rpartition(":")
        try:
            plain = socket.create_connection((host.strip("[]"), int(port)), timeout=min(seconds, ASK_SECONDS))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock = self._tls.wrap_socket(plain, server_hostname=SERVER_NAME)
            sock.settimeout(STALL_SECONDS)
            sock.sendall(encode_hello(role="client", ticket=str(ticket.get("ticket"))))
        except (OSError, ValueError) as problem:
            raise Unavailable(
                f"the other cluster's gateway at {address[:100]} can't be reached: {problem}",
                reason="streamLost",
            ) from None
        return sock


class _Stream:
    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock, self._decoder, self._answer = sock, FrameDecoder(), bytearray()

    def send(self, frame: bytes) -> None:
        try:
            self._sock.sendall(frame)
        except OSError as problem:
            self._read_refusal()
            raise _lost(problem) from None

    def peek(self) -> int | None:
        """The number, if the other side has ended already. Raises its refusal."""
        self._sock.settimeout(0.0)  # what came may be of TLS alone
        try:
            while (number := self._receive()) is None:
                pass
            return number
        except ssl.SSLWantReadError:
            return None
        finally:
            self._sock.settimeout(STALL_SECONDS)

    def await_end(self) -> int:
        self._sock.settimeout(END_SECONDS)
        while (number := self._receive()) is None:
            pass
        return number

    def _read_refusal(self) -> None:
        """A side that refuses what is sent closes the connection after its reason."""
        self._sock.settimeout(1.0)
        with contextlib.suppress(Unavailable):
            while self._receive() is None:
                pass

    def _receive(self) -> int | None:
        try:
            data = self._sock.recv(_RECEIVE_BYTES)
        except ssl.SSLWantReadError:
            raise
        except OSError as problem:
            raise _lost(problem) from None
        if not data:
            raise _lost(None)
        for frame in self._decoder.feed(data):
            if frame.type == FrameType.ERROR:
                raise frame.error()
            if frame.type == FrameType.DATA_OUT and len(self._answer) < _RECEIVE_BYTES:
                self._answer += frame.payload
            elif frame.type == FrameType.EXIT:
                return _read_number(bytes(self._answer))
        return None


class _Answer(msgspec.Struct):
    number: int


def _read_number(answer: bytes) -> int:
    try:
        return msgspec.json.decode(answer, type=_Answer).number
    except msgspec.DecodeError:
        raise InvalidInput("the other cluster's answer can't be read", reason="badPiece") from None


def _promoted(name: str) -> IllegalTransition:
    return IllegalTransition(
        f"replica {name} was promoted: it takes no more points",
        reason="staleGeneration",
        hint="its VM runs there now; at that cluster, weft cluster replicate sends back what changed",
    )


def _taken(name: str, project: str, *, is_same: bool) -> AlreadyExists:
    """``is_same``: the one that is there is of a VM of this name."""
    whose = "an earlier replication of this VM" if is_same else "another replication"
    return AlreadyExists(
        f"the other cluster has replica/{name} of {whose} already, with that one's points",
        reason="nameTaken",
        hint=f"if nobody needs those points: weft replica delete {name} -p {project}, at the other cluster, frees the name; "
        "all is sent automatically then",
    )


def _gone(name: str) -> IllegalTransition:
    return IllegalTransition(
        f"replica {name} had points, and is gone: it may have been promoted before it was deleted, so its VM may run there",
        reason="replicaGone",
        hint="look for its VM at the other cluster, and stop one of both; to begin again, delete this replication and create it",
    )


def _lost(problem: OSError | None) -> Unavailable:
    why = "it was closed" if problem is None else describe_failure(problem)
    return Unavailable(f"the stream to the replica was lost: {why}", reason="streamLost", hint="it is tried again")


def list_pieces(disks: Sequence[ServedDisk], whole: Sequence[bool]) -> Iterator[tuple[bytes, bytes]]:
    """Head and data of each piece. What is zero goes without its bytes, or not at all where the disk is whole."""
    for number, disk in enumerate(disks):
        with contextlib.closing(NbdClient(disk.socket)) as client:
            pieces, ahead = tee(split_extents(disk))
            read = client.read_ahead((at, size) for at, size, zero in ahead if not zero)
            for at, size, zero in pieces:
                data = b"" if zero else next(read)
                data = b"" if data.count(0) == size else data
                if data:
                    yield encode_head(DATA, number, at, size), data
                elif not whole[number]:
                    yield encode_head(ZERO, number, at, size), b""


def split_extents(disk: ServedDisk) -> Iterator[tuple[int, int, bool]]:
    """Split a disk into pieces: for each piece its offset, its size, and whether it is zero, in order and without overlap."""
    end = 0
    for start, length, zero in disk.extents:
        at, end = max(start, end), min(start + length, disk.size_bytes)
        while at < end:
            size = end - at if zero else min(PIECE_BYTES, end - at)
            yield at, size, zero
            at += size


def count_data(disk: ServedDisk) -> int:
    """Bytes that may have to be sent."""
    return sum(
        min(start + length, disk.size_bytes) - start
        for start, length, zero in disk.extents
        if not zero and start < disk.size_bytes
    )
