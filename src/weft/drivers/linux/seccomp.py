"""The system calls that a container may make: the profile that Debian's containers-common keeps, which podman and others use,
for this machine and the container's capabilities; but no namespaces, mounts or keys of its own, which that profile leaves to
containers within containers, and which is where most of the kernel's holes were; and of sockets only those of networks and files.
vsock leads past every network namespace to what runs this machine. (A 32-bit program's ``socketcall`` has its arguments in memory,
where no filter sees them.) Pure, but for ``read_profile``.

Its format is containers-common's: rules with ``includes`` and ``excludes`` (capabilities, architectures).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from weft.objects.errors import DriverFailed

PROFILE = Path("/usr/share/containers/seccomp.json")
INSTALL_HINT = "apt-get install golang-github-containers-common"
_ARCHITECTURES = {"x86_64": ("SCMP_ARCH_X86_64", "amd64"), "aarch64": ("SCMP_ARCH_AARCH64", "arm64")}

_ADMIN = "CAP_SYS_ADMIN"
_KEPT_BACK = {
    *(
        "add_key",
        "keyctl",
        "request_key",
        "userfaultfd",
        "unshare",
        "setns",
        "pivot_root",
        "mount",
        "umount",
        "umount2",
    ),
    *("fsconfig", "fsmount", "fsopen", "fspick", "mount_setattr", "move_mount", "open_tree"),
}
_NEW_NAMESPACES = 0x7E02_0000  # the flags of clone(2) that make some
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97
_NETLINK, _PACKET = 16, 17  # socket families: below are UNIX, IPv4, IPv6; above are vsock, the kernel's ciphers, buses


class Condition(msgspec.Struct, frozen=True):
    caps: list[str] = []
    arches: list[str] = []
    minKernel: str = ""


class SyscallRule(msgspec.Struct, frozen=True):
    names: list[str]
    action: str
    args: list[dict[str, Any]] | None = None
    includes: Condition = Condition()
    excludes: Condition = Condition()
    errnoRet: int | None = None


class Architecture(msgspec.Struct, frozen=True):
    architecture: str
    subArchitectures: list[str] | None = None


class Profile(msgspec.Struct, frozen=True):
    defaultAction: str
    archMap: list[Architecture]
    syscalls: list[SyscallRule]
    defaultErrnoRet: int | None = None


def read_profile(path: Path = PROFILE) -> Profile:
    """Raises DriverFailed where there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Profile)
    except FileNotFoundError:
        raise DriverFailed(f"{path} is missing: {INSTALL_HINT}", details={"step": "seccomp"}) from None
    except (OSError, msgspec.DecodeError) as error:
        raise DriverFailed(f"{path}: {error}", hint=INSTALL_HINT, details={"step": "seccomp"}) from error


def translate_seccomp(profile: Profile, machine: str, capabilities: Collection[str]) -> dict[str, Any]:
    """``linux.seccomp`` of an OCI configuration; ``machine`` as uname has it. Raises DriverFailed for one it doesn't know."""
    if machine not in _ARCHITECTURES:
        raise DriverFailed(f"no system call profile for {machine}", details={"step": "seccomp"})
    main, short = _ARCHITECTURES[machine]
    others = [sub for known in profile.archMap if known.architecture == main for sub in known.subArchitectures or []]
    rules = [_translate(rule) for rule in profile.syscalls if _applies(rule, short, set(capabilities))]
    if _ADMIN not in capabilities:
        rules = _keep_to_networks(_keep_back(rules))
    translated: dict[str, Any] = {
        "defaultAction": profile.defaultAction,
        "architectures": [main, *others],
        "syscalls": rules,
    }
    if profile.defaultErrnoRet is not None:
        translated["defaultErrnoRet"] = profile.defaultErrnoRet
    return translated


def _keep_back(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Threads and processes stay allowed. clone3, whose flags are in memory, is reported as absent: C libraries then use
    clone."""
    held = {*_KEPT_BACK, "clone", "clone3"}
    kept = [rule | {"names": [name for name in rule["names"] if name not in held]} for rule in rules]
    flags = {"index": 0, "value": _NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    return [
        *(rule for rule in kept if rule["names"]),
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [flags]},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
        {"names": sorted(_KEPT_BACK), "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM},
    ]


def _keep_to_networks(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``rules``, in which a socket is allowed whatever its family, or whatever its protocol but for one of netlink's."""
    sockets = [rule for rule in rules if "socket" in rule["names"] and rule["action"] == "SCMP_ACT_ALLOW"]
    if not sockets:
        return rules
    protocol = [arg for rule in sockets for arg in rule.get("args", ()) if arg["index"] == 2][:1]
    below, exactly, above = (_family(op) for op in ("LT", "EQ", "GT"))
    others = [
        rule | {"names": [n for n in rule["names"] if n != "socket"]} if rule in sockets else rule for rule in rules
    ]
    return [
        *(
            rule for rule in others if rule["names"]
        ),  # first, with its refusals: libseccomp takes them in no other order
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [below]},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [exactly, *protocol]},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [exactly | {"value": _PACKET}]},
        {
            "names": ["socket"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": _EAFNOSUPPORT,
            "args": [above | {"value": _PACKET}],
        },
    ]


def _family(op: str) -> dict[str, Any]:
    return {"index": 0, "value": _NETLINK, "valueTwo": 0, "op": f"SCMP_CMP_{op}"}


def _applies(rule: SyscallRule, architecture: str, capabilities: set[str]) -> bool:
    includes, excludes = rule.includes, rule.excludes
    if includes.arches and architecture not in includes.arches:
        return False
    if architecture in excludes.arches:
        return False
    return set(includes.caps) <= capabilities and not capabilities.intersection(excludes.caps)


def _translate(rule: SyscallRule) -> dict[str, Any]:
    translated: dict[str, Any] = {"names": rule.names, "action": rule.action}
    if rule.args:
        translated["args"] = rule.args
    if rule.errnoRet is not None:
        translated["errnoRet"] = rule.errnoRet
    return translated
