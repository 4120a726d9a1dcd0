"""Report of a node on a guest that its cluster has it guard, beside why it can't."""

from __future__ import annotations

READY = "ready"  # it can end the guest in time, and its stamps come back
HELD = "held"  # it ends the guest once they come back no more
