"""The agent's only way to the server: watch, report, fetch an image. Blocking, meant for threads; all over the client.

Whatever the server answers, nothing here ends a guest: errors are told, and tried again later.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol
from urllib.parse import quote

import msgspec

from weft.client.answer import raise_problem
from weft.client.api import Client
from weft.client.watch import WatchEvent
from weft.kinds.allocation import AllocatedNic, AllocationReport
from weft.kinds.node import NodeReport
from weft.objects.errors import DriverFailed, WeftError
from weft.protocol.heartbeat import Digest

CHUNK_BYTES = 1 << 20


class NodeEvent(msgspec.Struct, frozen=True):
    """Something that happened here, for the journal; ``object`` is kind, project, name and uid."""

    type: str
    reason: str
    message: str
    object: dict[str, Any]


class Peer(msgspec.Struct, frozen=True):
    """A node to ask how far away it is: where it answers, and the key (hex) to ask it with."""

    uid: str
    address: str
    port: int
    key: str


class Peers(msgspec.Struct, frozen=True):
    """Whom to ask, and this node's own key (hex), with which it answers others."""

    version: str = ""
    key: str = ""
    peers: list[Peer] = []


class ReportBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """One batch to the server: only what changed. ``ranges_version`` is of the networks' address ranges known here;
    ``idle_networks`` are uids of networks kept ready without a use; ``peers_version`` is of the peers known here;
    ``digest`` is what the guests use now, which no later batch goes by; ``version`` is of the newest facts of the node's own,
    in this batch or before; ``heard`` is the cursor up to which the watch of its allocations is reflected in all of this,
    nothing before their first list, None only of agents that don't say."""

    node: NodeReport | None = None
    allocations: dict[str, AllocationReport] = {}
    events: list[NodeEvent] = []
    removed_volumes: list[str] = []
    ranges_version: str = ""
    idle_networks: list[str] = []
    peers_version: str = ""
    digest: Digest | None = None
    version: str = ""
    heard: str | None = None


class ReportAnswer(msgspec.Struct, frozen=True):
    """``refused``: allocation name → why; ``remove_volumes``: uids whose data is to go for good; ``ranges`` of all the
    fabric's networks and ``node_ranges`` of its nodes' own addresses, if another version is known here;
    ``gone_networks``: uids that there are no more; ``superseded``: uids of
    allocations that the list doesn't hold and that surely don't count any more, ``stale_volumes`` those of their volumes whose
    data is another node's by now; ``peers``: whom to ask how far away they are, if others are known here; ``version`` of
    the node's facts that the server has, nothing of a server that doesn't say."""

    refused: dict[str, str] = {}
    remove_volumes: list[str] = []
    ranges_version: str = ""
    ranges: list[str] | None = None
    node_ranges: list[str] = []
    gone_networks: list[str] = []
    superseded: list[str] = []
    stale_volumes: list[str] = []
    peers: Peers | None = None
    version: str = ""


class OpenedSecrets(msgspec.Struct, frozen=True):
    """By the secret's name, what is needed of it, by key; ``registries``: which one those open that open one. Never printed."""

    secrets: dict[str, dict[str, str]] = {}
    registries: dict[str, str] = {}

    def __repr__(self) -> str:
        return "OpenedSecrets(…)"


class Server(Protocol):
    """What the agent asks of a server; every method blocks and may be called from any thread."""

    closed: threading.Event

    def watch(self, kind: str, query: dict[str, str], on_trouble: Callable[[WeftError], None]) -> Iterator[WatchEvent]:
        """All objects as put events, ``synced``, then what happens; see ``Client.watch_forever``."""

    def report(self, node: str, body: ReportBody) -> ReportAnswer: ...

    def read_secrets(self, node: str, allocation: str) -> OpenedSecrets:
        """What the node's allocation names. Raises NotFound (``secretNotFound``), Unavailable."""

    def read_registry_secret(self, node: str, ticket: str) -> OpenedSecrets:
        """Of the secret that ``ticket`` is for, what opens its registry. Raises NotFound (``secretNotFound``), Unavailable."""

    def ask_egress_endpoint(self, node: str, project: str, network_uid: str) -> AllocatedNic:
        """The node's own address in a network that a function names; the same one each time. Raises NotFound, Forbidden,
        Unavailable (``networkFull``)."""

    def fetch_blob(self, sha256: str, out: BinaryIO, on_progress: Callable[[int], None], ticket: str = "") -> None:
        """Write the content to ``out``, telling how many bytes came so far; ``ticket`` opens one that no allocation here names.
        Raises DriverFailed (reason
        ``sha256Mismatch``) when it isn't what was asked for, NotFound, Unavailable."""

    def close(self) -> None: ...


class RemoteServer:
    """The real one."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.closed = client.http.closed

    def watch(self, kind: str, query: dict[str, str], on_trouble: Callable[[WeftError], None]) -> Iterator[WatchEvent]:
        return self._client.watch_forever(kind, query=query, on_trouble=on_trouble)

    def report(self, node: str, body: ReportBody) -> ReportAnswer:
        answer = self._client.http.request(
            "POST", f"/v1/nodes/{node}:report", msgspec.json.encode(body), timeout_seconds=10.0
        )
        raise_problem(answer)
        return msgspec.json.decode(answer.body, type=ReportAnswer)

    def read_secrets(self, node: str, allocation: str) -> OpenedSecrets:
        return self._read_secrets(node, {"allocation": allocation})

    def read_registry_secret(self, node: str, ticket: str) -> OpenedSecrets:
        return self._read_secrets(node, {"ticket": ticket})

    def _read_secrets(self, node: str, asked: dict[str, str]) -> OpenedSecrets:
        body = msgspec.json.encode(asked)
        answer = self._client.http.request("POST", f"/v1/nodes/{node}:secrets", body, timeout_seconds=10.0)
        raise_problem(answer)
        return msgspec.json.decode(answer.body, type=OpenedSecrets)

    def ask_egress_endpoint(self, node: str, project: str, network_uid: str) -> AllocatedNic:
        body = msgspec.json.encode({"project": project, "network": network_uid})
        answer = self._client.http.request("POST", f"/v1/nodes/{node}:egress", body, timeout_seconds=10.0)
        raise_problem(answer)
        return msgspec.json.decode(answer.body, type=AllocatedNic)

    def fetch_blob(self, sha256: str, out: BinaryIO, on_progress: Callable[[int], None], ticket: str = "") -> None:
        digest, length = hashlib.sha256(), 0
        with self._client.http.stream(
            "GET", f"/v1/blobs/{sha256}" + (f"?ticket={quote(ticket)}" if ticket else "")
        ) as stream:
            while piece := stream.read(CHUNK_BYTES):
                digest.update(piece)
                out.write(piece)
                length += len(piece)
                on_progress(length)
        if digest.hexdigest() != sha256:
            raise DriverFailed(
                f"the downloaded image has sha256 {digest.hexdigest()[:12]}…, not {sha256[:12]}…",
                reason="sha256Mismatch",
                details={"step": "image"},
            )

    def close(self) -> None:
        self._client.close()
