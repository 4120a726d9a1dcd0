"""Asks the server where a workload is now: for streams whose node is lost, and doesn't say itself where its guest went."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from weft.client.api import Client
from weft.gateway.stream.reconnect import WorkloadLocation
from weft.objects.errors import WeftError
from weft.objects.identity import short_id

log = logging.getLogger("weft.gateway")


class _Workload(msgspec.Struct, frozen=True):
    """What a ticket says of whose stream it opens."""

    kind: str
    name: str
    uid: str
    project: str | None = None


class WorkloadLocator:
    """``connect`` gives a client (anew after a refusal: its token may have changed)."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect

    async def find(self, claims: dict[str, Any]) -> WorkloadLocation | None:
        """Where the workload of ``claims`` is; None when it is nowhere, or nobody can tell now."""
        try:
            workload = msgspec.convert(claims.get("workload"), _Workload)
            return await asyncio.to_thread(self._ask, workload)
        except (WeftError, OSError, msgspec.ValidationError) as problem:
            log.debug("where a guest is: %s", problem)
            return None

    def _ask(self, workload: _Workload) -> WorkloadLocation | None:
        client = self._connect()
        try:
            status = client.get(workload.kind, workload.name, project=workload.project).get("status") or {}
            if not status.get("node"):
                return None
            node_uid = str(client.get("node", str(status["node"]))["uid"])
            for found in client.list("allocation", query={"node": node_uid}).items:
                spec = found["spec"]
                if spec["workload"].get("uid") == workload.uid and spec["role"] in ("active", "source"):
                    return WorkloadLocation(
                        node_uid, str(found["name"]), short_id(str(found["uid"])), str(status["node"])
                    )
            return None
        finally:
            client.close()
