"""The address of a server's machine that the others reach, in ``STATE/address``: there the server listens, unless its settings say
otherwise. ``weft server init`` and ``join`` write it."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from weft.agent.node.facts import find_own_address
from weft.contracts.durable_file import write_durably
from weft.drivers.linux.addresses import read_own_addresses
from weft.launch.process.address import url_at
from weft.objects.errors import InvalidInput

FILE = "address"
SOMEWHERE = "192.0.2.1"  # an address of RFC 5737, which nobody has: the way there is the default route
# Where its three processes listen: with an address, and without one.
PORTS = {"listen": 8443, "gateway": 8444, "functions": 8445}


def find_address() -> str:
    """This machine's address on its default route. Raises InvalidInput where there is none."""
    if not (address := find_own_address(SOMEWHERE, 9)):
        raise InvalidInput(
            "this machine has no default route, so which of its addresses the others reach is unknown",
            field="address",
            hint=f"give --address: {' or '.join(read_own_addresses()[:4]) or 'one that other machines reach'}",
        )
    return address


def keep_address(state: Path, address: str) -> None:
    """Keep it for the server's starts; nothing for one that no other machine reaches."""
    if not ipaddress.ip_address(address).is_loopback:
        write_durably(state / FILE, f"{address}\n".encode(), 0o644)


def read_address(state: Path) -> str:
    """The address that was kept; empty if none was."""
    try:
        return (state / FILE).read_text()[:64].strip()
    except (OSError, UnicodeDecodeError):
        return ""


def list_places(state: Path) -> dict[str, list[str]]:
    """Places where the server in ``state`` listens because of that address, by setting; its own machine reaches it, too."""
    if not (address := read_address(state)):
        return {}
    places = {name: [url_at(address, port).removeprefix("https://")] for name, port in PORTS.items()}
    return places | {"listen": [f"127.0.0.1:{PORTS['listen']}", *places["listen"]]}
