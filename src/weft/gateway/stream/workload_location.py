"""Finds a workload's present node, for streams whose node is lost and didn't report where its guest went."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from weft.contracts.store import Store
from weft.gateway.stream.reconnect import WorkloadLocation
from weft.kinds.parts.convert_verb import describe_departure
from weft.kinds.parts.workload import WorkloadMarks
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import WeftError
from weft.objects.identity import Ref, object_key, short_id

log = logging.getLogger("weft.gateway")


class _Placed(msgspec.Struct, frozen=True):
    """The part of a workload's status that names its node."""

    node: str | None = None


class _Allocated(msgspec.Struct, frozen=True):
    """The part of an allocation's spec that names its workload."""

    workload: Ref
    role: str = ""


class WorkloadLocator:
    """Reads ``store``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def find(self, claims: dict[str, Any]) -> WorkloadLocation | None:
        """Find where the workload of a ticket's ``claims`` is; None when it is on no node, or the store doesn't answer. Raises
        IllegalTransition for one that migrated to another cluster."""
        try:
            workload = msgspec.convert(claims.get("workload"), Ref)
            entry = await self._store.get(object_key(workload.kind, workload.project, workload.name))
            found = None if entry is None else decode_envelope(entry.value)
            place = None if found is None else await self._find(workload, found)
        except (WeftError, msgspec.ValidationError) as problem:
            log.debug("where a guest is: %s", problem)
            return None
        where = decode_part(found.marks, WorkloadMarks).departed if found is not None else ""
        if place is None and where:
            raise describe_departure(f"{workload.kind}/{workload.name}", where)
        return place

    async def _find(self, workload: Ref, found: Envelope) -> WorkloadLocation | None:
        name = decode_part(found.status, _Placed).node
        node = None if not name else await self._store.get(object_key("node", None, name))
        if node is None or not name:
            return None
        node_uid = decode_envelope(node.value).uid
        for entry in (await self._store.list(object_key("allocation", None, f"{node_uid}."))).entries:
            envelope = decode_envelope(entry.value)
            spec = decode_part(envelope.spec, _Allocated)
            if spec.workload.uid == workload.uid and spec.role in ("active", "source"):
                return WorkloadLocation(node_uid, envelope.name, short_id(envelope.uid), name)
        return None
