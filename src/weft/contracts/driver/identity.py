"""The identity that makes a copied machine another one. A copy begins as its original in all respects.

Before anything of it reaches the network it gets this, a clock that is right, fresh randomness and SSH host keys of its own; the
driver draws the randomness, anew for each start. Two things stay as they were in a copy that goes on from memory: the kernel's
boot id, and what programs that run have already drawn from the kernel's randomness. Both end with its next boot.
"""

from __future__ import annotations

import msgspec


class Identity(msgspec.Struct, frozen=True):
    hostname: str
    machine_id: str  # 32 hexadecimal digits
