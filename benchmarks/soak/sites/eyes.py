"""Watches the guests of two sites from outside: hears what they say of themselves, and looks at their processes."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.soak.sites.oracle import Beat, Chronicle, Seen, find_doubles

LOOK_SECONDS = 0.25
_GUEST = re.compile(rb"guest=([a-z0-9-]+)")
_BEAT = re.compile(r"([a-z0-9-]+) ([0-9a-f]{16}) (\d+) (\d+) (\d+)")


class Eyes:
    """``line``: where guests speak to; ``sources``: what a site's come from; ``marks``: what its guests' command lines have.
    What it saw is in ``chronicle`` and ``doubles``; both are read under ``lock``."""

    def __init__(self, line: socket.socket, sources: Mapping[str, str], marks: Mapping[str, str]) -> None:
        self.chronicle, self.lock = Chronicle(), threading.Lock()
        self.doubles: list[tuple[float, str]] = []  # when two processes of this VM ran
        self.looks = 0
        self.strange = ""  # what came last that no guest of theirs can have said
        self.unheard = 0.0  # the longest time between two looks, so as to know what could be missed
        self._sources, self._marks = sources, marks
        self._line = line
        self._line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._line.setblocking(False)
        self.place = self._line.getsockname()  # where guests speak to
        self._over = threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._hear, self._watch)]

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self._line.close()

    def _hear(self) -> None:
        while not self._over.is_set():
            select.select([self._line], [], [], 0.2)
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, (host, _) = self._line.recvfrom(512)
                    if (beat := self._read(data, host)) is None:
                        self.strange = f"{data[:80]!r} from {host}"
                        continue
                    with self.lock:
                        self.chronicle.note(beat)

    def _read(self, data: bytes, host: str) -> Beat | None:
        found = _BEAT.fullmatch(data.decode(errors="replace"))
        site = next((name for name, source in self._sources.items() if host == source), "")
        if found is None or not site:
            return None
        vm, boot, *numbers = found.groups()
        n, began, wrong = map(int, numbers)
        return Beat(time.time(), vm, boot, n, began, wrong, site)

    def _watch(self) -> None:
        before: dict[str, list[Seen]] = {}
        last = time.monotonic()
        while not self._over.wait(LOOK_SECONDS):
            seen = self.list_guests()
            at = time.monotonic()
            self.unheard, last = max(self.unheard, at - last), at
            with self.lock:
                self.looks += 1
                self.doubles += [(time.time(), vm) for vm in find_doubles(before, seen)]
            before = seen

    def list_guests(self) -> dict[str, list[Seen]]:
        found: dict[str, list[Seen]] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                name, _, rest = (entry / "stat").read_text().rpartition(")")
                if "(qemu-system" not in name:
                    continue
                words = (entry / "cmdline").read_bytes()
                site = next((site for site, mark in self._marks.items() if mark.encode() in words), "")
                if site and (guest := _GUEST.search(words)):
                    seen = Seen(site, int(entry.name), rest.split()[0] not in "TtZX")
                    found.setdefault(guest[1].decode(), []).append(seen)
        return found
