"""The messages between a node and an API server: enrolment, reports, secrets, egress endpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.allocation import AllocationReport
from weft.kinds.network import API, FUNCTIONS
from weft.kinds.node import NodeReport
from weft.kinds.orders import Orders
from weft.objects.identity import Ref
from weft.protocol.heartbeat import Digest

EventType = Literal["Normal", "Warning"]
MOST_EVENTS = 200  # in one report


class JoinInput(msgspec.Struct, frozen=True):
    """``POST /v1/join``, with a join token."""

    node: str  # its name
    csr: str  # a signing request as PEM text; only its key is used
    release: str = ""  # of its weft; "": one that doesn't tell


class RenewInput(msgspec.Struct, frozen=True):
    """``POST /v1/nodes/{name}:renew``."""

    csr: str


class JoinAnswer(msgspec.Struct, frozen=True):
    """The answer to both."""

    node_uid: str
    certificate: str  # PEM, as ``ca``
    ca: str
    gateway: str  # where the gateway is: HOST:PORT
    server_name: str = ""  # in the server's certificate


class NodeEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that happened on the node, for the journal."""

    type: EventType
    reason: str
    message: str
    object: Ref
    n: Annotated[int, msgspec.Meta(ge=0, le=2**62)] = 0  # its number in the node's outbox; 0: an older agent's
    age_seconds: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0  # how long ago it happened


class ReportFields(msgspec.Struct, frozen=True, omit_defaults=True):
    """The fields of a report that agent and server decode alike."""

    events: list[NodeEvent] = []  # the oldest that wait in the node's outbox
    outbox: Annotated[str, msgspec.Meta(max_length=64)] = ""  # the outbox that their numbers are of
    removed_volumes: list[str] = []  # uids of volumes whose data is gone
    ranges_version: str = ""  # of the networks' address ranges that the node knows
    idle_networks: list[str] = []  # uids of networks that the node keeps ready without using them
    networks: list[str] = []  # uids of networks that the node has NICs in
    peers_version: str = ""  # of the peers that the node knows
    version: str = ""  # of the newest facts of the node's own, in this report or before
    heard: str | None = None  # cursor up to which the node has followed its allocations; "": not even their first list


class ReportBody(ReportFields, frozen=True, omit_defaults=True):
    """``POST /v1/nodes/{name}:report``: only what changed."""

    node: NodeReport | None = None
    allocations: dict[str, AllocationReport] = {}  # by the allocation's name
    digest: Digest | None = None  # what the guests use now; the newest one counts


class Peer(msgspec.Struct, frozen=True):
    """A node to measure the distance to."""

    uid: str
    address: str
    port: int
    key: str  # hex, signs the probes


class Peers(msgspec.Struct, frozen=True):
    """The nodes to measure the distance to."""

    version: str = ""
    key: str = ""  # the node's own (hex), with which it answers probes
    peers: list[Peer] = []
    probes: int = 0  # of bandwidth, in a minute; 0: it neither makes any nor takes part in others'


class NetworkRules(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rules of a network that people may change."""

    nat: bool = True
    open: list[str] = []  # as in its spec


class ServerPlace(msgspec.Struct, frozen=True, omit_defaults=True):
    """Location of the servers' machines, and the TCP ports of what networks may open there."""

    ranges: list[str] = []  # their own addresses
    api: list[int] = []  # of the API, and of its streams
    functions: list[int] = []  # of functions' callers

    @property
    def ports(self) -> dict[str, list[int]]:
        """Ports by what a network opens of it."""
        return {API: self.api, FUNCTIONS: self.functions}


NO_PLACE = ServerPlace()


class ReportAnswer(msgspec.Struct):
    """The answer to a report."""

    refused: dict[str, str] = {}  # why, by the allocation's name
    remove_volumes: list[str] = []  # uids of volumes whose data the node removes for good
    remove_snapshots: list[str] = []  # uids of snapshots that the node removes for good
    ranges_version: str = ""
    ranges: list[str] | None = None  # of all networks, if the node knows another version
    node_ranges: list[str] = []  # all nodes' own addresses, with ``ranges``
    server: ServerPlace = NO_PLACE  # with ``ranges``
    networks: dict[str, NetworkRules] = {}  # by uid, those of the report's that exist
    gone_networks: list[str] = []  # those of ``idle_networks`` that were deleted
    superseded: list[str] = []  # uids of allocations that another node has replaced
    stale_volumes: list[str] = []  # uids of their volumes whose data is, or will be, on another node now
    peers: Peers | None = None  # if the node knows another version
    orders: Orders = Orders()  # all that it shall do beside its allocations
    stamps: dict[str, str] = {}  # by uid of its guarded workloads: since when their cluster is known to be primary
    version: str = ""  # of the node's facts that the server has
    gateways: list[str] = []  # HOST:PORT of those of servers that serve, of a fabric that has several
    guard_pause: float = (
        0.0  # seconds, from before the report was made, in which no guest ends because the node isn't heard
    )
    through: int | None = None  # the greatest number of an event that it has for good; None: a server without numbers


class SecretsInput(msgspec.Struct, frozen=True):
    """``POST /v1/nodes/{name}:secrets``: allocation, ticket, repository, cluster, function or device; the repository
    also with a ticket."""

    allocation: str = ""  # the name of one of the node's own
    ticket: str = ""  # from a function's recipe, or from a stream's claims
    repository: str = ""  # the name of a BackupRepository that an order of the node is about, or the ticket
    backup: str = ""  # the uid of a Backup of a project that the node is to copy there: its objects, too
    cluster: str = ""  # the name of a Cluster that the node has an order to send a replica's point to
    function: str = ""  # PROJECT/NAME of one that the node serves at its own address: what its ``local_secret`` names
    device: str = ""  # PROJECT/NAME of a Device behind the node's gateway: what its ``credentials`` names


class OpenedSecrets(msgspec.Struct, frozen=True):
    """The answer: values in clear, which its repr hides."""

    secrets: dict[str, dict[str, str]] = {}  # by the secret's name, and by key
    registries: dict[str, str] = {}  # by the secret's name, of secrets that are for a registry
    volumes: dict[str, str] = {}  # the keys of encrypted volumes, by uid
    offline: list[str] = []  # names of those that the node may keep on disk, sealed

    def __repr__(self) -> str:
        return "OpenedSecrets(…)"


class OpenedRepository(msgspec.Struct, frozen=True):
    """The answer about a BackupRepository: its key and credentials in clear, which its repr hides."""

    values: dict[str, str] = {}
    ca: str = ""  # PEM, of a bucket
    objects: dict[str, Any] = {}  # of a project: ``BackedUpProject``
    uploads: dict[str, str] = {}  # what these name, code and models: a ticket for each blob, by digest

    @property
    def credentials(self) -> tuple[str, str] | None:
        """A bucket's access key and secret key."""
        return (self.values["access_key"], self.values["secret_key"]) if "access_key" in self.values else None

    def __repr__(self) -> str:
        return "OpenedRepository(…)"


class OpenedLink(msgspec.Struct, frozen=True):
    """The answer about a Cluster: how it is reached, and the token with which it is asked, which its repr hides."""

    url: str
    ca: str  # PEM
    token: str
    now: float = 0.0  # unix seconds, by the server's clock, as it answered
    others: list[str] = []  # URLs of its other servers

    def __repr__(self) -> str:
        return "OpenedLink(…)"


class CertificateInput(msgspec.Struct, frozen=True):
    """``POST /v1/nodes/{name}:certificate``."""

    project: str
    service: str  # its name
    uid: str


class OpenedCertificate(msgspec.Struct, frozen=True):
    """The answer: in PEM the key and the certificate with its chain, which its repr hides; and when it ends (unix seconds)."""

    pem: str
    ends: float = 0.0  # 0: people see to it

    def __repr__(self) -> str:
        return "OpenedCertificate(…)"


class EgressEndpointInput(msgspec.Struct, frozen=True):
    """``POST /v1/nodes/{name}:egress``. The answer is an AllocatedNic."""

    project: str
    network: str  # the uid of one that a function names
