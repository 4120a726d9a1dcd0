"""Guests to measure: QEMUs, and processes that stand in for more of them. Their places are in ``guests.json`` of the folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType

GUESTS, REAL, THREADS = 100, 10, 6
DISKS = ("root", "data")
PATIENCE_SECONDS = 30.0


class Guests:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._qemus: list[subprocess.Popen[bytes]] = []
        self._others: list[int] = []

    def __enter__(self) -> None:
        try:
            self._start()
        except BaseException:
            self._end()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _start(self) -> None:
        for number in range(REAL):
            self._qemus.append(subprocess.Popen(_qemu(self._folder, number), stdout=subprocess.DEVNULL))
        answer = _read_answer(_monitor(self._folder, 0))
        for number in range(REAL, GUESTS):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(_monitor(self._folder, number))
            listener.listen(1)
            pid = os.fork()
            if pid == 0:
                with contextlib.suppress(BaseException):
                    _stand_in(listener, answer)
                os._exit(1)
            listener.close()
            self._others.append(pid)
        pids = [qemu.pid for qemu in self._qemus] + self._others
        guests = [{"pid": pid, "monitor": _monitor(self._folder, number)} for number, pid in enumerate(pids)]
        (self._folder / "guests.json").write_text(json.dumps(guests))

    def _end(self) -> None:
        for qemu in self._qemus:
            qemu.kill()
            qemu.wait()
        for pid in self._others:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _monitor(folder: Path, number: int) -> str:
    return str(folder / f"qmp{number}")


def _qemu(folder: Path, number: int) -> list[str]:
    words = [
        "qemu-system-x86_64",
        "-M",
        "q35,usb=off,sata=off",
        "-accel",
        "tcg",
        "-m",
        "64",
        "-nodefaults",
        "-display",
        "none",
    ]
    words += ["-S", "-qmp", f"unix:{_monitor(folder, number)},server=on,wait=off"]
    for disk in DISKS:
        path = folder / f"{number}-{disk}.raw"
        with path.open("wb") as file:
            file.truncate(1 << 20)
        words += ["-blockdev", f"driver=raw,node-name=disk-{disk},file.driver=file,file.filename={path}"]
        words += ["-device", f"virtio-blk-pci,drive=disk-{disk},serial={disk},id=blk-{disk}"]
    return words


def _read_answer(monitor: str) -> bytes:
    """A QEMU's answer to the question for disks."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            line = socket.socket(socket.AF_UNIX)
            line.connect(monitor)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    with line, line.makefile("rwb") as file:
        file.readline()
        for command in ("qmp_capabilities", "query-blockstats"):
            file.write(json.dumps({"execute": command}).encode() + b"\n")
            file.flush()
            answer = file.readline()
    return answer


def _stand_in(listener: socket.socket, answer: bytes) -> None:
    """Six threads that wait, one of which answers like a QEMU."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for _ in range(THREADS - 1):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    while True:
        line, _ = listener.accept()
        with line, line.makefile("rwb") as file:
            file.write(b'{"QMP": {}}\r\n')
            file.flush()
            while question := file.readline():
                file.write(answer if b"blockstats" in question else b'{"return": {}}\r\n')
                file.flush()
