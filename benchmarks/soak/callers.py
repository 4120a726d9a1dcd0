"""Who asks a guest without a pause, over a connection that stays open and over new ones, and counts what went wrong."""

from __future__ import annotations

import socket
import threading
import time
from typing import NamedTuple

LATE_SECONDS = 1.0
PATIENCE_SECONDS = 30.0  # an answer that takes longer is lost
KEPT_EVERY_SECONDS, NEW_EVERY_SECONDS = 0.05, 0.5
MAX_REASONS = 5


class Tally(NamedTuple):
    """Requests: ``late`` had their right answer after LATE_SECONDS; ``lost`` none or a wrong one; ``reset`` a connection that
    ended. ``longest`` is the longest wait for an answer, in seconds."""

    asked: int = 0
    late: int = 0
    lost: int = 0
    reset: int = 0
    longest: float = 0.0

    def plus(self, other: Tally) -> Tally:
        longest = max(self.longest, other.longest)
        return Tally(
            self.asked + other.asked, self.late + other.late, self.lost + other.lost, self.reset + other.reset, longest
        )


class Caller:
    """Of one guest, at a port of this machine. ``rest`` and ``go_on`` frame what ends its connections rightly, such as a
    cold move; ``take`` gives what was counted since it was last asked."""

    def __init__(self, name: str, port: int) -> None:
        self.name, self._port = name, port
        self._lock, self._tally = threading.Lock(), Tally()
        self._over, self._awake = threading.Event(), threading.Event()
        self._busy = [False, False]
        self.problems: list[str] = []
        self._threads = [
            threading.Thread(target=self._call, args=(number, how), daemon=True)
            for number, how in enumerate((self._keep_asking, self._ask_anew))
        ]
        for thread in self._threads:
            thread.start()

    def go_on(self) -> None:
        self._awake.set()

    def rest(self) -> None:
        """Ask no more, and return when nobody waits for an answer."""
        self._awake.clear()
        while any(self._busy):
            time.sleep(0.02)

    def close(self) -> None:
        self._over.set()
        self._awake.set()
        for thread in self._threads:
            thread.join()

    def take(self) -> Tally:
        with self._lock:
            tally, self._tally = self._tally, Tally()
        return tally

    def _call(self, number: int, how: object) -> None:
        while not self._over.is_set():
            self._awake.wait()
            self._busy[number] = True
            if self._awake.is_set() and not self._over.is_set():
                how()  # type: ignore[operator]
            self._busy[number] = False

    def _keep_asking(self) -> None:
        """Over one connection, as long as it holds."""
        number = 0
        try:
            with self._connect() as link:
                while self._awake.is_set() and not self._over.is_set():
                    self._ask(link, number)
                    number += 1
                    time.sleep(KEPT_EVERY_SECONDS)
        except OSError as problem:
            self._note(f"kept open, request {number}", problem)

    def _ask_anew(self) -> None:
        try:
            with self._connect() as link:
                self._ask(link, 0)
        except OSError as problem:
            self._note("a new one", problem)
        time.sleep(NEW_EVERY_SECONDS)

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), PATIENCE_SECONDS)

    def _ask(self, link: socket.socket, number: int) -> None:
        """Raises OSError where the answer doesn't come, or isn't what was asked."""
        question, begun = b"%s %d\n" % (self.name.encode(), number), time.monotonic()
        link.settimeout(PATIENCE_SECONDS)
        link.sendall(question)
        said = b""
        while len(said) < len(question):
            if not (piece := link.recv(4096)):
                raise ConnectionResetError("the guest's end was closed")
            said += piece
        if said != question:
            raise OSError(f"{said!r} was said to {question!r}")
        took = time.monotonic() - begun
        self._add(Tally(1, late=int(took > LATE_SECONDS), longest=took))

    def _note(self, what: str, problem: OSError) -> None:
        reset = isinstance(problem, ConnectionError)
        self._add(Tally(1, lost=int(not reset), reset=int(reset)))
        self.problems = [*self.problems, f"{time.strftime('%H:%M:%S')} {self.name}, {what}: {problem}"][-MAX_REASONS:]
        time.sleep(NEW_EVERY_SECONDS)

    def _add(self, tally: Tally) -> None:
        with self._lock:
            self._tally = self._tally.plus(tally)
