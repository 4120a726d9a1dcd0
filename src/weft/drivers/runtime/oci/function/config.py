"""An instance as an OCI runtime configuration (config.json). Pure. Source: the OCI runtime specification 1.0.

Its network is that of the thread which starts the runtime, and its limits are those of a control group around the one named here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from weft.drivers.runtime.oci.translate import MASKED_PATHS, OPEN_FILES, READ_ONLY_PATHS
from weft.drivers.runtime.oci.user_namespace import USERS_EACH

SHARED_MEMORY_BYTES = 32 << 20
_TIGHT = ["nosuid", "noexec", "nodev"]


class Inside(msgspec.Struct, frozen=True):
    """``root`` and ``code`` (may be ""): where they are mounted; ``user`` uid and gid inside; ``first_user`` the node's user that
    is root inside; ``cgroup`` below each controller's mount; ``seccomp`` as linux.seccomp."""

    root: str
    code: str
    hostname: str
    scratch: int
    command: Sequence[str]
    env: Mapping[str, str]
    workdir: str
    user: tuple[int, int]
    first_user: int
    cgroup: str
    seccomp: dict[str, Any]


def translate_instance(inside: Inside) -> dict[str, Any]:
    mapping = [{"containerID": 0, "hostID": inside.first_user, "size": USERS_EACH}]
    kinds = ("pid", "ipc", "uts", "mount", "cgroup", "user")  # and no network: it stays in the one where it is started
    uid, gid = inside.user
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": uid, "gid": gid},
            "args": list(inside.command),
            "env": [f"{name}={value}" for name, value in inside.env.items()],
            "cwd": inside.workdir or "/",
            "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")},
            "rlimits": [_limit("NOFILE", OPEN_FILES), _limit("CORE", 0)],
            "noNewPrivileges": True,
            "oomScoreAdj": 1000,
        },
        "root": {"path": inside.root, "readonly": True},
        "hostname": inside.hostname,
        "mounts": _mounts(inside),
        "linux": {
            "namespaces": [{"type": kind} for kind in kinds],
            "uidMappings": mapping,
            "gidMappings": mapping,
            "cgroupsPath": f"/{inside.cgroup.strip('/')}",
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READ_ONLY_PATHS,
            "seccomp": inside.seccomp,
            "rootfsPropagation": "private",
        },
    }


def _mounts(inside: Inside) -> list[dict[str, Any]]:
    found = [
        _mount("/proc", "proc", "proc", _TIGHT),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "noexec", "mode=755", "size=64k"]),
        _mount("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        _mount("/dev/shm", "tmpfs", "shm", [*_TIGHT, "mode=1777", f"size={SHARED_MEMORY_BYTES}"]),
        _mount("/tmp", "tmpfs", "tmpfs", ["nosuid", "nodev", "mode=1777", f"size={max(1 << 20, inside.scratch)}"]),
    ]
    if inside.code:
        found.append(_mount("/var/task", "bind", inside.code, ["bind", "ro", "nosuid", "nodev"]))
    return found


def _limit(name: str, most: int) -> dict[str, Any]:
    return {"type": f"RLIMIT_{name}", "soft": most, "hard": most}


def _mount(target: str, kind: str, source: str, options: Sequence[str]) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}
