"""A process's limits: how much free memory it may keep, how many descriptors it may have."""

from __future__ import annotations

import ctypes
import resource

# Numbers of <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
ARENAS = 2
LARGE_BYTES = 128 << 10
LARGE_READ_BYTES = 320 << 10  # more than the 256 KiB that uvloop asks for to read from TLS, of which little is needed
SPARE_BYTES = 1 << 20


def bound_free_memory(*, reads_tls: bool = False) -> None:
    """Let the C library keep little that is free. By itself it makes an arena for each thread, up to eight a core, and takes
    large pieces from them too once one was given back; what is free between two pieces of an arena stays resident. A
    migration is carried by up to a dozen threads with large buffers: after 60 migrations of one small guest there and back its two
    agents kept 97 and 94 MiB, 80 of them in 15 arenas, and with this 38 and 37. To be called before there are threads;
    without glibc nothing happens.

    A process that ``reads_tls`` for each of its requests takes the buffers for that from what is free: to get each from
    the system, and to give it back, took 12 µs instead of 1."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_ARENA_MAX, ARENAS)
        # This size, and not more, whatever is given back: larger pieces go to the system at once.
        set_option(_MMAP_THRESHOLD, LARGE_READ_BYTES if reads_tls else LARGE_BYTES)
        if reads_tls:
            set_option(_TRIM_THRESHOLD, SPARE_BYTES)


def raise_descriptor_limit() -> None:
    """Raise the limit as far as the machine lets this process: each connection is a descriptor."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
