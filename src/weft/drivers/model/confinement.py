"""Confinement of the process that runs models, before it reads one: rights, files, network, processes, memory.

Models come from strangers. The libraries are loaded by then; the only descriptors are the socket to the gateway, the one for
errors, and the models' own files. No other can be opened, also after one of these is closed: the limit is 0, and the kernel
refuses the calls. So there is no file, no socket and no thread to have, and as root no network.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence

from weft.contracts.confinement.system_calls import FILES, NETWORK, OTHERS, refuse_calls
from weft.contracts.confinement.unprivileged import drop_privileges, leave_network

MEMORY_BYTES = 1 << 30  # of addresses; the libraries take about 280 MB of them
# Beyond the users of policies (scheduler/own_policies/confine.py); each process has its own, so that none can touch another.
FIRST_USER, USERS = 0x7840_0000, 1 << 22
FIRST_FILE = 3


def confine(parent: int, connection: int, files: Sequence[int]) -> list[int]:
    """Give up all but ``connection``, which becomes descriptor 0, and ``files``, whose new descriptors are returned. ``parent`` is
    the process to die with. Raises OSError."""
    kept = [os.dup(one) for one in (connection, *files)]
    spare = [
        os.open(os.devnull, os.O_RDWR) for _ in range(FIRST_FILE + len(files))
    ]  # none of ``kept`` is below their number
    kept = [os.dup(one) for one in kept]
    os.dup2(kept[0], 0)
    os.dup2(spare[0], 1)
    for at, one in enumerate(kept[1:]):
        os.dup2(one, FIRST_FILE + at)
    end = FIRST_FILE + len(files)
    os.closerange(end, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    leave_network()
    drop_privileges(parent, limits, FIRST_USER + os.getpid() % USERS)
    refuse_calls(FILES, NETWORK, OTHERS)
    return list(range(FIRST_FILE, end))
