"""Choose where single files of a backup are read: on a node that is Ready; with the claims it has a ticket for the repository's
key."""

from __future__ import annotations

from typing import Any

import msgspec

from weft.api.context import ApiContext
from weft.kinds.backup import BackupSpec, BackupStatus, id_in_repository
from weft.kinds.backup_repository import BACKUP_REPOSITORY, BackupRepositorySpec, BackupRepositoryStatus
from weft.kinds.node import NodeReport, NodeStatus
from weft.kinds.parts.snapshot.from_backup import require_ready
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import NotFound, Unavailable
from weft.objects.identity import kind_prefix, object_key
from weft.protocol.claims import ClaimedRepository
from weft.trust.tickets import sign_repository_ticket


async def claim_backup(context: ApiContext, backup: Envelope) -> dict[str, Any]:
    """The claims of a stream on it. Raises IllegalTransition, NotFound, Unavailable."""
    require_ready(msgspec.json.decode(msgspec.json.encode(backup)), "read")
    spec = decode_part(backup.spec, BackupSpec)
    entry = await context.store.get(object_key(BACKUP_REPOSITORY.name, None, spec.to))
    if entry is None:
        raise NotFound(f"backup repository {spec.to} not found", hint="weft backuprepository list")
    claims = await claim_repository(
        context, decode_envelope(entry.value), decode_part(backup.status, BackupStatus).node
    )
    return {**claims, "guest_id": id_in_repository(backup.uid, spec)}


async def claim_repository(context: ApiContext, repository: Envelope, first: str = "") -> dict[str, Any]:
    """The claims of a stream on what is in it, by the node ``first`` if that is Ready. Raises Unavailable."""
    name, node_uid = repository.name, await _find_node(context, first)
    ticket = sign_repository_ticket(context.settings.ticket_key, name, node_uid, context.clock.now())
    claimed = ClaimedRepository(
        name=name,
        url=decode_part(repository.spec, BackupRepositorySpec).url,
        id=decode_part(repository.status, BackupRepositoryStatus).id,
        ticket=ticket,
    )
    return {"node_uid": node_uid, "repository": msgspec.to_builtins(claimed)}


async def _find_node(context: ApiContext, first: str) -> str:
    """The uid of a node that is Ready and has storage: ``first`` if that is."""
    page = await context.store.list(kind_prefix("node"))
    nodes = [decode_envelope(entry.value, entry.revision) for entry in page.entries]
    ready = [
        node
        for node in nodes
        if decode_part(node.status, NodeStatus).phase == "Ready" and decode_part(node.report, NodeReport).pools
    ]
    if not ready:
        raise Unavailable(
            "no node is ready to read the backup", reason="agentServiceUnavailable", hint="weft node list"
        )
    return min(ready, key=lambda node: (node.name != first, node.name)).uid
