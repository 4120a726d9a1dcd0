"""How long a repeated idempotency key is recognised; see the contract's ``commit``."""

from __future__ import annotations

KEEP_SECONDS = 3_600.0
