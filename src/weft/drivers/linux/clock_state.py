"""Whether a time service keeps this machine's clock, as the kernel says. Source: adjtimex(2)."""

from __future__ import annotations

import ctypes

_TIMEX_BYTES = 208
_TIME_ERROR = 5


def is_synchronized() -> bool | None:
    """None if the kernel doesn't say."""
    state = ctypes.create_string_buffer(2 * _TIMEX_BYTES)  # no modes: it only reads
    answer = ctypes.CDLL(None).adjtimex(state)
    return None if answer < 0 else answer != _TIME_ERROR
