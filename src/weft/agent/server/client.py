"""The agent's calls to the server: watch, report, fetch an image. Blocking, for threads.

Whatever the server answers, nothing here ends a guest: errors are raised, and the call is tried again later.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar
from urllib.parse import quote

import msgspec

from weft.agent.server.line import ServerLine
from weft.client.answer import raise_problem
from weft.client.api import Client
from weft.client.connection import FileBody, Unanswered
from weft.client.context import Context
from weft.client.watch import WatchEvent
from weft.kinds.allocation import ALLOCATION, AllocatedNic
from weft.kinds.endpoint import ENDPOINT
from weft.kinds.published_port import PUBLISHED_PORT
from weft.kinds.record import Kind
from weft.kinds.snapshot import SNAPSHOT
from weft.objects.errors import DriverFailed, WeftError
from weft.protocol.report import (
    CertificateInput,
    EgressEndpointInput,
    OpenedCertificate,
    OpenedLink,
    OpenedRepository,
    OpenedSecrets,
    ReportAnswer,
    ReportBody,
    SecretsInput,
)
from weft.protocol.traces import SpansAnswer, SpansInput

T = TypeVar("T")

CHUNK_BYTES = 1 << 20
ANSWER_SECONDS = 120.0  # for the server to make durable what was sent
WATCHED: dict[str, Kind] = {kind.name: kind for kind in (ALLOCATION, SNAPSHOT, PUBLISHED_PORT, ENDPOINT)}


class Server(Protocol):
    """The agent's server; every method blocks and may be called from any thread."""

    closed: threading.Event
    line: ServerLine

    @property
    def context(self) -> Context: ...  # by which this node is known to it

    def watch(self, kind: str, query: dict[str, str], on_trouble: Callable[[WeftError], None]) -> Iterator[WatchEvent]:
        """All objects as put events, ``synced``, then changes; see ``Client.watch_forever``."""

    def report(self, node: str, body: ReportBody) -> ReportAnswer: ...

    def read_secrets(self, node: str, allocation: str) -> OpenedSecrets:
        """The secrets that the node's allocation names. Raises NotFound (``secretNotFound``), Unavailable."""

    def read_registry_secret(self, node: str, ticket: str) -> OpenedSecrets:
        """The registry credentials in the secret of ``ticket``. Raises NotFound (``secretNotFound``), Unavailable."""

    def read_function_secret(self, node: str, function: str) -> OpenedSecrets:
        """The token of a function (PROJECT/NAME) that the node serves at its own address. Raises NotFound, Unavailable."""

    def read_repository(self, node: str, repository: str, ticket: str = "", backup: str = "") -> OpenedRepository:
        """Key and credentials of a backup repository that an order of the node, or ``ticket``, is about; with the uid of a
        ``backup`` of a project, also its objects. Raises NotFound, Forbidden, Unavailable."""

    def read_link(self, node: str, cluster: str) -> OpenedLink:
        """How a linked cluster is reached that an order of the node is about. Raises NotFound, Unavailable."""

    def ask_egress_endpoint(self, node: str, project: str, network_uid: str) -> AllocatedNic:
        """The node's own address in a network that a function names; the same one each time. Raises NotFound, Forbidden,
        Unavailable (``networkFull``)."""

    def read_certificate(self, node: str, asked: CertificateInput) -> OpenedCertificate:
        """The certificate and key of a service in a network of the node. Raises NotFound, Forbidden, Unavailable."""

    def fetch_blob(self, sha256: str, out: BinaryIO, on_progress: Callable[[int], None], ticket: str = "") -> None:
        """Write the blob to ``out``; ``on_progress`` gets the number of bytes so far. ``ticket`` permits a blob that no allocation
        here names. Raises DriverFailed (``sha256Mismatch``) for other content, NotFound, Unavailable."""

    def send_image(self, node: str, uid: str, sha256: str, path: Path, stop: threading.Event) -> None:
        """Send the file as the image with this uid, which an order of the node is about, unless ``stop`` is set meanwhile. Raises
        DriverFailed (``noSpace``), NotFound, Unavailable."""

    def put_spans(self, node: str, given: SpansInput) -> SpansAnswer:
        """Bring the node's spans. Raises Unavailable, NotFound (an older server)."""

    def close(self) -> None: ...


class RemoteServer:
    def __init__(self, client: Client, line: ServerLine) -> None:
        self._client, self.line = client, line
        self.closed = client.http.closed

    @property
    def context(self) -> Context:
        return self._client.context

    def watch(self, kind: str, query: dict[str, str], on_trouble: Callable[[WeftError], None]) -> Iterator[WatchEvent]:
        return self._client.watch_forever(WATCHED[kind], query=query, on_trouble=on_trouble, rest=self.line.rest)

    def report(self, node: str, body: ReportBody) -> ReportAnswer:
        sent = msgspec.json.encode(body)
        try:
            answer = self._client.http.request(
                "POST",
                f"/v1/nodes/{node}:report",
                sent,
                timeout_seconds=self.line.connect_seconds,
                answer_seconds=self.line.answer_seconds,
            )
        except WeftError as problem:
            self.line.note_failure(unanswered=isinstance(problem, Unanswered))
            raise
        self.line.note_answer()  # also a refusal is one
        raise_problem(answer)
        return msgspec.json.decode(answer.body, type=ReportAnswer)

    def read_secrets(self, node: str, allocation: str) -> OpenedSecrets:
        return self._read_secrets(node, SecretsInput(allocation=allocation))

    def read_registry_secret(self, node: str, ticket: str) -> OpenedSecrets:
        return self._read_secrets(node, SecretsInput(ticket=ticket))

    def read_function_secret(self, node: str, function: str) -> OpenedSecrets:
        return self._read_secrets(node, SecretsInput(function=function))

    def read_repository(self, node: str, repository: str, ticket: str = "", backup: str = "") -> OpenedRepository:
        asked = SecretsInput(repository=repository, ticket=ticket, backup=backup)
        return self._ask_secrets(node, asked, OpenedRepository)

    def read_link(self, node: str, cluster: str) -> OpenedLink:
        return self._ask_secrets(node, SecretsInput(cluster=cluster), OpenedLink)

    def _read_secrets(self, node: str, asked: SecretsInput) -> OpenedSecrets:
        return self._ask_secrets(node, asked, OpenedSecrets)

    def _ask_secrets(self, node: str, asked: SecretsInput, type_: type[T]) -> T:
        body = msgspec.json.encode(asked)
        answer = self._client.http.request("POST", f"/v1/nodes/{node}:secrets", body, timeout_seconds=10.0)
        raise_problem(answer)
        return msgspec.json.decode(answer.body, type=type_)

    def ask_egress_endpoint(self, node: str, project: str, network_uid: str) -> AllocatedNic:
        body = msgspec.json.encode(EgressEndpointInput(project, network_uid))
        answer = self._client.http.request("POST", f"/v1/nodes/{node}:egress", body, timeout_seconds=10.0)
        raise_problem(answer)
        return msgspec.json.decode(answer.body, type=AllocatedNic)

    def read_certificate(self, node: str, asked: CertificateInput) -> OpenedCertificate:
        body = msgspec.json.encode(asked)
        answer = self._client.http.request("POST", f"/v1/nodes/{node}:certificate", body, timeout_seconds=10.0)
        raise_problem(answer)
        return msgspec.json.decode(answer.body, type=OpenedCertificate)

    def send_image(self, node: str, uid: str, sha256: str, path: Path, stop: threading.Event) -> None:
        target = f"/v1/nodes/{node}/images/{uid}/{sha256}"
        answer = self._client.http.request(
            "PUT", target, FileBody(path, stop), timeout_seconds=60.0, answer_seconds=ANSWER_SECONDS
        )
        raise_problem(answer)

    def put_spans(self, node: str, given: SpansInput) -> SpansAnswer:
        body = msgspec.json.encode(given)
        answer = self._client.http.request("POST", f"/v1/nodes/{node}:traces", body, timeout_seconds=10.0)
        raise_problem(answer)
        return msgspec.json.decode(answer.body, type=SpansAnswer)

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
        self.line.close()
