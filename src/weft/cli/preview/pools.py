"""Words about a new disk whose pool nobody offers, or that no pool could ever hold. It is made, for a node that offers one may come
later, and a volume waits for it without a word: one that is larger than what is there ends the command as such a VM does."""

from __future__ import annotations

from collections.abc import Sequence

from weft.cli.command.exit_codes import OK, UNPLACEABLE
from weft.cli.session import Session
from weft.kinds.allocation import LOCAL
from weft.kinds.fields.cells import dig
from weft.kinds.pool import POOL
from weft.kinds.record import Object
from weft.kinds.volume import VOLUME
from weft.objects.errors import Forbidden
from weft.objects.quantity import format_bytes

WITH_DISKS = ("vm", "volume")  # in a pool that their spec names


def warn_of_pools(session: Session, made: Sequence[Object]) -> int:
    """Say which of ``made``, new objects as the server has them, can't be placed in their pools as these are now; the exit code:
    whether one is a volume that is larger than what any may promise."""
    disks = [obj for obj in made if obj["kind"] in WITH_DISKS and not (_pool(obj) == LOCAL and obj["kind"] == "vm")]
    if not disks:
        return OK  # a VM shows by its own phase that no node has so large a disk
    try:
        pools = session.client.list(POOL.name).items
    except Forbidden:
        return OK
    offered = [one for one in pools if dig(one, "status.nodes", 0)]
    code = OK
    for obj in disks:
        if said := _find_absence(obj, offered):
            session.notify(said)
        elif said := _find_excess(obj, offered):
            session.notify(said)
            code = OK if session.detach else UNPLACEABLE
    return code


def _pool(obj: Object) -> str:
    return str(dig(obj, "spec.pool") or LOCAL)


def _list_bounds(obj: Object, offered: Sequence[Object]) -> list[int]:
    return [dig(one, "status.bound", 0) for one in offered if dig(one, "marks.pool") == _pool(obj)]


def _find_absence(obj: Object, offered: Sequence[Object]) -> str:
    if _pool(obj) == LOCAL or _list_bounds(obj, offered):
        return ""
    named = ", ".join(sorted({str(dig(one, "marks.pool")) for one in offered})) or "none"
    return f"no node offers pool {_pool(obj)} now, so nothing can be placed there; pools that are offered: {named}"


def _find_excess(obj: Object, offered: Sequence[Object]) -> str:
    size, most = dig(obj, "spec.size", 0), max(_list_bounds(obj, offered), default=0)
    if obj["kind"] != VOLUME.name or not 0 < most < size:
        return ""
    return (
        f"volume/{obj['name']}: {format_bytes(size)} is more than any storage pool {_pool(obj)} may promise: "
        f"{format_bytes(most)} at most. What uses it stays Pending until a node offers a larger one: weft pool list -o wide"
    )
