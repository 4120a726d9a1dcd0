"""The instances of a deployment: their names, and the labels that say whose they are."""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST_NAME = 45  # so that NAME-REVISION-SLOT-TRY is a name
DEPLOYMENT_LABEL, REVISION_LABEL, DRAINING_LABEL = "weft/deployment", "weft/revision", "weft/draining"
PARKED_LABEL = "weft/parked"  # of an adopted VM that its deployment has stopped, as a new one has taken its place
OWN_LABELS = "weft/"
_INSTANCE = re.compile(r"-([1-9][0-9]{0,5})-([0-9]{1,3})(?:-([1-9][0-9]{0,4}))?")


def instance_name(deployment: str, revision: int, slot: int, attempt: int = 1) -> str:
    """``web-2-0``; a later try of it ``web-2-0-2``."""
    return f"{deployment}-{revision}-{slot}" + (f"-{attempt}" if attempt > 1 else "")


def read_instance_name(deployment: str, name: str) -> tuple[int, int, int] | None:
    """Revision, slot and try; None if it isn't named as one of the deployment's."""
    if not name.startswith(f"{deployment}-"):
        return None
    match = _INSTANCE.fullmatch(name[len(deployment) :])
    if match is None:
        return None
    found = int(match[1]), int(match[2]), int(match[3] or 1)
    return found if instance_name(deployment, *found) == name else None


def list_kept(adopt: str, instances: Iterable[str]) -> set[str]:
    """The names of VMs that no rollout deletes, nor the deployment's end: the adopted one, and those that revisions name."""
    return {adopt, *instances} - {""}


def count_instances(number: int) -> str:
    """``1 instance``, ``3 instances``"""
    return f"{number} instance" + ("" if number == 1 else "s")
