"""A system call profile as the program that the kernel runs, made by libseccomp, for sandboxes that take one by descriptor.

Reads nothing; the profile is that of ``seccomp.py``, and leaves out kinds of sockets that no namespace holds: vsock reaches the
machine's own hypervisor from anywhere.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from weft.objects.errors import DriverFailed

INSTALL_HINT = "apt-get install libseccomp2"
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_EPERM = 1
_OF_OTHERS = ("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp")


class _Compare(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def tighten(seccomp: dict[str, Any]) -> dict[str, Any]:
    """Pure. ``linux.seccomp`` of an OCI configuration as functions get it: sockets of four families only, those of a network
    namespace, and no hand in other processes."""
    held = {"socket", *_OF_OTHERS}
    rules = [rule | {"names": [name for name in rule["names"] if name not in held]} for rule in seccomp["syscalls"]]
    rules = [rule for rule in rules if rule["names"]]
    rules.append({"names": list(_OF_OTHERS), "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM})
    for family in (_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK):
        args = [{"index": 0, "value": family, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]
        rules.append({"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": args})
    return seccomp | {"syscalls": rules}


def compile_filter(seccomp: dict[str, Any]) -> bytes:
    """``linux.seccomp`` of an OCI configuration as struct sock_filter[], for this machine's own system calls; those of other
    architectures kill. Raises DriverFailed."""
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        raise DriverFailed("libseccomp is not installed", hint=INSTALL_HINT, details={"step": "seccomp"}) from None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Compare),
    ]
    otherwise = _action(seccomp["defaultAction"], seccomp.get("defaultErrnoRet"))
    context = library.seccomp_init(otherwise)
    if not context:
        raise _failed("it can't be initialised")
    try:
        for rule in seccomp["syscalls"]:
            action = _action(rule["action"], rule.get("errnoRet"))
            if action == otherwise:
                continue
            compares = (_Compare * 6)()
            args = rule.get("args") or []
            for place, arg in enumerate(args):
                compares[place] = _Compare(arg["index"], _OPERATORS[arg["op"]], arg["value"], arg.get("valueTwo") or 0)
            for name in rule["names"]:
                number = library.seccomp_syscall_resolve_name(name.encode())
                if number < 0:  # not a call of this machine
                    continue
                if (code := library.seccomp_rule_add_array(context, action, number, len(args), compares)) < 0:
                    raise _failed(f"rule for {name}: {os.strerror(-code)}")
        out = os.memfd_create("seccomp")
        try:
            if (code := library.seccomp_export_bpf(context, out)) < 0:
                raise _failed(os.strerror(-code))
            return os.pread(out, os.fstat(out).st_size, 0)
        finally:
            os.close(out)
    finally:
        library.seccomp_release(context)


def _action(name: str, number: int | None) -> int:
    if name == "SCMP_ACT_ALLOW":
        return _ALLOW
    if name == "SCMP_ACT_ERRNO":
        return _ERRNO | (_EPERM if number is None else number)
    if name in ("SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS"):
        return _KILL_PROCESS
    raise _failed(f"the profile has the action {name}")


def _failed(what: str) -> DriverFailed:
    return DriverFailed(f"the system call filter can't be made: {what}", details={"step": "seccomp"})
