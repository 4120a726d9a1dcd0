"""The store's own log after a history: each change that was acknowledged is in it once, and no commit passes the quota. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from tests.history.clients import FIRST, PROJECT, Told
from weft.contracts.store import Batch, Change
from weft.kinds.quota import QuotaSpec
from weft.kinds.vm import VmSpec
from weft.objects.envelope import decode_envelope, decode_part


def find_wrong_commits(batches: Sequence[Batch], told: Iterable[Told]) -> list[str]:
    """What the log shows that must not be; the log begins before the first change."""
    made = Counter(mark for batch in batches for change in batch.changes if (mark := _read_mark(change)))
    found = [f"the change {mark} was made {count} times" for mark, count in made.items() if count > 1]
    for one in told:
        if one.done and not made[one.mark]:
            found.append(f"the change {one.mark} was acknowledged and is lost")
        if one.done is False and made[one.mark]:
            found.append(f"the change {one.mark} was refused and made")
    return [*found, *_find_passed(batches)]


def _read_mark(change: Change) -> str | None:
    """The mark of who made this change, if it is one of a client's."""
    if change.value is None:
        return None
    mark = decode_envelope(change.value).labels.get("by")
    former = decode_envelope(change.previous).labels.get("by") if change.previous is not None else None
    return mark if mark not in (former, FIRST) else None


def _find_passed(batches: Sequence[Batch]) -> Iterator[str]:
    cpu: dict[str, float] = {}
    limit = 0.0
    for batch in batches:
        before = sum(cpu.values())
        for change in batch.changes:
            if change.key.startswith(f"/vm/{PROJECT}/") and change.value is not None:
                cpu[change.key] = decode_part(decode_envelope(change.value).spec, VmSpec).cpu
            elif change.key.startswith(f"/quota/{PROJECT}/") and change.value is not None:
                limit = decode_part(decode_envelope(change.value).spec, QuotaSpec).cpu or 0.0
        if sum(cpu.values()) > max(before, limit):
            yield f"revision {batch.revision}: project {PROJECT} has {sum(cpu.values()):g} cores of {limit:g}"
