"""``weft server init``: makes this machine the first server of a fabric whose servers keep a member of the store each."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from weft.launch.process.address import take_by
from weft.launch.process.amounts import Parser
from weft.launch.server.membership.folder import new_folder, refuse_foreign
from weft.launch.server.membership.identity import FILE, FIRST, keep_identity
from weft.launch.server.unfinished import FILE as UNFINISHED
from weft.launch.server.unfinished import note_begun, note_finished, read_unfinished
from weft.launch.store.engine import FILE as STORE_FILE
from weft.launch.store.engine import MEMBERS, recall_store, remember_store
from weft.launch.store.etcd import find_etcd
from weft.launch.store.member import FOLDER, begin_member, check_place
from weft.objects.errors import AlreadyExists
from weft.objects.identity import check_name
from weft.protocol.server.join import MemberPlace, read_place

COMMAND = "weft server init"
# What it makes, and one that was ended half-way has left.
_MADE = (UNFINISHED, FILE, FOLDER, "store.url")


def main(argv: Sequence[str]) -> int:
    """Begin, and say what comes next; the exit status. Raises WeftError."""
    options = parse_init(argv)
    state: Path = options.state.absolute()
    begin(state, options.server, options.member)
    print(f"server {options.server} has a member of the store at {options.member.client}")
    print(f"start it: {name_start(state)}")
    print("then let two more join: weft token create --use server")
    return 0


def parse_init(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of ``weft server init``."""
    parser = Parser(
        prog="weft server init",
        description="Make this machine the first server of a fabric whose servers keep a member of the store each: with three"
        " of them, any one may die.",
    )
    parser.add_argument("--state", required=True, type=Path, help="folder for the server's data")
    parser.add_argument("--server", default=FIRST, metavar="NAME", help=f"its name (default {FIRST})")
    add_member(parser, required=True)
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


def begin(state: Path, name: str, place: MemberPlace) -> None:
    """Make ``state`` the folder of the first server. Raises AlreadyExists when it is a server's already, InvalidInput
    when it has other files, or ``place`` isn't of this machine, InUse when another process listens there, and Unavailable without
    etcd."""
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
        check_place(place)
        again = shlex.join([*COMMAND.split(), "--state", str(state), "--server", name, "--member", place.client])
        note_begun(state, COMMAND, f"run it again: {again}")
        keep_identity(state, name)
        begin_member(state, name, place)
        remember_store(state, MEMBERS)
        note_finished(state)


def name_start(state: Path) -> str:
    return f"weft server --state {state} --listen ADDRESS:8443 --gateway ADDRESS:8444 --functions ADDRESS:8445"
