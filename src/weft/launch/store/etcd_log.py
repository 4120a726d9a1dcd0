"""Lines that an etcd of a server's own writes: passed on, without endless repetition; or kept, for the reason why it ended."""

from __future__ import annotations

import re
from collections.abc import Callable

from weft.contracts.clock import Clock

_REPEATED = re.compile(r"rejected connection|health check for peer \w+|prober detected unhealthy status")
_FATAL = re.compile(
    r' C \| \w+: (.*)|"level":"(?:fatal|panic)".*?"error":"([^"]*)"|^panic: (.*)|etcd can\'t be started: (.*)'
)
_PAUSE_SECONDS = 60.0


class EtcdLog:
    """Passes on what an etcd writes. Lines that anyone on the network can cause, or that come for as long as another member is
    away, pass once a minute, with the count of those that didn't. ``fatal`` is why it ended, "" while it didn't say."""

    def __init__(self, clock: Clock, write: Callable[[str], object] = lambda _: None) -> None:
        self._clock, self._write, self.fatal = clock, write, ""
        self._passed: dict[str, tuple[float, int]] = {}  # when the last one did, and how many didn't since

    def take(self, line: str) -> None:
        if (fatal := _FATAL.search(line)) is not None:
            self.fatal = next(filter(None, fatal.groups()), "")
        if (repeated := _REPEATED.search(line)) is not None:
            now, word = self._clock.elapsed(), repeated[0]
            at, left_out = self._passed.get(word, (float("-inf"), 0))
            if now - at < _PAUSE_SECONDS:
                self._passed[word] = (at, left_out + 1)
                return
            self._passed[word] = (now, 0)
            line += f" ({left_out} more like it before)" if left_out else ""
        self._write(line)
