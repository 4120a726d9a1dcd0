"""The API server's own metrics, for a Prometheus that scrapes ``GET /metrics`` with a token: requests, nodes, the process."""

from __future__ import annotations

from collections.abc import Iterator

from weft import __version__
from weft.api.auth.authorise import require_permission
from weft.api.context import ApiContext
from weft.api.metrics.query import PERMISSION
from weft.api.request.call import Call
from weft.api.route import Route
from weft.protocol.heartbeat import LEASE_PREFIX, Digest, read_digest, total
from weft.serving.answer import Answer
from weft.telemetry.metrics.exposition import MEDIA_TYPE, Family, list_process, one, render_metrics


async def show_own(context: ApiContext, call: Call) -> Answer:
    """``GET /metrics``. It takes the permission to read metrics in all projects."""
    require_permission(call.actor, PERMISSION, None, "read the server's metrics")
    call.query()
    leases = await context.store.leases(LEASE_PREFIX, digests=True)
    digests = [digest for lease in leases if (digest := read_digest(lease.digest)) is not None]
    families = [*_list_own(context), *_list_nodes(len(leases), digests), *list_process()]
    return Answer(200, render_metrics(families), (("content-type", MEDIA_TYPE),))


def _list_own(context: ApiContext) -> Iterator[Family]:
    yield Family("weft_build_info", "Version of weft", {(("version", __version__),): 1})
    counted = context.requests
    yield Family(
        "weft_api_requests_total",
        "Answered requests",
        {(("method", method), ("code", f"{code}")): count for (method, code), count in sorted(counted.by_code.items())},
    )
    yield one("weft_api_request_seconds_total", "Time that answers took, all together", counted.seconds)
    yield one("weft_api_busy_requests", "Requests in hand, without streams", context.busy)
    yield one("weft_api_streams", "Open watches and streams of events", len(context.streams))


def _list_nodes(reporting: int, digests: list[Digest]) -> Iterator[Family]:
    measured = [digest for digest in digests if digest.measured]
    uses = [total(digest) for digest in measured]
    yield one("weft_nodes_reporting", "Nodes with a heartbeat in the last 30 seconds", reporting)
    yield one("weft_nodes_measuring", "Nodes that report what their guests use", len(measured))
    yield one("weft_guests", "Guests on these nodes", sum(len(digest.guests) for digest in measured))
    yield one("weft_used_cpu_cores", "Cores that guests use", sum(use.cpu for use in uses) / 1000)
    yield one("weft_used_memory_bytes", "Memory that guests use", sum(use.memory for use in uses))
    yield one("weft_used_disk_bytes", "Disk space that guests use", sum(use.disk for use in uses))


ROUTES = (
    Route(
        "GET",
        "/metrics",
        show_own,
        "The API server's own metrics, as text for Prometheus",
        permission=PERMISSION,
        where="all",
        answers={"type": "string"},
        media_type="text/plain",
    ),
)
