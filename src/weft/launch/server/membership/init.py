"""``weft server init``: makes this machine the first server of a fabric, and, where a package brought the service, starts it and
prints the command with which the next machine joins as a node."""

from __future__ import annotations

import argparse
import asyncio
import shlex
from collections.abc import Sequence
from pathlib import Path

from weft.client.api import Client
from weft.client.context import FILE as CONTEXT
from weft.client.context import hash_ca, read_context, write_context
from weft.contracts.clock import SystemClock
from weft.launch.process.address import take_by, take_host, url_at
from weft.launch.process.amounts import Parser
from weft.launch.process.service import has_service, start_service
from weft.launch.server.membership.address import FILE as ADDRESS
from weft.launch.server.membership.address import PORTS, find_address, keep_address
from weft.launch.server.membership.folder import new_folder, refuse_foreign
from weft.launch.server.membership.identity import FILE, FIRST, keep_identity
from weft.launch.server.unfinished import FILE as UNFINISHED
from weft.launch.server.unfinished import note_begun, note_finished, read_unfinished
from weft.launch.store.engine import FILE as STORE_FILE
from weft.launch.store.engine import MEMBERS, SQLITE, recall_store, remember_store
from weft.launch.store.etcd import find_etcd
from weft.launch.store.member import FOLDER, begin_member, check_place
from weft.objects.errors import AlreadyExists, NotFound, Unavailable
from weft.objects.identity import check_name
from weft.protocol.server.join import MemberPlace, read_place

COMMAND = "weft server init"
# What it makes, and one that was ended half-way has left.
_MADE = (UNFINISHED, FILE, FOLDER, ADDRESS, "store.url")
STATE, SERVICE = Path("/var/lib/weft/server"), "weft-server"
PATIENCE_SECONDS = 60.0


def main(argv: Sequence[str]) -> int:
    """Begin, and say what comes next; the exit status. Raises WeftError."""
    options = parse_init(argv)
    state: Path = options.state.absolute()
    address = options.address or (options.member.host if options.member is not None else find_address())
    begin(state, options.server, options.member, address)
    if options.member is not None:
        print(f"server {options.server} has a member of the store at {options.member.client}")
    if state == STATE and has_service(SERVICE):
        start_service(SERVICE)
        print(show_first_node(state, address))
        return 0
    print(f"start it: {name_start(state)}")
    if options.member is not None:
        print("then let two more join: weft token create --use server")
    else:
        print("then let machines join as nodes: weft token create --join")
    return 0


def parse_init(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of ``weft server init``."""
    parser = Parser(
        prog="weft server init",
        description="Make this machine the first server of a fabric. With --member it keeps a member of the store, and two more"
        " can join: of three, any one may die.",
    )
    parser.add_argument("--state", default=STATE, type=Path, help=f"folder for the server's data (default {STATE})")
    parser.add_argument("--server", default=FIRST, metavar="NAME", help=f"its name (default {FIRST})")
    parser.add_argument(
        "--address",
        type=take_host,
        help="address of this machine that the others reach (default: that of --member, or on the default route)",
    )
    add_member(parser, required=False)
    return parser.parse_args(argv)


def add_member(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the flag that says where a server's member of the store is."""
    parser.add_argument(
        "--member",
        required=required,
        type=take_place,
        metavar="ADDRESS[:PORT]",
        help="address of this machine where the other servers reach its member of the store; it takes that port and the next one"
        " (default 2379, and 2380)",
    )


def take_place(text: str) -> MemberPlace:
    """ADDRESS[:PORT] from a command line. Raises ArgumentTypeError."""
    found: list[MemberPlace] = []
    take_by(lambda given: found.append(read_place(given)), text)
    return found[0]


def begin(state: Path, name: str, place: MemberPlace | None, address: str = "") -> None:
    """Make ``state`` the folder of the first server; ``place``: of its member of the store, if it keeps one. Raises AlreadyExists
    when it is a server's already, InvalidInput when it has other files, or ``place`` isn't of this machine, InUse when another
    process listens there, and Unavailable without etcd."""
    if place is not None:
        find_etcd()
    check_name(name, "--server")
    with new_folder(state):
        found = read_unfinished(state)
        goes_on = found is not None and found.command == COMMAND
        if not goes_on and any((state / file).exists() for file in (STORE_FILE, FILE, "ca.crt", "store.url")):
            raise AlreadyExists(
                f"{state} is the folder of a server, which keeps its objects in {recall_store(state)}",
                field="state",
                hint="give another --state",
            )
        refuse_foreign(state, _MADE if goes_on else ())
        words = [*COMMAND.split(), "--state", str(state), "--server", name]
        if place is not None:
            check_place(place)
            words += ["--member", place.client]
        note_begun(state, COMMAND, f"run it again: {shlex.join(words)}")
        keep_identity(state, name)
        if address:
            keep_address(state, address)
        if place is not None:
            begin_member(state, name, place)
        remember_store(state, SQLITE if place is None else MEMBERS)
        note_finished(state)


def name_start(state: Path) -> str:
    return f"weft server --state {state}"


def show_first_node(state: Path, address: str) -> str:
    """The command with which another machine joins as a node, once the server answers; root's own commands reach it from now on.
    Raises Unavailable when it doesn't answer."""
    clock = SystemClock()
    until = clock.elapsed() + PATIENCE_SECONDS
    while True:
        try:
            context = read_context(state / CONTEXT)
            made = Client(context).create({"kind": "token", "spec": {"use": "join"}})
            break
        except (NotFound, Unavailable) as problem:
            if clock.elapsed() > until:
                raise Unavailable(
                    f"{SERVICE} was started, and doesn't answer: {problem.message}",
                    hint=f"journalctl -u {SERVICE} says why; once it runs: weft token create --join",
                ) from None
            asyncio.run(clock.sleep(0.2))
    own = Path.home() / ".config" / "weft" / CONTEXT
    if not own.exists():
        own.parent.mkdir(parents=True, exist_ok=True)
        write_context(own, context)
    url = url_at(address, PORTS["listen"])
    return f"weft agent join {url} --token {made['secret']} --ca-sha256 {hash_ca(context.ca)}"
