"""Programs that work on a whole disk, as e2fsck does: how long one may take, and whether a failure is the disk's fault. Pure."""

from __future__ import annotations

NO_SPACE = "free some space on the node's disk, then try it again"
_NODE_TROUBLE = {  # what programs say, and what to do
    "No space left": NO_SPACE,
    "Disk quota exceeded": NO_SPACE,
    "Input/output error": "the node's disk fails, and its kernel log says how (dmesg); mend that, then try it again",
}
_LEAST_SECONDS = 120.0  # however little there is: of a node with much to do
_SLOWEST = 8 << 20  # bytes in a second


def find_trouble(output: str) -> str | None:
    """Remedy where a program failed because of its node, whatever the disk holds; None: because of what the disk holds."""
    return next((remedy for words, remedy in _NODE_TROUBLE.items() if words in output), None)


def bound_seconds(data_bytes: int, most: float) -> float:
    """How long a program may take for a disk with so much on it: one that hangs holds up what waits for it no longer."""
    return min(most, _LEAST_SECONDS + data_bytes / _SLOWEST)
