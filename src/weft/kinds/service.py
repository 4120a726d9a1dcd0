"""Service: one address, in one network, for all workloads with some labels, and how new connections are split among them.

Its address is an endpoint like a NIC's, so it is never given twice; nodes learn where it leads from that endpoint's spec. The
controller ``services`` writes both. Its published ports lead to it on every node."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec

from weft.kinds.disruption_budget import words_of_labels
from weft.kinds.fields.cells import AGE, NAME, dig, joined, note, text
from weft.kinds.fields.service.readiness import Readiness, check_readiness
from weft.kinds.parts.goal import is_settled, read_phase
from weft.kinds.parts.workload import parse_publish, refuse_twice
from weft.kinds.published_port import claim_published_port
from weft.kinds.record import (
    Access,
    Admission,
    Claim,
    Column,
    Counted,
    Display,
    Goal,
    Index,
    Kind,
    Lifetime,
    Object,
    Reference,
    Stored,
    keys_of,
)
from weft.objects.envelope import Envelope
from weft.objects.errors import InvalidInput
from weft.objects.identity import Ref, check_labels, check_name
from weft.objects.quantity import format_duration
from weft.objects.schema import field, words

MOST_LABELS = 8  # of a selector
MOST_PORTS = 16
MOST_WEIGHTS = 16
MOST_ENDPOINTS = 100
ALL = 1000  # per mille
MOST_DRAIN_SECONDS = 3600.0
NOT_CHECKED = "not checked yet"  # an endpoint's reason until its node has asked it
_PORT = re.compile(r"(\d{1,5})(?::(\d{1,5}))?(?:/(tcp|udp))?")
_WEIGHT = re.compile(r"([^=:]+)=([^=:]*):(\d{1,4})")
Transport = Literal["tcp", "udp"]
Protocol = Literal["l4", "http"]


class ServiceSpec(msgspec.Struct, kw_only=True):
    selector: Annotated[
        dict[str, str], field("Labels of the VMs and containers of the project that it leads to; they have all of them")
    ]
    ports: Annotated[list[str], field("Ports of its address: PORT, PORT:TARGET or PORT:TARGET/udp")]
    protocol: Annotated[
        Protocol,
        field(
            "What is split among the endpoints: l4: connections; http: requests, by a proxy on each node of the network",
            change="never",
        ),
    ] = "l4"
    tls: Annotated[
        Literal["off", "generated"],
        field("generated: HTTPS with a certificate for its names and address, from weft's own CA for services"),
    ] = "off"
    tls_secret: Annotated[
        str,
        field("HTTPS with the certificate in this secret: its keys tls.crt (with the chain) and tls.key, in PEM"),
    ] = ""
    network: Annotated[
        str,
        field(
            "Network in which it has its address; PROJECT/NAME is a shared one", change="never", name=True, shared=True
        ),
    ] = "default"
    publish: Annotated[list[str], field("Ports of every node that lead to it: HOST:PORT or HOST:PORT/udp")] = []
    sticky: Annotated[
        Literal["none", "client"],
        field("client: connections of one address go to the same endpoint while that is ready"),
    ] = "none"
    weights: Annotated[
        list[str],
        field(
            "Share of new connections for endpoints with a label, as LABEL=VALUE:PER_MILLE; the rest is for the others."
            " Without any all endpoints get as many"
        ),
    ] = []
    readiness: Annotated[Readiness, field("When an endpoint is ready")] = msgspec.field(default_factory=Readiness)
    drain: Annotated[
        float,
        field("How long a deployment lets connections to an instance that leaves go on", quantity="duration"),
    ] = 30.0


class ServiceEndpoint(msgspec.Struct, kw_only=True, frozen=True):
    """A workload that the selector matches."""

    workload: Ref
    revision: str = ""  # of its deployment
    address: str = ""
    node: str = ""
    ready: bool = False
    weight: int = 0  # per mille of new connections
    reason: str = ""  # why it isn't ready, or gets none
    silent: bool = False  # it isn't ready only as it says nothing: it may be busy
    leaves: bool = False  # it gets no new connections any more, ready or not
    retired: bool = False  # others have its place: it is being deleted, or a rollout has put another revision there
    departed_at: float | None = None  # since when no node sends it any, of one that leaves
    departure: int = 0  # which of its departures this is, of one that leaves: milliseconds since 1970 when it began


class ServiceStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[str, words("Pending", "Ready", "NoEndpoints")] = "Pending"
    reason: str = ""
    message: str = ""
    address: str = ""
    network_uid: str = ""
    endpoints: list[ServiceEndpoint] = []  # by name; MOST_ENDPOINTS at most
    more: int = 0  # workloads beyond those
    observed_generation: int = 0


class ServicePort(NamedTuple):
    port: int
    target: int
    protocol: Transport


class Weight(NamedTuple):
    """The share of new connections for endpoints with a label."""

    label: str
    value: str
    per_mille: int


def read_port(written: str, field_: str = "spec.ports") -> ServicePort:
    """``80:8080``, ``80`` or ``53:5353/udp``. Raises InvalidInput."""
    match = _PORT.fullmatch(written)
    hint = "write PORT:TARGET, like 80:8080 or 53:53/udp, or PORT alone if both are the same"
    if match is None:
        raise InvalidInput(f"{field_}: {written[:60]!r} is not a port of a service", field=field_, hint=hint)
    port, target = int(match[1]), int(match[2] or match[1])
    for number in (port, target):
        if not 1 <= number <= 65535:
            raise InvalidInput(f"{field_}: port {number} is not between 1 and 65535", field=field_, hint=hint)
    return ServicePort(port, target, "udp" if match[3] == "udp" else "tcp")


def read_weight(written: str, field_: str = "spec.weights") -> Weight:
    """``version=2:100``. Raises InvalidInput."""
    match = _WEIGHT.fullmatch(written)
    hint = f"write LABEL=VALUE:PER_MILLE, like version=2:100; {ALL} is everything"
    if match is None:
        raise InvalidInput(f"{field_}: {written[:80]!r} is not a weight", field=field_, hint=hint)
    check_labels({match[1]: match[2]}, field_)
    if int(match[3]) > ALL:
        raise InvalidInput(f"{field_}: {match[3]} is more than {ALL} per mille", field=field_, hint=hint)
    return Weight(match[1], match[2], int(match[3]))


def read_ports(spec: ServiceSpec) -> list[ServicePort]:
    return [read_port(written, f"spec.ports[{at}]") for at, written in enumerate(spec.ports)]


def read_weights(spec: ServiceSpec) -> list[Weight]:
    return [read_weight(written, f"spec.weights[{at}]") for at, written in enumerate(spec.weights)]


def read_published(spec: ServiceSpec) -> list[tuple[int, int, Transport]]:
    """Ports of each published port, the host's and the service's, and the protocol."""
    return [parse_publish(written, f"spec.publish[{at}]") for at, written in enumerate(spec.publish)]


def first_tcp_port(ports: Sequence[ServicePort]) -> int:
    """The target of the first TCP port; 0 for none."""
    return next((port.target for port in ports if port.protocol == "tcp"), 0)


def is_matched(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """Whether a workload with ``labels`` is one that ``selector`` matches."""
    return all(labels.get(key) == value for key, value in selector.items())


def check_service(spec: ServiceSpec) -> None:
    """Raises InvalidInput."""
    if not 1 <= len(spec.selector) <= MOST_LABELS:
        raise InvalidInput(
            f"spec.selector: {len(spec.selector)} labels are given",
            field="spec.selector",
            hint=f"give 1 to {MOST_LABELS} labels that its workloads have, like app: web",
        )
    check_labels(spec.selector, "spec.selector")
    ports = _check_ports(spec)
    _check_tls(spec)
    _check_published(spec, ports)
    _check_weights(spec)
    check_readiness(spec.readiness, first_tcp_port(ports))
    if not 0 <= spec.drain <= MOST_DRAIN_SECONDS:
        raise InvalidInput(
            f"spec.drain: {format_duration(spec.drain)} is out of range", field="spec.drain", hint="give 0s to 1h"
        )


def _check_ports(spec: ServiceSpec) -> list[ServicePort]:
    if not 1 <= len(spec.ports) <= MOST_PORTS:
        raise InvalidInput(
            f"spec.ports: {len(spec.ports)} ports are given",
            field="spec.ports",
            hint=f"give 1 to {MOST_PORTS}, like 80:8080",
        )
    ports = read_ports(spec)
    refuse_twice(ports=[(port.port, port.protocol) for port in ports])
    for at, port in enumerate(ports):
        if spec.protocol == "http" and port.protocol == "udp":
            raise InvalidInput(
                f"spec.ports[{at}]: HTTP requests don't come by UDP",
                field=f"spec.ports[{at}]",
                hint=f"write {port.port}:{port.target}, or leave out protocol http",
            )
    return ports


def _check_tls(spec: ServiceSpec) -> None:
    given = "spec.tls_secret" if spec.tls_secret else "spec.tls" if spec.tls != "off" else ""
    if spec.tls_secret:  # empty is none, as it is written out at admission
        check_name(spec.tls_secret, "spec.tls_secret")
    if given and spec.protocol != "http":
        raise InvalidInput(f"{given}: it goes with protocol http only", field=given, hint="give protocol: http")
    if spec.tls_secret and spec.tls != "off":
        raise InvalidInput(
            "spec.tls_secret: a generated certificate is asked for, too",
            field="spec.tls_secret",
            hint="give one of them",
        )


def _check_published(spec: ServiceSpec, ports: Sequence[ServicePort]) -> None:
    if len(spec.publish) > MOST_PORTS:
        raise InvalidInput(
            f"spec.publish: {len(spec.publish)} ports are given",
            field="spec.publish",
            hint=f"give at most {MOST_PORTS}",
        )
    published = read_published(spec)
    refuse_twice(publish=[(host, protocol) for host, _, protocol in published])
    offered = {(port.port, port.protocol) for port in ports}
    for at, (_, port, protocol) in enumerate(published):
        if (port, protocol) not in offered:
            has = ", ".join(f"{one.port}/{one.protocol}" for one in ports)
            raise InvalidInput(
                f"spec.publish[{at}]: {port}/{protocol} is not a port of the service",
                field=f"spec.publish[{at}]",
                hint=f"write HOST:PORT with a port of the service: {has}",
            )


def _check_weights(spec: ServiceSpec) -> None:
    if not spec.weights:
        return
    if len(spec.weights) > MOST_WEIGHTS:
        raise InvalidInput(
            f"spec.weights: {len(spec.weights)} weights are given",
            field="spec.weights",
            hint=f"give at most {MOST_WEIGHTS}",
        )
    weights = read_weights(spec)
    refuse_twice(weights=[(weight.label, weight.value) for weight in weights])
    total = sum(weight.per_mille for weight in weights)
    if not 0 < total <= ALL:
        raise InvalidInput(
            f"spec.weights: they add up to {total} per mille",
            field="spec.weights",
            hint=f"make them add up to 1 to {ALL}; what is left is for endpoints without these labels",
        )


def claim_ports(envelope: Envelope, spec: ServiceSpec) -> list[Claim]:
    """Its published ports, each named by the port."""
    return [
        claim_published_port(envelope, at, host, port, protocol)
        for at, (host, port, protocol) in enumerate(read_published(spec))
    ]


def find_rights_in_workloads(old: ServiceSpec | None, new: ServiceSpec) -> Iterable[tuple[str, str]]:
    """The permissions to run a command in whatever a selector may match."""
    if new.readiness.type != "command":
        return ()
    if old is not None and (old.readiness, old.selector) == (new.readiness, new.selector):
        return ()
    return [(permission, "run a command in the workloads of a service") for permission in ("vm:exec", "container:exec")]


SERVICES_BY_LABEL = Index("services by one of the labels of their selectors")
SERVICES_BY_NETWORK = Index("services by network")
SERVICES_BY_SECRET = Index("services by the secret of their certificate")
SERVICES_BY_UID = Index("services by uid")
SERVICES_WAITING = Index("services with an endpoint that leaves, which nodes have yet to confirm", reads_status=True)
WAITING = "waiting"
PROXIED_BY_NETWORK = Index("services with protocol http, by network")


def _words(item: Stored) -> Iterable[str]:
    return words_of_labels(item.envelope.project, item.spec(ServiceSpec).selector)[:1]


def _network_of_proxied(item: Stored) -> Iterable[str]:
    spec = item.spec(ServiceSpec)
    return keys_of("network", item, [spec.network] if spec.protocol == "http" else [])


def _secret_of(item: Stored) -> Iterable[str]:
    name = item.spec(ServiceSpec).tls_secret
    return keys_of("secret", item, [name] if name else [])


def _list_waiting(item: Stored) -> Iterable[str]:
    endpoints = item.status(ServiceStatus).endpoints
    return (WAITING,) if any(one.leaves and one.departed_at is None for one in endpoints) else ()


def _selector(obj: Object) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(dig(obj, "spec.selector", {}).items()))


def _ready(obj: Object) -> str:
    """Ready endpoints without those whose place others have: a service of two that were just replaced has two
    endpoints, not four."""
    endpoints = [one for one in dig(obj, "status.endpoints", []) if not one.get("retired")]
    return f"{sum(bool(one.get('ready')) for one in endpoints)}/{len(endpoints) + dig(obj, 'status.more', 0)}"


def _is_served(obj: Object | None) -> bool:
    return is_settled(obj) and read_phase(obj) in ("Ready", "NoEndpoints")


def _describe_end(obj: Object) -> str:
    return "Ready" if read_phase(obj) == "Ready" else "set up"


def _describe_lack(obj: Object) -> str:
    """Say what comes next, where nothing answers at its address yet."""
    if read_phase(obj) == "Ready":
        return ""
    if dig(obj, "status.reason") == "noWorkloads":
        return (
            f"no VM or container has the labels {_selector(obj)} yet, so nothing answers: those that get them become its "
            "endpoints"
        )
    if str(dig(obj, "status.message", "")).endswith(NOT_CHECKED):
        return "its endpoints are asked now whether they are ready"
    return f"nothing answers yet ({dig(obj, 'status.message', '')}): what is ready becomes an endpoint"


SERVICE = Kind(
    name="service",
    plural="services",
    title="service",
    summary="One address for the workloads with some labels",
    spec=ServiceSpec,
    status=ServiceStatus,
    indexes={
        SERVICES_BY_LABEL: _words,
        SERVICES_BY_NETWORK: lambda item: keys_of("network", item, [item.spec(ServiceSpec).network]),
        PROXIED_BY_NETWORK: _network_of_proxied,
        SERVICES_BY_SECRET: _secret_of,
        SERVICES_BY_UID: lambda item: (item.uid,),
        SERVICES_WAITING: _list_waiting,
    },
    references=(
        Reference("network", "spec.network", lambda spec: [spec.network]),
        Reference("secret", "spec.tls_secret", lambda spec: [spec.tls_secret] if spec.tls_secret else []),
    ),
    in_backups="kept",
    access=Access(readers="project", status_writer="services", further_rights_in_project=find_rights_in_workloads),
    admission=Admission(
        check=check_service,
        claims=claim_ports,
        counts=lambda spec, _: Counted({"published_ports": len(spec.publish)}),
        reserved_names=("localhost",),
    ),
    display=Display(
        topic="Storage and networks",
        aliases=("svc",),
        columns=(
            NAME,
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("ADDRESS", text("status.address"), keep=True),
            Column("PORTS", joined("spec.ports")),
            Column("READY", _ready, align="right", keep=True),
            Column("SELECTOR", _selector, flexible=True),
            Column("PUBLISH", joined("spec.publish")),
            AGE,
            Column("NETWORK", text("spec.network"), wide=True),
            Column("PROTOCOL", text("spec.protocol"), wide=True),
            Column("NOTE", note, flexible=True),
        ),
    ),
    lifetime=Lifetime(goals={"create": Goal(_is_served, "Ready", answer=_describe_end, remark=_describe_lack)}),
)
