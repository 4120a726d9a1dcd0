"""Taints: they keep workloads that don't tolerate them off a node. ``NAME`` or ``NAME=VALUE``. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from weft.objects.errors import InvalidInput

_TAINT = re.compile(r"[a-z0-9](?:[a-z0-9./-]{0,61}[a-z0-9])?(?:=[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
MOST = 16


def check_taints(taints: Sequence[str], path: str) -> None:
    """Raises InvalidInput for one that can't be read, for one named twice, and for too many."""
    for index, taint in enumerate(taints):
        if not _TAINT.fullmatch(taint):
            raise InvalidInput(
                f"{path}[{index}]: {taint[:80]!r} is not a taint",
                field=f"{path}[{index}]",
                hint="write NAME or NAME=VALUE, like batch-only or tenant=blue",
            )
    if len(set(taints)) != len(taints):
        raise InvalidInput(f"{path} names the same taint twice", field=path, hint="name each one once")
    if len(taints) > MOST:
        raise InvalidInput(f"{path}: at most {MOST}", field=path)


def is_tolerated(taint: str, tolerations: Collection[str]) -> bool:
    """Whether a workload with these ``tolerations`` may be placed on a node with ``taint``: ``NAME`` tolerates it whatever its
    value, ``NAME=VALUE`` only with this one."""
    return taint in tolerations or taint.partition("=")[0] in tolerations
