"""The range of 65,536 of the node's users that a container's users are: no other container here has it. Pure, but for
``open_mapping``."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
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
_NS_GET_USERNS = 0xB701  # ioctl_ns(2)


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


def choose_first_user(
    container_id: str, ranges: tuple[int, int], taken: Collection[int], before: int | None = None
) -> int:
    """The first user of a range that isn't in ``taken``: the one that it had ``before``, as what else belongs to it may know that
    one, or the same one each time as long as it is free. Raises DriverFailed."""
    first, count = ranges
    if before is not None and before not in taken and first <= before < first + count * USERS_EACH:
        return before
    start = int.from_bytes(hashlib.sha256(container_id.encode()).digest()[:8], "big")
    for step in range(count):
        user = first + (start + step) % count * USERS_EACH
        if user not in taken:
            return user
    raise DriverFailed(
        f"all {count} user id ranges for containers are taken on this node",
        hint="run it on another node, or without a user namespace of its own",
        details={"step": "users"},
    )


def open_mapping(first_user: int, netns: str = "") -> int:
    """A descriptor of a user namespace in which 0 is ``first_user``, and so on; nobody is in it. It is the one that the network
    namespace ``netns`` belongs to, if that has one of its own with no other users: only there do rights over it count. Blocks for
    milliseconds. Raises DriverFailed."""
    try:
        mapping = _join_mapping(netns, first_user) if netns else None
        mapping = _map_users(["unshare", "--user"], first_user) if mapping is None else mapping
    except OSError as error:
        what = f"{error.filename or 'no user namespace for it'}: {error.strerror}"
        raise DriverFailed(what, details={"step": "users"}) from error
    if mapping is None:
        raise DriverFailed("this kernel has no user namespaces", details={"step": "users"})
    return mapping


async def open_mapping_aside(first_user: int, netns: str = "") -> int:
    return await asyncio.to_thread(open_mapping, first_user, netns)


def belongs_to(netns: str, mapping: int) -> bool:
    """Whether the network namespace belongs to that user namespace; "" to none. Raises OSError."""
    if not netns:
        return False
    owner = _open_owner(netns)
    try:
        return os.readlink(f"/proc/self/fd/{owner}") == os.readlink(f"/proc/self/fd/{mapping}")
    finally:
        os.close(owner)


def _open_owner(netns: str) -> int:
    network = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(network, _NS_GET_USERNS)
    finally:
        os.close(network)


def _join_mapping(netns: str, first_user: int) -> int | None:
    owner = _open_owner(netns)
    try:
        return _map_users(["nsenter", "--preserve-credentials", f"--user=/proc/self/fd/{owner}"], first_user, owner)
    finally:
        os.close(owner)


def _map_users(way: list[str], first_user: int, *descriptors: int) -> int | None:
    """Map the user namespace into which the words ``way`` lead a program, if these are its users; None: it is this node's own, or
    has others."""
    ours, wanted = os.readlink("/proc/self/ns/user"), ["0", str(first_user), str(USERS_EACH)]
    words = [*way, "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=descriptors
    ) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()  # it is in its namespace
            folder = Path("/proc", str(holder.pid))
            if os.readlink(folder / "ns/user") == ours:
                return None
            for name in ("uid_map", "gid_map"):
                if not (held := (folder / name).read_text().split()):
                    (folder / name).write_text(" ".join(wanted))
                elif held != wanted:
                    return None
            return os.open(folder / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            with contextlib.suppress(ProcessLookupError):
                holder.kill()
