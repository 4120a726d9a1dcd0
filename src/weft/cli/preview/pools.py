"""What to say of a new disk whose pool nobody offers, or that no pool could ever hold. Neither is an error: a node that offers one
may come later, and a volume waits for it without a word."""

from __future__ import annotations

from collections.abc import Sequence

from weft.cli.session import Session
from weft.kinds.allocation import LOCAL
from weft.kinds.fields.cells import dig
from weft.kinds.pool import POOL
from weft.kinds.record import Object
from weft.kinds.volume import VOLUME
from weft.objects.errors import Forbidden
from weft.objects.quantity import format_bytes

WITH_DISKS = ("vm", "volume")  # in a pool that their spec names


def warn_of_pools(session: Session, made: Sequence[Object]) -> None:
    """Say which of ``made``, new objects as the server has them, can't be placed in their pools as these are now."""
    disks = [obj for obj in made if obj["kind"] in WITH_DISKS and not (_pool(obj) == LOCAL and obj["kind"] == "vm")]
    if not disks:
        return  # a VM shows by its own phase that no node has so large a disk
    try:
        pools = session.client.list(POOL.name).items
    except Forbidden:
        return
    offered = [one for one in pools if dig(one, "status.nodes", 0)]
    for obj in disks:
        if said := _find_lack(obj, offered):
            session.notify(said)


def _pool(obj: Object) -> str:
    return str(dig(obj, "spec.pool") or LOCAL)


def _find_lack(obj: Object, offered: Sequence[Object]) -> str:
    pool, size = _pool(obj), dig(obj, "spec.size", 0)
    most = max((dig(one, "status.bound", 0) for one in offered if dig(one, "marks.pool") == pool), default=None)
    if most is None and pool != LOCAL:
        named = ", ".join(sorted({str(dig(one, "marks.pool")) for one in offered})) or "none"
        return f"no node offers pool {pool} now, so nothing can be placed there; pools that are offered: {named}"
    if obj["kind"] != VOLUME.name or not most or size <= most:
        return ""
    return (
        f"volume/{obj['name']}: {format_bytes(size)} is more than any storage pool {pool} may promise: "
        f"{format_bytes(most)} at most. What uses it stays Pending until a node offers a larger one: weft pool list -o wide"
    )
