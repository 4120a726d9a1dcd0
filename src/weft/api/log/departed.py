"""Find the log of a deleted workload: which node still has it, and whether it is the asker's project's."""

from __future__ import annotations

import asyncio
from typing import Any

from weft.api.admission.refusals import not_found
from weft.api.context import ApiContext
from weft.api.request.target import Target
from weft.objects.envelope import decode_envelope
from weft.objects.errors import StoreUnavailable
from weft.objects.identity import object_key


async def claim_departed(context: ApiContext, target: Target) -> dict[str, Any]:
    """The claims of a ticket for the log of the newest deleted workload with this name, whose bearer may read logs in its project
    now. Raises NotFound, also for one of an earlier project with the name."""
    kind, name, log = target.kind, target.require_name(), context.server_log
    what = f"{kind.name}/{target.project or '-'}/{name}"
    try:
        found = await asyncio.to_thread(log.find_departed, what) if log is not None else None
    except OSError as problem:
        raise StoreUnavailable(f"the record of deleted workloads can't be read: {problem}") from None
    project = await context.store.get(object_key("project", None, target.project or ""))
    since = decode_envelope(project.value).created_at if project is not None else float("inf")
    if found is None or found.at < since:
        raise not_found(kind, name, target.project)
    return {"node_uid": found.node_uid, "log": {"uid": found.uid, "what": what}}
