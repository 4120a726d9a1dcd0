"""Channels to the endpoints of an etcd cluster: calls with a deadline, watches, and errors in the contract's words.

A call goes to the member that leads, where that is known: any other one would pass it on. If that attempt fails, gRPC spreads the
next ones over the endpoints that answer, and dials the others again by itself. A member that is cut off from its leader
answers only after seconds, and one that hangs never: so each attempt has a short time of its own, and the next one goes to
another member, until the call's deadline. Every request must therefore be one that may be done twice.

All endpoints must be of one cluster. One of another would answer as well: what was done there counts for nothing, and is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import grpc
import msgspec

from weft.contracts.clock import SystemClock
from weft.contracts.store import Compacted, OtherStore, StoreFull
from weft.objects.errors import InvalidInput, StoreUnavailable, WeftError
from weft.store.cursors import gone
from weft.store.etcd import wire

_OPTIONS = (
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.max_send_message_length", 4 << 20),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
    # Two stores in one process must not share one connection: closing one would touch the other.
    ("grpc.use_local_subchannel_pool", 1),
)
_FIRST_ATTEMPT_SECONDS = 1.5  # an election of our own members takes 1 to 2.5
_LONGER = 1.5  # times as long is each attempt than the one before: a busy member needs time rather than more requests
_AGAIN_SECONDS = 0.1
_PONG_SECONDS = 3.0  # a busy member answers a ping late, and closing its connection ends all that is under way there
_ELECTION_SECONDS = 5.0  # at most, on a machine that isn't hopelessly overloaded
_MAJORITY = "more than half of its members must run: start the servers that are away"
_SEEK_AGAIN_SECONDS = 2.0  # after a leader that was not found, or failed
_TIMED_OUT = "context deadline exceeded"  # etcd's words, with the code "unknown", if it sees an end before we do
_STOPPED = "raft: stopped"  # with the same code, of a member that ends, as one does that was removed
_REFUSED = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)
_WITH_LEADER = (("hasleader", "true"),)  # a member cut off from the others ends its watches instead of going silent


class EtcdTls(msgspec.Struct, frozen=True):
    """PEM texts: the authority that signed the members' certificates, and what this client shows of itself.

    ``server_name`` is the name all members' certificates carry."""

    ca: bytes
    server_name: str
    certificate: bytes | None = None
    key: bytes | None = None


class EtcdRefused(Exception):
    """Etcd refuses a request about its members, and says why in its own words."""

    def __init__(self, details: str) -> None:
        super().__init__(details)
        self.details = details.removeprefix("etcdserver: ")


class EtcdConnection:
    """Calls to etcd. ``endpoints`` are ``host:port`` each, or one absolute path of a unix socket. A member that stays silent is
    pinged after ``keepalive_seconds``, which must be no less than its --grpc-keepalive-min-time, 5 s by default."""

    def __init__(
        self,
        endpoints: Sequence[str],
        tls: EtcdTls | None,
        timeout_seconds: float,
        keepalive_seconds: float = 10.0,
    ) -> None:
        self.name = ",".join(endpoints)
        self.newest_revision = 0  # in any answer so far
        self.full_hint = "compact and defragment it, then end its alarm: etcdctl alarm disarm"
        self.away_hint = ""  # why a member of ours is away, where that is known
        self.endpoints = endpoints
        self._tls = tls
        self._clock = SystemClock()  # gRPC counts by it, too
        self._keepalive_seconds = keepalive_seconds
        self._timeout_seconds = timeout_seconds
        self._channel: grpc.aio.Channel | None = None
        self._calls: dict[str, Any] = {}
        self._leader: tuple[grpc.aio.Channel, dict[str, Any]] | None = None
        self._election = 0  # in which the leader was sought
        self._seek_at = 0.0
        self._seeking: asyncio.Task[None] | None = None
        self._cluster = 0  # that answered
        self._leaderless_at: float | None = None  # since when no member has known a leader
        self._retiring: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Make the channel; raises StoreUnavailable when a name can't be resolved. Only calls show whether etcd answers."""
        self._channel = await self._make_channel(self.endpoints)
        self._calls = _make_calls(self._channel)
        self._calls["Watch"] = self._channel.stream_stream(
            "/etcdserverpb.Watch/Watch", wire.WatchRequest.SerializeToString, wire.WatchResponse.FromString
        )
        self._election, self._seek_at = 0, 0.0

    async def reopen(self, endpoints: Sequence[str], tls: EtcdTls | None) -> None:
        """Use other endpoints from now on. Watches end with StoreUnavailable; calls under way end by their deadline."""
        former = self._channel
        self._check_open()
        self.name, self.endpoints, self._tls = ",".join(endpoints), endpoints, tls
        await self.open()
        await self._end_seeking()
        self._forget_leader()
        if former is not None:
            self._retire(former)

    def at(self, endpoint: str, timeout_seconds: float) -> EtcdConnection:
        """A connection of its own to one of the endpoints, which isn't open yet."""
        return EtcdConnection([endpoint], self._tls, timeout_seconds)

    @property
    def closed(self) -> bool:
        return self._channel is None

    async def see_one_cluster(self) -> None:
        """Raises OtherStore if two endpoints answer for different clusters, and StoreUnavailable if some answer for another than
        before and the rest doesn't answer: another cluster takes the place of the whole, or of nothing."""
        found = await asyncio.gather(*(self._ask_cluster(endpoint) for endpoint in self.endpoints))
        places = {cluster: endpoint for cluster, endpoint in zip(found, self.endpoints, strict=True) if cluster}
        if len(places) > 1:
            raise OtherStore(
                f"etcd {' and '.join(sorted(places.values()))} are of different clusters",
                hint="name those of one cluster; where servers keep a member each, a restore at one has begun another store: remove"
                " the --state folders of the others, and let them join again",
            )
        if self._cluster and places and self._cluster not in places and not all(found):
            raise StoreUnavailable(
                f"etcd {', '.join(places.values())} is of another cluster than before, and the others don't answer",
                hint=_MAJORITY,
            )
        self._cluster = next(iter(places), self._cluster)

    async def range(self, **fields: Any) -> Any:
        """Read a key or a range of keys, as of the newest revision the cluster agreed on or the one named."""
        return await self._call("KV/Range", wire.RangeRequest(**fields))

    async def transact(self, compare: Sequence[Any], success: Sequence[Any], failure: Sequence[Any]) -> Any:
        """Do ``success`` if all of ``compare`` hold, else ``failure``; all at one revision. May be done more than once: an attempt
        whose answer was lost, too, so ``compare`` must see to it that a second time does no harm."""
        return await self._call("KV/Txn", wire.TxnRequest(compare=compare, success=success, failure=failure))

    async def delete_range(self, key: bytes, range_end: bytes) -> None:
        await self._call("KV/DeleteRange", wire.DeleteRangeRequest(key=key, range_end=range_end))

    async def compact(self, revision: int) -> None:
        """Forget what lies before ``revision``; already forgotten is fine."""
        with contextlib.suppress(Compacted):
            await self._call("KV/Compact", wire.CompactionRequest(revision=revision))

    async def ask(self, method: str, request: Any) -> Any:
        """Ask about the cluster's members. Raises EtcdRefused."""
        return await self._call(f"Cluster/{method}", request, _REFUSED)

    async def maintain(self, method: str, request: Any) -> Any:
        """Ask a member for its upkeep, in one attempt with the whole time: it isn't asked twice. Raises EtcdRefused."""
        return await self._call(f"Maintenance/{method}", request, _REFUSED, first_seconds=self._timeout_seconds)

    async def watch(self, key: bytes, range_end: bytes, start_revision: int) -> AsyncGenerator[Any, None]:
        """WatchResponses from ``start_revision`` on, the first one says that the watch stands.

        Raises Compacted, and StoreUnavailable whenever the stream ends."""
        create = wire.WatchCreateRequest(
            key=key, range_end=range_end, start_revision=start_revision,
            progress_notify=True, prev_kv=True, fragment=True,
        )  # fmt: skip
        self._check_open()
        call = self._calls["Watch"](metadata=_WITH_LEADER, wait_for_ready=True)
        try:
            await call.write(wire.WatchRequest(create_request=create))
            while True:
                response = await call.read()
                if response is grpc.aio.EOF:
                    raise StoreUnavailable(f"etcd {self.name} ended a watch")
                if response.compact_revision:
                    raise gone(f"revision {start_revision - 1} is forgotten (kept from {response.compact_revision})")
                if response.canceled:
                    raise StoreUnavailable(f"etcd {self.name} ended a watch: {response.cancel_reason}")
                if response.header.cluster_id != self._cluster and len(self.endpoints) > 1:
                    raise StoreUnavailable(f"etcd {self.name}: a member of another cluster answered a watch")
                yield response
        except grpc.aio.AioRpcError as problem:
            raise self._translate(problem) from problem
        except asyncio.CancelledError:
            self._check_cancelled()
            raise
        finally:
            call.cancel()

    async def close(self) -> None:
        """Hang up; calls under way and watches end with StoreUnavailable."""
        channel, self._channel = self._channel, None
        await self._end_seeking()
        for task in self._retiring:
            task.cancel()
        if self._leader is not None:
            await self._leader[0].close()
            self._leader = None
        if channel is not None:
            await channel.close()

    async def _call(
        self,
        path: str,
        request: Any,
        refused: Sequence[grpc.StatusCode] = (),
        first_seconds: float = _FIRST_ATTEMPT_SECONDS,
    ) -> Any:
        ends_at = self._clock.elapsed() + self._timeout_seconds
        longest = first_seconds
        if not self._cluster and len(self.endpoints) > 1:
            await self.see_one_cluster()
        while True:
            self._check_open()
            left, leader = ends_at - self._clock.elapsed(), self._leader
            calls, waits = (self._calls, True) if leader is None else (leader[1], False)
            try:
                answer = await calls[path](
                    request, timeout=max(0.001, min(longest, left)), wait_for_ready=waits, metadata=_WITH_LEADER
                )
                if answer.header.cluster_id != self._cluster and len(self.endpoints) > 1:
                    await self.see_one_cluster()
                self.newest_revision = max(self.newest_revision, answer.header.revision)
                self._consider(answer.header.raft_term)
                self._leaderless_at = None
                return answer
            except grpc.aio.AioRpcError as problem:
                if problem.code() in refused:
                    raise EtcdRefused(problem.details() or "") from None
                code, details = problem.code(), problem.details() or ""
                timed_out = code is grpc.StatusCode.DEADLINE_EXCEEDED or _TIMED_OUT in details
                may_repeat = timed_out or code is grpc.StatusCode.UNAVAILABLE or _STOPPED in details
                if may_repeat and leader is not None and leader is self._leader:
                    self._forget_leader()
                self._note_leaderless(problem)
                if not may_repeat or self._clock.elapsed() + _AGAIN_SECONDS >= ends_at:
                    raise self._translate(problem) from problem
                if timed_out:
                    longest *= _LONGER
            except asyncio.CancelledError:
                self._check_cancelled()
                raise
            await self._clock.sleep(_AGAIN_SECONDS)

    def _note_leaderless(self, problem: grpc.aio.AioRpcError) -> None:
        """Raise StoreUnavailable once there has been no leader for longer than an election takes: there won't be one soon."""
        if not (problem.details() or "").endswith("no leader"):
            return
        now = self._clock.elapsed()
        if self._leaderless_at is None:
            self._leaderless_at = now
        elif now - self._leaderless_at >= _ELECTION_SECONDS:
            raise StoreUnavailable(f"etcd {self.name} has no leader", hint=self.away_hint or _MAJORITY) from problem

    def _consider(self, election: int) -> None:
        """Look for the leader when another one may have been elected."""
        known = election == self._election or len(self.endpoints) == 1
        if known or self._seeking is not None or self._channel is None:
            return
        if self._clock.elapsed() >= self._seek_at:
            self._forget_leader()
            self._election = election
            self._seeking = asyncio.create_task(self._seek_leader())

    async def _seek_leader(self) -> None:
        """Ask the members in turn which of them leads."""
        try:
            for endpoint in self.endpoints:
                channel = await self._make_channel([endpoint])
                calls = _make_calls(channel)
                try:
                    status = await calls["Maintenance/Status"](
                        wire.StatusRequest(), timeout=_FIRST_ATTEMPT_SECONDS, wait_for_ready=True
                    )
                    is_own = status.header.cluster_id == self._cluster
                    if is_own and status.leader and status.leader == status.header.member_id:
                        self._leader, channel = (channel, calls), None
                        return
                except grpc.aio.AioRpcError:
                    continue
                finally:
                    if channel is not None:
                        await channel.close()
            self._forget_leader()
        except StoreUnavailable:  # a name could not be resolved
            self._forget_leader()
        finally:
            self._seeking = None

    async def _ask_cluster(self, endpoint: str) -> int:
        """The id of the cluster that a member is of; 0 while it doesn't answer."""
        try:
            channel = await self._make_channel([endpoint])
        except StoreUnavailable:
            return 0
        try:
            status = await _make_calls(channel)["Maintenance/Status"](
                wire.StatusRequest(), timeout=_FIRST_ATTEMPT_SECONDS
            )
            return int(status.header.cluster_id)
        except grpc.aio.AioRpcError:
            return 0
        finally:
            await channel.close()

    def _forget_leader(self) -> None:
        """Spread calls over all members until the leader is found again."""
        self._election, self._seek_at = 0, self._clock.elapsed() + _SEEK_AGAIN_SECONDS
        if self._leader is not None:
            self._retire(self._leader[0])
            self._leader = None

    async def _end_seeking(self) -> None:
        if self._seeking is not None:
            self._seeking.cancel()
            await asyncio.gather(self._seeking, return_exceptions=True)

    def _retire(self, channel: grpc.aio.Channel) -> None:
        """Close a channel when the calls that are under way there have ended."""
        task = asyncio.create_task(channel.close(self._timeout_seconds))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _make_channel(self, endpoints: Sequence[str]) -> grpc.aio.Channel:
        target = await _resolve(endpoints)
        pong_ms = round(1000 * _PONG_SECONDS)
        options: list[tuple[str, Any]] = [
            *_OPTIONS,
            ("grpc.keepalive_time_ms", round(1000 * self._keepalive_seconds)),
            ("grpc.keepalive_timeout_ms", pong_ms),
            # of gRPC's other pings: while one is out, it sends no other
            ("grpc.http2.ping_timeout_ms", pong_ms),
        ]
        if self._tls is None:
            if target.startswith("unix:"):
                options.append(("grpc.default_authority", "localhost"))
            return grpc.aio.insecure_channel(target, options)
        options.append(("grpc.ssl_target_name_override", self._tls.server_name))
        trust = grpc.ssl_channel_credentials(self._tls.ca, self._tls.key, self._tls.certificate)
        return grpc.aio.secure_channel(target, trust, options)

    def _check_open(self) -> None:
        if self._channel is None:
            raise StoreUnavailable(f"store etcd {self.name} is closed")

    def _check_cancelled(self) -> None:
        """Distinguish a cancelled task from the calls that a closed channel cancels."""
        task = asyncio.current_task()
        if task is not None and not task.cancelling():
            raise StoreUnavailable(f"a connection to etcd {self.name} was closed") from None

    def _translate(self, problem: grpc.aio.AioRpcError) -> WeftError:
        code, details = problem.code(), problem.details() or ""
        if code is grpc.StatusCode.OUT_OF_RANGE:
            return gone(details.rpartition(": ")[2])
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "space exceeded" in details:
            return StoreFull(f"etcd {self.name} has used up its quota, and takes no writes", hint=self.full_hint)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            details = f"no answer in {self._timeout_seconds:g} s"
        alone = len(self.endpoints) == 1 and not details.endswith("no leader")
        return StoreUnavailable(
            f"etcd {self.name}: {details or code.name}",
            hint=self.away_hint or ("check that etcd runs and has a leader" if alone else _MAJORITY),
        )


def _make_calls(channel: grpc.aio.Channel) -> dict[str, Any]:
    """The calls of a channel, by the ends of their paths."""
    return {
        path: channel.unary_unary(f"/etcdserverpb.{path}", request.SerializeToString, response.FromString)
        for path, request, response in (
            ("KV/Range", wire.RangeRequest, wire.RangeResponse),
            ("KV/Txn", wire.TxnRequest, wire.TxnResponse),
            ("KV/DeleteRange", wire.DeleteRangeRequest, wire.DeleteRangeResponse),
            ("KV/Compact", wire.CompactionRequest, wire.CompactionResponse),
            ("Cluster/MemberList", wire.MemberListRequest, wire.MembersResponse),
            ("Cluster/MemberAdd", wire.MemberAddRequest, wire.MemberAddResponse),
            ("Cluster/MemberRemove", wire.MemberRemoveRequest, wire.MembersResponse),
            ("Cluster/MemberPromote", wire.MemberPromoteRequest, wire.MembersResponse),
            ("Maintenance/Status", wire.StatusRequest, wire.StatusResponse),
            ("Maintenance/Alarm", wire.AlarmRequest, wire.AlarmResponse),
            ("Maintenance/Defragment", wire.DefragmentRequest, wire.DefragmentResponse),
            (f"Maintenance/{wire.HAND_OVER}", wire.HandOverRequest, wire.HandOverResponse),
        )
    }


async def _resolve(endpoints: Sequence[str]) -> str:
    """The gRPC target that stands for all endpoints at once."""
    if len(endpoints) == 1 and endpoints[0].startswith("/"):
        return f"unix:{endpoints[0]}"
    loop = asyncio.get_running_loop()
    found: list[tuple[str, int]] = []
    for endpoint in endpoints:
        host, _, port = endpoint.rpartition(":")
        if not host or not port.isdecimal():
            raise InvalidInput(
                f"etcd endpoint {endpoint!r} is not host:port", field="store", hint="etcd://10.0.0.1:2379"
            )
        try:
            answers = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except OSError as problem:
            raise StoreUnavailable(f"etcd endpoint {endpoint}: {problem.strerror}") from problem
        places = [(str(place[0]), int(port)) for *_, place in answers]
        # a name that has addresses of both families is reached by IPv4
        found += [place for place in places if ":" not in place[0]] or places
    if not any(":" in host for host, _ in found):
        return f"ipv4:{','.join(f'{host}:{port}' for host, port in found)}"
    # one target is of one family: an IPv4 address is also an IPv6 one
    return f"ipv6:{','.join(f'[{host}]:{port}' if ':' in host else f'[::ffff:{host}]:{port}' for host, port in found)}"
