"""Takes system calls from this process for good: what opens files, reaches the network, or touches other processes.

A list of what is refused, not of what is allowed: libraries need others with each version, and none of them needs what is here
once its work has begun. Limits and users forbid most of this, too.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping, Sequence

# By architecture: its number in the audit subsystem, and the numbers of the calls. A call that one of them lacks is left out.
_AUDITED = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
FILES: Mapping[str, Mapping[str, int]] = {
    "x86_64": {
        "open": 2, "creat": 85, "openat": 257, "openat2": 437, "open_by_handle_at": 304, "memfd_create": 319, "truncate": 76,
        "rename": 82, "renameat": 264, "renameat2": 316, "link": 86, "linkat": 265, "symlink": 88, "symlinkat": 266,
        "unlink": 87, "unlinkat": 263, "mkdir": 83, "mkdirat": 258, "rmdir": 84, "mknod": 133, "mknodat": 259,
        "chmod": 90, "fchmodat": 268, "chown": 92, "lchown": 94, "fchownat": 260,
        "setxattr": 188, "lsetxattr": 189, "utimensat": 280,
    },
    "aarch64": {
        "openat": 56, "openat2": 437, "open_by_handle_at": 265, "memfd_create": 279, "truncate": 45,
        "renameat": 38, "renameat2": 276, "linkat": 37, "symlinkat": 36,
        "unlinkat": 35, "mkdirat": 34, "mknodat": 33, "fchmodat": 53, "fchownat": 54,
        "setxattr": 5, "lsetxattr": 6, "utimensat": 88,
    },
}  # fmt: skip
NETWORK: Mapping[str, Mapping[str, int]] = {
    "x86_64": {"socket": 41, "socketpair": 53, "connect": 42, "bind": 49, "listen": 50, "accept": 43, "accept4": 288},
    "aarch64": {
        "socket": 198,
        "socketpair": 199,
        "connect": 203,
        "bind": 200,
        "listen": 201,
        "accept": 202,
        "accept4": 242,
    },
}
PROGRAMS: Mapping[str, Mapping[str, int]] = {
    "x86_64": {"execve": 59, "execveat": 322},
    "aarch64": {"execve": 221, "execveat": 281},
}
PEERS: Mapping[str, Mapping[str, int]] = {  # other processes and the kernel itself
    "x86_64": {
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311,
        "pidfd_open": 434, "pidfd_getfd": 438, "pidfd_send_signal": 424, "tkill": 200, "process_mrelease": 448,
        "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "bpf": 321, "perf_event_open": 298,
        "userfaultfd": 323, "keyctl": 250, "add_key": 248, "request_key": 249,
        "unshare": 272, "setns": 308, "mount": 165, "chroot": 161,
        "shmget": 29, "semget": 64, "msgget": 68,  # what they make outlives the process
    },
    "aarch64": {
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271,
        "pidfd_open": 434, "pidfd_getfd": 438, "pidfd_send_signal": 424, "tkill": 130, "process_mrelease": 448,
        "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "bpf": 280, "perf_event_open": 241,
        "userfaultfd": 282, "keyctl": 219, "add_key": 217, "request_key": 218,
        "unshare": 97, "setns": 268, "mount": 40, "chroot": 51,
        "shmget": 194, "semget": 190, "msgget": 186,
    },
}  # fmt: skip
OTHERS = {machine: {**PROGRAMS[machine], **calls} for machine, calls in PEERS.items()}
# Signals, of which a process may send some to itself: abort() does. prlimit64 can end others by their limits, and has 0 for itself.
SIGNALS: Mapping[str, Mapping[str, int]] = {
    "x86_64": {"kill": 62, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297},
    "aarch64": {"kill": 129, "tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240},
}
LIMITS: Mapping[str, Mapping[str, int]] = {"x86_64": {"prlimit64": 302}, "aarch64": {"prlimit64": 261}}
# What makes a descriptor send a signal to somebody when it has data: F_SETOWN, F_SETSIG, F_SETOWN_EX, FIOSETOWN, SIOCSPGRP.
CONTROL: Mapping[str, Mapping[str, int]] = {"x86_64": {"fcntl": 72, "ioctl": 16}, "aarch64": {"fcntl": 25, "ioctl": 29}}
_OWNERS = (8, 10, 15, 0x8901, 0x8902)
_NO_NEW_PRIVILEGES, _SET_FILTER, _MODE_FILTER = 38, 22, 2  # prctl(2)
_LOAD, _JUMP_EQUAL, _JUMP_FROM, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF_0000, 0x0005_0001, 0x8000_0000  # refused with EPERM
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT, _SECOND_ARGUMENT_AT = 0, 4, 16, 24  # in struct seccomp_data
_UNIX = 1  # AF_UNIX
_OTHER_TABLE = 0x4000_0000  # x32's calls of x86_64, which have other numbers


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def refuse_calls(*groups: Mapping[str, Mapping[str, int]], unix_sockets: bool = False) -> None:
    """Refuse those calls to this process and its children, for ever, and signals to others, also to those of its own user; if
    ``unix_sockets``, also sockets of that family, which no network namespace holds. On an architecture that isn't known here
    nothing is refused. Raises OSError."""
    machine = os.uname().machine
    if machine not in _AUDITED:
        return
    program = write_filter(machine, os.getpid(), [group[machine] for group in groups], unix_sockets=unix_sockets)
    text = ctypes.create_string_buffer(program, len(program))
    given = _Program(len(program) // 8, ctypes.addressof(text))
    libc = ctypes.CDLL(None, use_errno=True)
    for words in ((_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SET_FILTER, _MODE_FILTER, ctypes.byref(given), 0, 0)):
        if libc.prctl(*words) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def write_filter(machine: str, own: int, groups: Sequence[Mapping[str, int]], *, unix_sockets: bool) -> bytes:
    """The kernel's program (struct sock_filter[]) for the process ``own``: calls of another architecture kill, those of ``groups``
    are refused. Pure."""
    numbers = [number for group in groups for number in group.values()]
    families = NETWORK[machine]["socket"], NETWORK[machine]["socketpair"]
    # A comparison that holds goes on at the label, any other at the next instruction.
    rows: list[tuple[int, str, int]] = [
        (_LOAD, "", _ARCHITECTURE_AT),
        (_JUMP_EQUAL, "known", _AUDITED[machine]),
        (_RETURN, "", _KILL),
        (_LOAD, "known", _NUMBER_AT),
        (_JUMP_FROM, "kill", _OTHER_TABLE),
        *((_JUMP_EQUAL, "refuse", number) for number in numbers),
        *((_JUMP_EQUAL, "family", number) for number in families if unix_sockets),
        *((_JUMP_EQUAL, "signals", number) for number in SIGNALS[machine].values()),
        *((_JUMP_EQUAL, "limits", number) for number in LIMITS[machine].values()),
        *((_JUMP_EQUAL, "control", number) for number in CONTROL[machine].values()),
        (_RETURN, "", _ALLOW),
        (_LOAD, "control", _SECOND_ARGUMENT_AT),
        *((_JUMP_EQUAL, "refuse", command) for command in _OWNERS),
        (_RETURN, "", _ALLOW),
        (_LOAD, "limits", _FIRST_ARGUMENT_AT),
        (_JUMP_EQUAL, "allow", 0),
        (_LOAD, "signals", _FIRST_ARGUMENT_AT),
        (_JUMP_EQUAL, "allow", own),
        (_RETURN, "", _REFUSE),
        (_LOAD, "family", _FIRST_ARGUMENT_AT),
        (_JUMP_EQUAL, "refuse", _UNIX),
        (_RETURN, "allow", _ALLOW),
        (_RETURN, "refuse", _REFUSE),
        (_RETURN, "kill", _KILL),
    ]
    jumps = (_JUMP_EQUAL, _JUMP_FROM)
    places = {label: at for at, (code, label, _) in enumerate(rows) if label and code not in jumps}
    program = b""
    for at, (code, label, value) in enumerate(rows):
        program += struct.pack("=HBBI", code, places[label] - at - 1 if code in jumps else 0, 0, value)
    return program
