"""Each guest's QEMU runs as a user of its own that owns nothing, can enter no folder of weft's and has no rights. Pure.

Its user's number follows from the guest's id, so nothing is made or kept for it, and no two guests of a machine share one (but
for a chance of one in a hundred million).
"""

from __future__ import annotations

import hashlib

from weft.contracts.driver.layers import MOST_LAYERS
from weft.contracts.driver.runtime import GuestPlan
from weft.objects.errors import DriverFailed

# Between the users that systemd gives to containers and those it calls invalid.
FIRST_USER, USERS = 0x7000_0000, 1 << 27
FIRST_SCARCE_USER, FEWEST_USERS = 20_000, 10_000
OPEN_FILES = 1024
LOCKED_HEADROOM_BYTES = 1 << 30
OPEN_FILES_PER_LAYER = 4  # as the disk's own file, read again when it became a layer, and each of them also in its set
OPEN_FILES_PER_CPU = 32  # with KVM each CPU has a descriptor, and queues of its own in every disk

# A shell enters the groups, and what it becomes never had more rights than QEMU has: so each thread and page counts.
_SCRIPT = (
    'for group in $1; do echo 0 >"$group"; done; ulimit -c 0; ulimit -n "$2"; [ "$3" = 0 ] || ulimit -l "$3"; '
    'shift 3; exec "$@"'
)
_DROP = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]


def find_users(uid_map: str) -> tuple[int, int]:
    """First and count of the user numbers for guests, from /proc/self/uid_map. Raises DriverFailed if there are none."""
    ranges = [(int(first), int(count)) for first, _, count in map(str.split, uid_map.splitlines())]
    for first, count in ranges:
        if first <= FIRST_USER and FIRST_USER + USERS <= first + count:
            return FIRST_USER, USERS
    for first, count in ranges:
        start = max(first, FIRST_SCARCE_USER)
        if first + count - start >= FEWEST_USERS:
            return start, first + count - start
    raise DriverFailed(
        "this user namespace has too few users for guests to have one each",
        hint="give it at least 30,000 (newuidmap), or run the agent outside the namespace",
        details={"step": "probe"},
    )


def choose_user(guest_id: str, users: tuple[int, int]) -> int:
    """The number of the user, and of its group, that this guest's QEMU runs as."""
    first, count = users
    return first + int.from_bytes(hashlib.sha256(guest_id.encode()).digest()[:8], "big") % count


def choose_open_files(plan: GuestPlan) -> int:
    return OPEN_FILES + OPEN_FILES_PER_CPU * plan.vcpus + OPEN_FILES_PER_LAYER * MOST_LAYERS * len(plan.disks)


def choose_locked_bytes(plan: GuestPlan, most_memory_bytes: int) -> int:
    """A device reaches the guest's memory by itself, so all of it must stay where it is; and what QEMU maps besides."""
    return most_memory_bytes + LOCKED_HEADROOM_BYTES if plan.devices else 0


def plan_confined(
    words: list[str], user: int, *, groups: list[str], kvm_group: int | None, open_files: int, locked_bytes: int = 0
) -> list[str]:
    """``words`` as ``user`` without any capability or other group than KVM's, in the control groups whose ``procs``
    files are ``groups``; it may lock ``locked_bytes`` of memory (0: as few as anyone)."""
    also = ["--clear-groups"] if kvm_group is None else ["--groups", str(kvm_group)]
    drop = ["setpriv", "--reuid", str(user), "--regid", str(user), *also, *_DROP]
    return ["/bin/sh", "-c", _SCRIPT, "sh", " ".join(groups), str(open_files), str(locked_bytes >> 10), *drop, *words]
