"""Which users of the node a container's users are: a range of 65,536 that no other container here has. Pure, but for
``open_mapping``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
from collections.abc import Collection
from pathlib import Path

from weft.objects.errors import DriverFailed

USERS_EACH = 1 << 16
# Above the users of VMs' machines, below those that systemd calls invalid.
FIRST_USER, RANGES = 0x7800_0000, (0x7F00_0000 - 0x7800_0000) // USERS_EACH
FIRST_INSTANCE_USER, INSTANCE_RANGES = 0x7F00_0000, (0x7FFF_0000 - 0x7F00_0000) // USERS_EACH  # of functions
FEWEST_RANGES = 16


def find_ranges(uid_map: str) -> tuple[int, int]:
    """First user and number of ranges that there are for containers, from /proc/self/uid_map; (0, 0): none."""
    wanted = FIRST_USER + RANGES * USERS_EACH
    for first, _, count in (map(int, line.split()) for line in uid_map.splitlines()):
        if first <= FIRST_USER and wanted <= first + count:
            return FIRST_USER, RANGES
        start = max(first, USERS_EACH)
        if (ranges := (first + count - start) // USERS_EACH) >= FEWEST_RANGES:
            return start, min(ranges, RANGES)
    return 0, 0


def choose_first_user(container_id: str, ranges: tuple[int, int], taken: Collection[int]) -> int:
    """The first user of a range that isn't in ``taken``; the same one each time as long as it is free. Raises DriverFailed."""
    first, count = ranges
    start = int.from_bytes(hashlib.sha256(container_id.encode()).digest()[:8], "big")
    for step in range(count):
        user = first + (start + step) % count * USERS_EACH
        if user not in taken:
            return user
    raise DriverFailed(
        f"all {count} ranges of users for containers are taken on this node",
        hint="run it on another node, or without a user namespace of its own",
        details={"step": "users"},
    )


def open_mapping(first_user: int) -> int:
    """A descriptor of a user namespace in which 0 is ``first_user``, and so on; nobody is in it. Blocks for milliseconds.
    Raises DriverFailed."""
    ours = os.readlink("/proc/self/ns/user")
    words = ["unshare", "--user", "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()  # it is in its namespace
            folder = Path("/proc", str(holder.pid))
            if os.readlink(folder / "ns/user") == ours:
                raise DriverFailed("this kernel makes no user namespaces", details={"step": "users"})
            for name in ("uid_map", "gid_map"):
                (folder / name).write_text(f"0 {first_user} {USERS_EACH}")
            return os.open(folder / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DriverFailed(f"no user namespace for it: {error.strerror}", details={"step": "users"}) from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                holder.kill()


async def open_mapping_aside(first_user: int) -> int:
    return await asyncio.to_thread(open_mapping, first_user)
