"""How many packets get lost between this node and each of its peers. Pure.

A few probes of each peer are under way all the time. When one stays unanswered, a burst of BURST more follows, and another one at
once if packets of that got lost, too. It takes two bad bursts to call a link lossy, and two good ones to call it good again: so
one lost packet, or an agent that restarts, raises no alarm, and a lossy link is known within seconds."""

from __future__ import annotations

from collections.abc import Collection

from weft.protocol.heartbeat import DEAD_LOSS

BURST = 20
LOSSY = 0.05  # more than this is lossy


class Links:
    def __init__(self) -> None:
        self._bursts: dict[str, tuple[float, float]] = {}  # losses of the last two, the newest first, by the peer's uid
        self._losses: dict[str, float] = {}  # what counts

    def keep_only(self, uids: Collection[str]) -> None:
        """These are the peers from now on."""
        self._bursts = {uid: bursts for uid, bursts in self._bursts.items() if uid in uids}
        self._losses = {uid: loss for uid, loss in self._losses.items() if uid in uids}

    def note(self, uid: str, lost: int, asked: int) -> bool:
        """``lost`` of ``asked`` packets got no answer; whether the link is now of another kind than before: good, lossy or dead."""
        before = self._losses.get(uid, 0.0)
        bursts = self._bursts[uid] = (lost / asked, self._bursts.get(uid, (0.0, 0.0))[0])
        now = self._losses[uid] = max(bursts) if before > LOSSY else min(bursts)
        return _rank(before) != _rank(now)

    def is_suspect(self, uid: str) -> bool:
        """Whether packets got lost of late: it takes a burst to know more."""
        return max(self._bursts.get(uid, (0.0, 0.0))) > LOSSY

    def is_lossy(self, uid: str) -> bool:
        return self._losses.get(uid, 0.0) > LOSSY

    @property
    def are_unsure(self) -> bool:
        """Whether one may just have become lossy, or good again."""
        return any((last > LOSSY) != (before > LOSSY) for last, before in self._bursts.values())

    def find(self, uid: str) -> float | None:
        """The share of packets to and from a peer that get lost; None while it is unknown."""
        return self._losses.get(uid)


def _rank(loss: float) -> int:
    return (loss > LOSSY) + (loss > DEAD_LOSS)
