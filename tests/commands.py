"""``weft`` commands of tests, forked from a process that has loaded the command line once.

Most of what a short command costs is the interpreter's start and its imports; a run of the suite has more than a
thousand. A command forked here goes on in ``weft.launch.entry.main``, as one that is started does, with its own
descriptors, folder and environment. Tests of the start itself (its time, what it imports) start a program.

``python -m tests.commands DESCRIPTOR`` is that process; it ends when whoever started it does.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WEFT = str(Path(sys.executable).parent / "weft")
_REQUEST_BYTES = 1 << 18
_starting = threading.Lock()
_parent: list[socket.socket] = []


def run_command(
    *argv: str, cwd: Path | None = None, stdin: bytes | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[bytes]:
    """``weft ARGV…``, run to its end; ``stdin`` is what it reads, None for nothing. Raises TimeoutExpired, and ends it."""
    ours, theirs = socket.socketpair()
    pipes = [os.pipe() for _ in range(3)]
    (source, feed), (out, out_end), (err, err_end) = pipes
    asked = {"argv": argv, "cwd": str(cwd or Path.cwd()), "env": dict(os.environ)}
    data = json.dumps(asked).encode()
    assert len(data) < _REQUEST_BYTES
    with ours:
        with theirs:
            socket.send_fds(_find_parent(), [data], [source, out_end, err_end, theirs.fileno()])
        for end in (source, out_end, err_end):
            os.close(end)
        feeding = threading.Thread(target=_feed, args=(feed, stdin or b""), daemon=True)
        feeding.start()
        printed, in_time = _collect(out, err, ours, timeout)
        status = ours.recv(16) if in_time else b""
    # Closing ours ends a command that is late.
    if not in_time:
        raise subprocess.TimeoutExpired(["weft", *argv], timeout, printed[out], printed[err])
    return subprocess.CompletedProcess(["weft", *argv], int(status), bytes(printed[out]), bytes(printed[err]))


def _feed(descriptor: int, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), open(descriptor, "wb", buffering=0) as pipe:
        pipe.write(data)


def _collect(out: int, err: int, done: socket.socket, timeout: float) -> tuple[dict[int, bytearray], bool]:
    """What came out of both pipes until the command ended; whether it did in that time."""
    printed = {out: bytearray(), err: bytearray()}
    poll = select.poll()
    for descriptor in (out, err, done.fileno()):
        poll.register(descriptor, select.POLLIN)
    ended = False
    try:
        # What a command leaves running may hold its pipes open: its end is enough, with what is in them by then.
        while not ended:
            ready = poll.poll(timeout * 1000)
            if not ready:
                return printed, False
            ended = any(descriptor == done.fileno() for descriptor, _ in ready)
            for descriptor, _ in ready:
                if descriptor in printed and not _read_some(descriptor, printed[descriptor]):
                    poll.unregister(descriptor)
        for descriptor, data in printed.items():
            os.set_blocking(descriptor, False)
            with contextlib.suppress(BlockingIOError):
                while _read_some(descriptor, data):
                    pass
        return printed, True
    finally:
        os.close(out)
        os.close(err)


def _read_some(descriptor: int, data: bytearray) -> bool:
    more = os.read(descriptor, 1 << 16)
    data += more
    return bool(more)


def _find_parent() -> socket.socket:
    with _starting:
        if not _parent:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                words = [sys.executable, "-m", "tests.commands", str(theirs.fileno())]
                subprocess.Popen(words, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
            _parent.append(ours)
        return _parent[0]


# --- the process that has loaded everything -----------------------------------------------------------------------------


def _load() -> None:
    for room in ("weft.cli", "weft.client"):
        package = importlib.import_module(room)
        for module in pkgutil.walk_packages(package.__path__, f"{room}."):
            with contextlib.suppress(ImportError):  # an extra that isn't here
                importlib.import_module(module.name)
    importlib.import_module("weft.launch.entry")
    importlib.import_module("weft.contracts.clock")
    gc.collect()
    gc.freeze()


class _Parent:
    """Forks a command for each request, and tells each one's end to who asked."""

    def __init__(self, line: socket.socket) -> None:
        self.line = line
        self.chosen = selectors.DefaultSelector()
        self.running: dict[int, tuple[int, socket.socket]] = {}  # by pid: its pidfd, and where its status is awaited

    def work(self) -> None:
        self.chosen.register(self.line, selectors.EVENT_READ)
        while True:
            for key, _ in self.chosen.select():
                if key.fileobj is self.line:
                    if not self._take():
                        return
                else:
                    self._settle(key.data, key.fileobj)

    def _take(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self.line, _REQUEST_BYTES, 4)
        if not data:
            for pid in self.running:
                os.kill(pid, signal.SIGKILL)
            return False
        request = json.loads(data)
        pid = os.fork()
        if pid == 0:
            self._become(request, descriptors)
        for descriptor in descriptors[:3]:
            os.close(descriptor)
        asker = socket.socket(fileno=descriptors[3])
        number = os.pidfd_open(pid)
        self.running[pid] = (number, asker)
        self.chosen.register(number, selectors.EVENT_READ, pid)
        self.chosen.register(asker, selectors.EVENT_READ, pid)
        return True

    def _settle(self, pid: int, spoke: Any) -> None:
        """The command ended, or nobody waits for it any more."""
        if pid not in self.running:
            return
        number, asker = self.running[pid]
        if spoke is asker:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self.chosen.unregister(asker)
            return
        del self.running[pid]
        self.chosen.unregister(number)
        with contextlib.suppress(KeyError):
            self.chosen.unregister(asker)
        _, status = os.waitpid(pid, 0)
        os.close(number)
        with contextlib.suppress(OSError):
            asker.send(str(os.waitstatus_to_exitcode(status)).encode())
        asker.close()

    def _become(self, request: dict[str, Any], descriptors: list[int]) -> None:
        code: Any = 99
        try:
            for number, descriptor in enumerate(descriptors[:3]):
                os.dup2(descriptor, number)
            os.closerange(3, 4096)
            os.chdir(request["cwd"])
            os.environ.clear()
            os.environ.update(request["env"])
            sys.argv = [WEFT, *request["argv"]]
            sys.stdin, sys.stdout = os.fdopen(0, encoding="utf-8"), os.fdopen(1, "w", encoding="utf-8")
            sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1, errors="backslashreplace")
            importlib.import_module("weft.launch.entry").main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
            sys.stdout.flush()
            os._exit(code)


if __name__ == "__main__":
    line = socket.socket(fileno=int(sys.argv[1]))
    line.set_inheritable(False)
    _load()
    _Parent(line).work()
