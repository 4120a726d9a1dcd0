"""Certificates of services on their way out: with their keys, only to a node that has an address in the service's network."""

from __future__ import annotations

import msgspec

from weft.api.admission.certificates import open_certificate
from weft.api.context import ApiContext
from weft.api.node.join import require_own
from weft.api.request.call import Call, json_answer
from weft.api.route import Route
from weft.kinds.endpoint import EndpointSpec, is_egress
from weft.kinds.network import NetworkSpec
from weft.kinds.secret import SECRET, SecretSpec
from weft.kinds.service import SERVICE, ServiceSpec, ServiceStatus
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import Forbidden, InvalidInput, NotFound, Unavailable
from weft.objects.identity import named_key, object_key, split_named
from weft.protocol.report import CertificateInput, OpenedCertificate
from weft.serving.answer import Answer


async def certificate(context: ApiContext, call: Call, name: str) -> Answer:
    """``POST /v1/nodes/{name}:certificate``, by the node itself: what it speaks TLS with for a service."""
    await require_own(context, call, name)
    call.query()
    try:
        asked = msgspec.json.decode(await call.read_body(), type=CertificateInput)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidInput("give project, service and uid") from None
    entry = await context.store.get(object_key(SERVICE.name, asked.project, asked.service))
    service = decode_envelope(entry.value, entry.revision) if entry is not None else None
    if service is None or service.uid != asked.uid:
        raise NotFound(f"project {asked.project[:80]} has no service {asked.service[:80]}")
    status = decode_part(service.status, ServiceStatus)
    await _require_joined(context, call.actor.id, status.network_uid)
    spec = decode_part(service.spec, ServiceSpec)
    if spec.tls_secret:
        return json_answer(await _open(context, service, spec.tls_secret))
    if spec.tls != "generated":
        raise NotFound(f"service {service.name} has no certificate")
    names = await _list_names(context, service, spec, status)
    return json_answer(OpenedCertificate(*context.authority.make_service(names, service.uid)))


async def _require_joined(context: ApiContext, node_uid: str, network_uid: str) -> None:
    """Raise Forbidden unless the node has an address of its own in the network."""
    page = await context.store.list(object_key("endpoint", None, f"{network_uid}."))
    for entry in page.entries if network_uid else ():
        spec = decode_part(decode_envelope(entry.value, entry.revision).spec, EndpointSpec)
        if is_egress(spec) and spec.workload.uid == node_uid:
            return
    raise Forbidden("this node has no address in the service's network")


async def _open(context: ApiContext, service: Envelope, secret: str) -> OpenedCertificate:
    entry = await context.store.get(object_key(SECRET.name, service.project, secret))
    if entry is None:
        raise NotFound(f'secret "{secret}" not found', reason="secretNotFound", hint=f"weft secret create {secret}")
    sealed = decode_part(decode_envelope(entry.value, entry.revision).spec, SecretSpec).sealed
    try:
        chain, key = open_certificate(context, service.project, secret, sealed)
    except KeyError as missing:
        raise NotFound(f'secret "{secret}" has no key {missing}', reason="secretNotFound") from None
    return OpenedCertificate(f"{key.rstrip()}\n{chain.rstrip()}\n")


async def _list_names(context: ApiContext, service: Envelope, spec: ServiceSpec, status: ServiceStatus) -> list[str]:
    """Its names as workloads of its network resolve them, and its address."""
    entry = await context.store.get(named_key("network", service.project, spec.network))
    if entry is None or not status.address:
        raise Unavailable(f"service {service.name} has no address yet", retry_after_seconds=1)
    domain = decode_part(decode_envelope(entry.value, entry.revision).spec, NetworkSpec).domain
    name, network = service.name, split_named(None, spec.network)[1]
    if "/" in spec.network:
        names = [f"{name}.{service.project}.{network}"]
    else:
        names = list(dict.fromkeys([name, f"{name}.{network}", f"{name}.{service.project}"]))
    return [*names, *(f"{one}.{domain}" for one in names), status.address]


ROUTES = (
    Route(
        "POST",
        "/v1/nodes/{name}:certificate",
        certificate,
        "The certificate and key of a service in a network of the node, by the node itself",
        where="nodes",
        takes=CertificateInput,
        answers=OpenedCertificate,
    ),
)
