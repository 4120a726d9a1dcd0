"""A command's terminal: the agent's end of it, and the runtime that started the command.

crun hands over the container's own terminal: when it carries the bytes itself it never passes a later size on, it only reads
one as it starts (1.8.1). runc carries the bytes between the container's terminal and one of ours, and passes sizes on; where
it hands its terminal over, it doesn't wait for the command.

runc may hang for good, without a word, while it starts a command (1.1.5; its issue 3334): if the start fails before runc has set
our terminal, or that terminal hangs up before, runc waits for the end of output that it never notices. So our end stays open until
the command has begun, and a runc that hangs is ended and started again.

The first size is the runtime's to set. crun 1.8.1 and runc 1.1.5 do so beside the command, which may look a moment earlier; it gets
SIGWINCH then.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import struct
import subprocess
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import ExecRequest
from weft.drivers.linux.processes import has_children
from weft.drivers.runtime.oci.exec.channel import Channel
from weft.drivers.runtime.oci.mount_namespace import spawn_in_mount_namespace
from weft.drivers.runtime.oci.runtime import Runtime
from weft.objects.errors import DriverFailed

HAND_OVER_SECONDS = 30.0
LOOK_SECONDS, HUNG_LOOKS = 0.01, 200


class Terminal:
    """``process`` is the runtime, which ends with the command. ``channel`` is the agent's end; without one the command never
    began. ``errors`` are the runtime's, where they don't come by the channel."""

    def __init__(
        self, process: subprocess.Popen[bytes], channel: Channel | None, errors: Channel | None = None, *, relayed: bool
    ) -> None:
        self.process, self.channel, self.errors = process, channel, errors
        self._relayed = relayed

    def resize(self, rows: int, columns: int) -> None:
        descriptor = self.channel.descriptor if self.channel is not None else None
        if descriptor is None:
            return
        _set_size(descriptor, rows, columns)
        if self._relayed and self.process.poll() is None:
            self.process.send_signal(signal.SIGWINCH)


async def open_terminal(
    runtime: Runtime, words: list[str], container_id: str, marks: Path, clock: Clock, request: ExecRequest
) -> Terminal:
    """Start ``words``, an exec of the runtime, with a terminal; ``marks`` with a suffix are its files, the pid file one of them.
    Cancelled or failed, it leaves no process. Raises DriverFailed, OSError."""
    if runtime.name == "crun":
        return await _receive_terminal(runtime, words, container_id, marks.with_suffix(".terminal"))
    return await _relay_terminal(runtime, [*words, "--tty", container_id], marks.with_suffix(".pid"), clock, request)


async def _relay_terminal(
    runtime: Runtime, words: list[str], pid_file: Path, clock: Clock, request: ExecRequest
) -> Terminal:
    ours, theirs = os.openpty()
    if request.has_size:
        _set_size(ours, request.rows, request.columns)
    try:
        async with _within_limit():
            while (process := await _start_relay(runtime, words, theirs, pid_file, clock)) is None:
                pass
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return Terminal(process, Channel(ours), relayed=True)


async def _start_relay(
    runtime: Runtime, words: list[str], theirs: int, pid_file: Path, clock: Clock
) -> subprocess.Popen[bytes] | None:
    """None if it hung, and was ended."""
    tty.setraw(theirs)  # one that hung may have left it otherwise
    process = await spawn_in_mount_namespace(words, runtime.hidden, stdin=theirs, stdout=theirs, stderr=theirs)
    goes_on = False
    try:
        goes_on = await _goes_on(process, pid_file, clock)
    finally:
        if not goes_on:
            process.kill()  # a command that it has just begun is hung up: it held that one's terminal
            process.wait()
    return process if goes_on else None


async def _goes_on(process: subprocess.Popen[bytes], pid_file: Path, clock: Clock) -> bool:
    """True once the command has begun or the runtime has ended. False if it hangs: its child, which was to become the command, has
    failed if it is gone before there is a pid file, and then the runtime should end at once."""
    forked, looks = False, 0
    while looks < HUNG_LOOKS:
        has_child = has_children(process.pid)  # first: a command that has begun and ended isn't run again
        if _has_ended_or_begun(process, pid_file):
            return True
        forked = forked or has_child
        looks = looks + 1 if forked and not has_child else 0
        await clock.sleep(LOOK_SECONDS)
    return False


def _set_size(descriptor: int, rows: int, columns: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _has_ended_or_begun(process: subprocess.Popen[bytes], pid_file: Path) -> bool:
    return process.poll() is not None or pid_file.exists()


@contextlib.asynccontextmanager
async def _within_limit() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(HAND_OVER_SECONDS):
            yield
    except TimeoutError:
        raise DriverFailed(
            f"the command's terminal wasn't there within {HAND_OVER_SECONDS:.0f} s", details={"step": "exec"}
        ) from None


async def _receive_terminal(runtime: Runtime, words: list[str], container_id: str, socket_path: Path) -> Terminal:
    words = [*words, "--tty", f"--console-socket={socket_path}", container_id]
    with _listen(socket_path) as listener:
        process = await spawn_in_mount_namespace(words, runtime.hidden, stderr=subprocess.PIPE)
        assert process.stderr is not None
        with process.stderr as pipe:
            errors = Channel(os.dup(pipe.fileno()))
        try:
            descriptor = await _receive_descriptor(listener, process)
        except BaseException:
            process.kill()  # a command that it has started meanwhile is hung up: nobody holds its terminal
            process.wait()
            errors.close()
            raise
    return Terminal(process, Channel(descriptor) if descriptor is not None else None, errors, relayed=False)


@contextlib.contextmanager
def _listen(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setblocking(False)
        listener.bind(str(path))
        try:
            listener.listen(1)
            yield listener
        finally:
            path.unlink(missing_ok=True)


async def _receive_descriptor(listener: socket.socket, process: subprocess.Popen[bytes]) -> int | None:
    """None if the process ended without handing one over. Raises DriverFailed."""
    ends = os.pidfd_open(process.pid)
    try:
        async with _within_limit():
            await _wait_for_either(listener.fileno(), ends)
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return None
            with connection:
                connection.setblocking(False)
                await _wait_for_either(connection.fileno(), ends)
                try:
                    _, descriptors, _, _ = socket.recv_fds(connection, 4096, 1, socket.MSG_CMSG_CLOEXEC)
                except BlockingIOError:
                    return None
    finally:
        os.close(ends)
    return descriptors[0] if descriptors else None


async def _wait_for_either(*descriptors: int) -> None:
    """Return when one of them is readable."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    try:
        for descriptor in descriptors:
            loop.add_reader(descriptor, readable.set)
        await readable.wait()
    finally:
        for descriptor in descriptors:
            loop.remove_reader(descriptor)
