"""Whether Mosquitto still knows all clients that are logged in. Pure.

Mosquitto 2.0 turns away who gives no username, and forgets the client that really has the id which that one named. If it then read
its files again, the forgotten client would have rights in memory that is free: the broker crashes. Its log has a line for each.
"""

from __future__ import annotations

from collections.abc import Iterable

_IN, _OUT, _NEW = "New client connected ", "Client ", "New connection "
_TURNED_AWAY = " disconnected, not authorised."
_NO_ID = "<unknown>"  # of who gave a wrong password: nobody is forgotten for that


class Attendance:
    def __init__(self) -> None:
        self._leaving: set[str] = set()
        self.is_lost = False  # a client may be forgotten

    def expect(self, users: Iterable[str]) -> None:
        """Their passwords are others now, so they are turned away rightly once the broker has read its files."""
        self._leaving |= set(users)

    def note(self, line: str) -> bool:
        """Whether the line of the log is of a connection."""
        if line.startswith(_OUT) and line.endswith(_TURNED_AWAY):
            id = line.removeprefix(_OUT).removesuffix(_TURNED_AWAY)
            self.is_lost = self.is_lost or id not in {_NO_ID, *self._leaving}
            self._leaving.discard(id)
        elif line.startswith(_IN):
            self._leaving.discard(line.partition(" as ")[2].partition(" ")[0])
        return line.startswith((_IN, _OUT, _NEW))
