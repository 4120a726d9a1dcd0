"""The samples of requests to services, from what nodes' proxies count. Pure.

A node may lie: it counts only for services in networks in which it has an address, and for their endpoints."""

from __future__ import annotations

from collections.abc import Iterator

from weft.informer.view import Item, View
from weft.kinds.endpoint import ENDPOINTS_BY_WORKLOAD, EndpointSpec
from weft.kinds.service import SERVICES_BY_UID, ServiceStatus
from weft.protocol.heartbeat import ANSWERS, MOST_REQUESTED, Digest
from weft.telemetry.metrics.sample import Sample

REQUESTS, SECONDS = "weft_service_requests_total", "weft_service_response_seconds"
MOST_SECONDS = 3600.0


def list_requests(view: View, node: Item, digest: Digest, at: int) -> Iterator[Sample]:
    """Yield the counts of requests, ``at`` in ms. A class of which there was no answer has a 0 where others have some: its first is
    an increase, too.
    """
    if not digest.requests:
        return
    networks = {item.spec(EndpointSpec).network_uid for item in view.find(ENDPOINTS_BY_WORKLOAD, node.uid)}
    left = MOST_REQUESTED
    for uid, counted in digest.requests.items():
        service = next(iter(view.find(SERVICES_BY_UID, uid)), None)
        if service is None or service.status(ServiceStatus).network_uid not in networks:
            continue
        for endpoint in service.status(ServiceStatus).endpoints:
            counts = counted.get(endpoint.address)
            if counts is None or not endpoint.address or left == 0:
                continue
            left -= 1
            every = (
                ("project", service.envelope.project or ""),
                ("service", service.envelope.name),
                ("workload", f"{endpoint.workload.kind}/{endpoint.workload.name}"),
                ("revision", endpoint.revision),
                ("node", node.envelope.name),
            )
            labels = tuple(label for label in every if label[1])
            for name, number in zip(ANSWERS, counts.answers, strict=False):
                yield Sample(REQUESTS, (*labels, ("code_class", name)), at, float(number))
            if 0.0 <= counts.seconds < MOST_SECONDS:
                yield Sample(SECONDS, labels, at, counts.seconds)
