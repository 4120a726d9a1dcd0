"""Whether this process's listeners can be where they are set to be, before anything starts."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from weft.contracts.clock import Clock
from weft.drivers.linux.addresses import read_own_addresses
from weft.launch.process.address import ANY, split_address
from weft.objects.errors import InUse, InvalidInput

PATIENCE_SECONDS = 10.0  # processes of a killed server end within this
_LOOK_SECONDS = 0.1


def bind_listener(host: str, port: int) -> socket.socket:
    """Listen there. Raises OSError."""
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def name_failure(problem: OSError) -> str:
    """The reason alone, without the address that Python adds."""
    return (problem.strerror or str(problem)).partition(" (while")[0]


def name_own_addresses() -> str:
    """This machine's addresses that others reach, as a hint names them."""
    return " or ".join(read_own_addresses()[:4]) or "one that other machines reach"


async def check_listeners(places: Sequence[tuple[str, str]], clock: Clock, report: Callable[[str], object]) -> None:
    """Check ``places``: each a flag, or another name, and HOST:PORT; ``report`` gets a sentence about a port that is waited for.
    Raises InvalidInput for an address that this machine doesn't have, or a place that two of them want, and InUse when another
    process keeps one for longer than a killed server takes."""
    until, checked = clock.elapsed() + PATIENCE_SECONDS, list[tuple[str, str, int]]()
    with ExitStack() as held:
        for flag, place in places:
            host, port = split_address(place)
            field = flag.removeprefix("--") if flag.startswith("--") else None
            for other, at, taken in checked:
                is_any = (host in ANY or at in ANY) and (":" in host) == (":" in at)
                if port == taken != 0 and (host == at or is_any):
                    raise InvalidInput(f"{flag} {place} and {other} have the same port", field=field, hint="change one")
            checked.append((flag, host, port))
            is_said = False
            while True:
                try:
                    held.enter_context(bind_listener(host, port))
                    break
                except OSError as problem:
                    if problem.errno != errno.EADDRINUSE:
                        raise InvalidInput(
                            f"{flag} {place} can't be listened at: {name_failure(problem)}",
                            field=field,
                            hint=f"give an address of this machine: {name_own_addresses()}",
                        ) from None
                    if clock.elapsed() >= until:
                        raise InUse(
                            f"{flag} {place} can't be listened at: another process has the port",
                            field=field,
                            hint=f"ss -ltnp 'sport = :{port}' shows which one: end it, or give another port",
                        ) from None
                if not is_said:
                    is_said = True
                    rest = until - clock.elapsed()
                    report(f"another process has the port of {flag} {place}: waiting {rest:.0f} s at most for its end")
                await clock.sleep(_LOOK_SECONDS)
