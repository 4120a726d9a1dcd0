"""Whereabouts of a workload that the scheduler's decision doesn't mention: at another cluster, or on a node that is silent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.cli.output.local_time import render_time
from weft.cli.session import Session
from weft.kinds.fields.cells import dig
from weft.kinds.node import SILENT_PHASES
from weft.kinds.parts.convert_verb import refuse_fenced
from weft.kinds.parts.workload import OUT_OF_REACH
from weft.objects.errors import IllegalTransition, WeftError


def explain_whereabouts(session: Session, what: str, obj: Mapping[str, Any]) -> str:
    """Explain what keeps people from using it here, and what to do; "" of one that they can use here."""
    try:
        refuse_fenced(dict(obj))
    except IllegalTransition as elsewhere:
        return f"{elsewhere.message}\n{elsewhere.hint}"
    if dig(obj, "status.reason") not in OUT_OF_REACH:
        return ""
    lines = [f"{what} is {dig(obj, 'status.phase')}: {dig(obj, 'status.message')}"]
    node = dig(obj, "status.node", "")
    if since := _find_silence(session, node):
        lines.append(
            f"node {node} has sent no heartbeat since {since}; no change reaches {what} before it does: weft describe node/{node}"
        )
    return "\n".join(lines)


def _find_silence(session: Session, name: str) -> str:
    """Find since when a node has been silent; "" of one that has left, or that people may not see."""
    try:
        node = session.client.get("node", name)
    except WeftError:
        return ""
    since = dig(node, "status.lost_at") or dig(node, "status.since")
    return render_time(since, seconds=True) if since and dig(node, "status.phase") in SILENT_PHASES else ""
