"""The load of this node's own link to the others: rates, from the kernel's counters of it."""

from __future__ import annotations

from pathlib import Path

from weft.protocol.heartbeat import LinkLoad

LEAST_SECONDS = 2.0  # between two looks at the counters
_SYS = Path("/sys/class/net")


class LinkMeter:
    """A meter of the link of that name."""

    def __init__(self, link: str, root: Path = _SYS) -> None:
        self._link, self._root = link, root
        self._last: tuple[float, float, float] | None = None  # elapsed seconds, bytes received, bytes sent
        self.load = LinkLoad()

    def note(self, at: float) -> LinkLoad:
        """The newest rates; ``at`` is now, in elapsed seconds."""
        last = self._last
        if last is not None and at - last[0] < LEAST_SECONDS:
            return self.load
        received, sent = self._read("statistics/rx_bytes"), self._read("statistics/tx_bytes")
        self._last = (at, received, sent) if received >= 0 and sent >= 0 else None
        if last is None or self._last is None or received < last[1] or sent < last[2]:
            self.load = LinkLoad(speed_mbps=self._read_speed())  # nothing to compare with, or the counters began again
            return self.load
        rates = ((now - before) * 8e-6 / (at - last[0]) for now, before in ((received, last[1]), (sent, last[2])))
        in_, out = (round(rate, 3) for rate in rates)
        self.load = LinkLoad(in_, out, self._read_speed())
        return self.load

    def find_share(self, fastest_mbps: float | None) -> float | None:
        """How much of the link is in use, 0–1; of ``fastest_mbps``, what a probe got at best, where the driver names no speed."""
        speed = self.load.speed_mbps if self.load.speed_mbps > 0 else fastest_mbps
        rate = max(self.load.received_mbps, self.load.sent_mbps)
        return rate / speed if speed and rate >= 0 else None

    def _read_speed(self) -> float:
        return self._read("speed") or -1.0

    def _read(self, name: str) -> float:
        """-1 for what this link lacks."""
        try:
            return max(-1.0, float((self._root / self._link / name).read_text()))
        except (OSError, ValueError):
            return -1.0
