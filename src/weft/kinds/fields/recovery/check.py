"""Checks that a recovered VM works, as people write them: ``web=tcp:80``, ``web=http:80/healthz``,
``db=command:pg_isready``. Pure."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from weft.kinds.fields.service.readiness import Readiness, check_readiness
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_name

MOST_CHECK = 4096  # characters
INTERVAL_SECONDS, TIMEOUT_SECONDS, COMMAND_SECONDS = 1.0, 2.0, 10.0
_CHECK = re.compile(r"([^=]*)=(tcp|http|command):(.*)", re.DOTALL)
_TARGET = re.compile(r"(\d{1,5})(/.*)?")
_HINT = "write REPLICA=tcp:PORT, REPLICA=http:PORT/PATH or REPLICA=command:COMMAND"


class Check(NamedTuple):
    """A check of the VM of a replica."""

    replica: str
    type: Literal["tcp", "http", "command"]
    target: str  # the port, the port with the path, or the command

    @property
    def readiness(self) -> Readiness:
        """How the VM's node asks it, as for an endpoint of a service."""
        if self.type == "command":
            command = ["sh", "-c", self.target]
            return Readiness(type="command", command=command, interval=INTERVAL_SECONDS, timeout=COMMAND_SECONDS)
        port, slash, path = self.target.partition("/")
        return Readiness(
            type=self.type, port=int(port), path=slash + path or "/", interval=INTERVAL_SECONDS, timeout=TIMEOUT_SECONDS
        )


def read_check(written: str, at: str) -> Check:
    """Raises InvalidInput."""
    match = _CHECK.fullmatch(written)
    if match is None:
        raise InvalidInput(f"{at}: {written[:60]!r} is not a check", field=at, hint=_HINT)
    replica, type_, target = check_name(match[1], at), match[2], match[3].strip()
    if type_ == "command":
        if not target:
            raise InvalidInput(f"{at}: the command is empty", field=at, hint=_HINT)
        return Check(replica, "command", target)
    found = _TARGET.fullmatch(target)
    if found is None or not 1 <= int(found[1]) <= 65535 or (type_ == "tcp" and found[2]):
        raise InvalidInput(
            f"{at}: {target[:60]!r} is not a port{' and path' * (type_ == 'http')}", field=at, hint=_HINT
        )
    check = Check(replica, "tcp" if type_ == "tcp" else "http", target)
    check_readiness(check.readiness, 0, at)
    return check
