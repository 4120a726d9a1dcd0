"""Whether the server hears this node. A lease begins only while it does: the server may give the leases of a node that it counts as
lost to others, before they have begun.

After a silence the server must know that there was one, by a new ``token`` in the node's report, and list the node's allocations
after that: what was given to others before that report is missing from the list or being deleted there, and nothing is given to
others afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from weft.objects.identity import new_uid

CONTACT_SECONDS = 25.0  # less than the server's patience (LEASE_SECONDS of heartbeats)


class Contact:
    """``ask`` begins a list of the node's allocations, whose answer is ``note_list``. ``read_time``: seconds of a clock that
    nobody can set. It should go on while the machine sleeps, since others may be given this node's allocations in that time."""

    def __init__(self, read_time: Callable[[], float]) -> None:
        self.token = ""
        self.ask: Callable[[], None] = lambda: None
        self.read_time = read_time
        self.sent_at = -math.inf  # when the newest report was made that was answered
        self._known = ""  # the server's token
        self._listing = False
        self._own: frozenset[str] = (
            frozenset()
        )  # names of allocations that were this node's after the server had the token

    @property
    def is_in_contact(self) -> bool:
        """Whether the server has this node's newest token, and answers."""
        return self._known == self.token and not self._is_silent()

    def confirms(self, name: str, *, asks: bool = True) -> bool:
        """Whether allocation ``name`` is surely this node's now, so that its lease may begin; if that isn't known, ``asks``."""
        if not self.is_in_contact:
            return False
        if name in self._own:
            return True
        if asks and not self._listing:
            self._listing = True
            self.ask()
        return False

    def note_sending(self) -> float:
        """A report is about to be made. Returns when."""
        if self._is_silent():
            self._renew()
        return self.read_time()

    def note_answer(self, token: str, sent_at: float) -> bool:
        """The server has the report with ``token`` that was made at ``sent_at``. Returns whether it didn't have that token."""
        news = token != self._known
        if not news and self._is_silent():
            self._renew()  # it was on its way for so long
        self._known, self.sent_at = token, sent_at
        return news

    def note_list(self, token: str, names: Iterable[str]) -> None:
        """``names`` of this node's allocations that are neither lost nor being deleted have been listed after ``ask`` was called
        with ``token``."""
        self._listing = False
        if token == self.token:
            self._own = frozenset(names)

    def _renew(self) -> None:
        self.token, self._own = new_uid(), frozenset()

    def _is_silent(self) -> bool:
        return self.read_time() - self.sent_at > CONTACT_SECONDS
