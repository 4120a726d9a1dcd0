"""Calls that a process gives up: by the kernel of this machine, and their numbers by libseccomp."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable, Mapping

import pytest

from weft.contracts.confinement.system_calls import CONTROL, FILES, LIMITS, NETWORK, OTHERS, SIGNALS, refuse_calls

MACHINE = os.uname().machine


def in_a_child(work: Callable[[], str]) -> str:
    """What ``work`` says in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write, work().encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as said:
        words = said.read().decode()
    os.waitpid(child, 0)
    return words


def attempt(what: Callable[[], object]) -> str:
    try:
        what()
    except OSError as problem:
        return errno.errorcode[problem.errno or 0]
    return "done"


def test_a_process_that_gave_them_up_opens_no_file_and_no_socket_and_starts_no_program() -> None:
    ours, theirs = socket.socketpair()

    def work() -> str:
        os.close(0)  # makes a number free
        libc = ctypes.CDLL(None, use_errno=True)
        refuse_calls(FILES, NETWORK, OTHERS)
        theirs.sendall(b"still there")
        return " ".join(
            (
                attempt(lambda: os.open("/etc/passwd", os.O_RDONLY)),
                attempt(lambda: os.memfd_create("x")),
                attempt(lambda: socket.socket(socket.AF_UNIX)),
                attempt(lambda: socket.socket(socket.AF_INET)),
                attempt(lambda: os.execv("/bin/true", ["true"])),
                attempt(lambda: os.unlink("/nowhere")),
                attempt(lambda: os.stat("/etc/passwd")),
                "made"
                if libc.shmget(0, 4096, 0o600) >= 0
                else errno.errorcode[ctypes.get_errno()],  # outlives its process
            )
        )

    assert in_a_child(work) == "EPERM EPERM EPERM EPERM EPERM EPERM done EPERM"
    assert ours.recv(100) == b"still there"
    ours.close()
    theirs.close()


def test_it_signals_itself_and_nobody_else_of_its_user() -> None:
    one, ours, libc = os.getpid(), socket.socketpair(), ctypes.CDLL(None, use_errno=True)

    def call(*words: int) -> str:
        return "done" if libc.syscall(*map(ctypes.c_long, words)) == 0 else errno.errorcode[ctypes.get_errno()]

    def work() -> str:
        refuse_calls(OTHERS)
        tries: list[Callable[[], object]] = [
            lambda: os.kill(os.getpid(), 0),
            lambda: signal.raise_signal(signal.SIGCONT),
            lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
            *(lambda other=other: os.kill(other, 0) for other in (one, 0, -1)),  # type: ignore[misc]
            lambda: resource.prlimit(one, resource.RLIMIT_CORE),
            lambda: fcntl.fcntl(ours[0], fcntl.F_SETOWN, one),
            lambda: fcntl.ioctl(ours[0], 0x8901, struct.pack("i", one)),
        ]
        made = [call(OTHERS[MACHINE]["tkill"], one, 0), call(SIGNALS[MACHINE]["tgkill"], one, one, 0)]
        return " ".join([*map(attempt, tries), *made])

    assert in_a_child(work).split() == ["done"] * 3 + ["EPERM"] * 8
    for end in ours:
        end.close()


def test_without_sockets_of_a_machine_s_own_others_can_be_made() -> None:
    def work() -> str:
        refuse_calls(unix_sockets=True)
        return " ".join(
            (
                attempt(lambda: socket.socket(socket.AF_UNIX)),
                attempt(socket.socketpair),
                attempt(lambda: socket.socket(socket.AF_INET)),
                attempt(lambda: os.open("/etc/passwd", os.O_RDONLY)),
            )
        )

    assert in_a_child(work) == "EPERM EPERM done done"


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 0xC000003E), ("aarch64", 0xC00000B7)])
@pytest.mark.parametrize("group", [FILES, NETWORK, OTHERS, SIGNALS, LIMITS, CONTROL])
def test_the_numbers_are_those_that_libseccomp_knows(
    machine: str, number: int, group: Mapping[str, Mapping[str, int]]
) -> None:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp2 isn't installed")
    given = group[machine]
    assert {name: library.seccomp_syscall_resolve_name_arch(number, name.encode()) for name in given} == given
