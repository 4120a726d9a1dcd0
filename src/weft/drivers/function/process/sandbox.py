"""The command line of an instance's sandbox: bubblewrap, as a user of the node that owns nothing. Pure.

Root, code and folders are mounted by then in mounts of the starting thread; the environment may hold secrets, so it goes to
bubblewrap through a descriptor and never onto a command line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from weft.contracts.driver.container import ContainerPlan

PROGRAM = "bwrap"
INSTALL_HINT = "apt-get install bubblewrap"
# As guests of this node have them: between the users that systemd gives to containers and those it calls invalid.
FIRST_USER, USERS = 0x7000_0000, 1 << 27
INSIDE_USER = 1000
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
OPEN_FILES = 1024
SHARED_MEMORY_BYTES = 32 << 20
# A shell enters the groups while it still may; what it becomes never had more rights than the sandbox has.
_ENTER = (
    'for group in $1; do echo 0 >"$group" || exit 125; done; echo 1000 >/proc/self/oom_score_adj; '
    'ulimit -c 0; ulimit -n "$2"; shift 2; exec "$@"'
)
_DROP = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]


def choose_user(instance_id: str) -> int:
    """The node's user for this instance: the same number each time, and another instance's only by a chance of one in 134
    million."""
    return FIRST_USER + int.from_bytes(hashlib.sha256(instance_id.encode()).digest()[:8], "big") % USERS


def plan_entry(groups: Sequence[str], user: int, args_descriptor: int, command: Sequence[str]) -> list[str]:
    """The words to start, as root: into the control groups, out of all rights, into the sandbox, whose own words come by the
    descriptor."""
    drop = ["setpriv", "--reuid", str(user), "--regid", str(user), *_DROP]
    words = ["/bin/sh", "-c", _ENTER, "sh", " ".join(groups), str(OPEN_FILES)]
    return [*words, *drop, "--", PROGRAM, "--args", str(args_descriptor), "--", *command]


def plan_sandbox(plan: ContainerPlan, root: str, filter_descriptor: int) -> list[str]:
    """bubblewrap's own words but for the command, in the order in which it acts. ``root``: where its root is mounted outside."""
    user = plan.process.user
    words = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--uid", str(user.uid), "--gid", str(user.gid), "--hostname", plan.hostname]
    words += ["--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev"]
    words += ["--perms", "1777", "--size", str(SHARED_MEMORY_BYTES), "--tmpfs", "/dev/shm"]
    words += ["--remount-ro", "/dev"]
    for mount in plan.mounts:
        if mount.source:
            words += ["--ro-bind", mount.source, mount.target]
        else:
            words += ["--perms", "1777", "--size", str(mount.size_bytes), "--tmpfs", mount.target]
    words += ["--chdir", plan.process.cwd, "--clearenv", "--new-session", "--cap-drop", "ALL"]
    for word in plan.process.env:
        name, _, value = word.partition("=")
        words += ["--setenv", name, value]
    return [*words, "--seccomp", str(filter_descriptor)]
