"""What makes a machine that was copied another one: its name, its ids and its randomness.

A copy begins as its original in all respects. Before anything of it reaches the network it gets these, and makes SSH host keys
of its own. Two things stay as they were in a copy that goes on from memory: the kernel's boot id, and what programs that run
have already drawn from the kernel's randomness; both end with its next boot.
"""

from __future__ import annotations

import msgspec

SEED_BYTES = 32


class Identity(msgspec.Struct, frozen=True):
    hostname: str
    machine_id: str  # 32 hexadecimal digits
    seed: bytes  # 32 random bytes for its kernel; a fresh draw for each start
