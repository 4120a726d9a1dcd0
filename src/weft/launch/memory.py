"""How much of what a process has given back it may keep from the system."""

from __future__ import annotations

import ctypes

# Numbers of <malloc.h>.
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
ARENAS = 2
LARGE_BYTES = 128 << 10


def bound_free_memory() -> None:
    """Let the C library keep little that is free. By itself it makes an arena for each thread, up to eight a core, and takes
    large pieces from them too once one was given back; what is free between two pieces of an arena stays resident. A
    move is carried by up to a dozen threads with large buffers: after 60 moves of one small guest there and back its two
    agents kept 97 and 94 MiB, 80 of them in 15 arenas, and with this 38 and 37. To be called before there are threads;
    without glibc nothing happens."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_ARENA_MAX, ARENAS)
        set_option(_MMAP_THRESHOLD, LARGE_BYTES)  # and not more, whatever is given back: they go to the system at once
