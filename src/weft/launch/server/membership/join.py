"""``weft server join``: makes this machine another server of a fabric, with the keys that a server of it gives.

The token is sent only over a connection that the checked CA authenticates. It counts once: a join whose answer was lost needs
another one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

import weft
from weft.agent.node.facts import find_own_address
from weft.client.answer import ClientAnswer, raise_problem
from weft.client.context import Context
from weft.client.http import Http
from weft.client.small_file import read_small
from weft.client.tls import fetch_ca, split_server
from weft.launch.process.address import take_host, take_server
from weft.launch.process.amounts import Parser
from weft.launch.process.service import has_service, start_service
from weft.launch.server.membership.address import keep_address
from weft.launch.server.membership.folder import new_folder, refuse_foreign
from weft.launch.server.membership.identity import keep_identity
from weft.launch.server.membership.init import SERVICE, STATE, add_member, name_start
from weft.launch.server.membership.keys import KEPT, write_keys
from weft.launch.server.unfinished import FILE as UNFINISHED
from weft.launch.server.unfinished import note_begun, note_finished
from weft.launch.store.engine import FILE as STORE_FILE
from weft.launch.store.etcd import find_etcd
from weft.launch.store.member import check_place, read_member
from weft.objects.errors import AlreadyExists, InvalidInput, NotAuthenticated
from weft.objects.identity import SERVER_NAME
from weft.protocol.server.join import (
    PATH,
    MemberPlace,
    ServerJoinAnswer,
    ServerJoinInput,
    ServerKeys,
    name_use,
    warn_of_even,
)
from weft.trust.seal import derive_key, unseal
from weft.trust.tokens import parse_token


def main(argv: Sequence[str]) -> int:
    """Join, and say how to start the server; the exit status. Raises WeftError."""
    options = parse_join(argv)
    state: Path = options.state.absolute()
    address = options.address or (options.member.host if options.member is not None else "")
    address = address or find_own_address(*split_server(options.server_url))
    name = join(state, options.server_url, _read_token(options), options.ca_sha256, options.server, options.member)
    if address:
        keep_address(state, address)
    print(f"server {name} has joined {options.server_url}")
    if state == STATE and has_service(SERVICE):
        start_service(SERVICE)
    else:
        print(f"start it: {name_start(state)}")
    if options.member is not None and (warning := warn_of_even(len(read_member(state).others) + 1)):
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def parse_join(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of ``weft server join``."""
    parser = Parser(prog="weft server join", description="Make this machine another server of a fabric.")
    parser.add_argument(
        "server_url", metavar="URL", type=take_server, help="a server of it, like https://10.0.0.1:8443"
    )
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--token", help="a server's join token, from weft token create --use server")
    given.add_argument("--token-file", type=Path, help="a file with the token")
    parser.add_argument(
        "--ca-sha256", required=True, metavar="HEX", help="SHA-256 digest of the server's CA certificate"
    )
    parser.add_argument("--state", default=STATE, type=Path, help=f"folder for the new server's data (default {STATE})")
    parser.add_argument("--server", required=True, metavar="NAME", help="the new server's name, like s2")
    parser.add_argument(
        "--address",
        type=take_host,
        help="address of this machine that the others reach (default: that of --member, or on the route to URL)",
    )
    add_member(parser, required=False)
    return parser.parse_args(argv)


def join(state: Path, url: str, token: str, ca_sha256: str, name: str, member: MemberPlace | None = None) -> str:
    """Make ``state`` the folder of server ``name`` of the fabric at ``url``, with a member of its store at ``member``; the name.

    Raises NotAuthenticated for a wrong digest or token, AlreadyExists when the name is taken or the folder is another
    server's, InvalidInput when it has other files, or ``member`` isn't of this machine, InUse when another process listens
    there, Unavailable when no server answers or its store can't be shared."""
    shown = parse_token(token)
    if shown is None:
        raise InvalidInput(
            "the token is not one of weft's",
            field="token",
            hint="copy the whole command that weft token create --use server printed",
        )
    if member is not None:
        find_etcd()  # before the token is used
        check_place(member)
    ca = fetch_ca(url, ca_sha256)
    with new_folder(state):
        refuse_another(state, ca)
        refuse_foreign(state, {*KEPT, UNFINISHED})
        identity = keep_identity(state, name)
        given = ServerJoinInput(identity.name, identity.uid, "" if member is None else member.client, weft.__version__)
        note_begun(
            state,
            f"weft server join of {identity.name}",
            f"remove {state}; at a server of the fabric: weft server delete {identity.name}, if weft server list shows it, then"
            " weft token create --use server; and join again with that token",
        )
        answer = _ask(Context(server=url, ca=ca, token=token, server_name=SERVER_NAME), given)
        sealed, use = msgspec.json.decode(answer.body, type=ServerJoinAnswer).sealed, name_use(given)
        keys = msgspec.json.decode(unseal(derive_key(shown.secret.encode(), use), sealed, use), type=ServerKeys)
        write_keys(state, keys, identity.name, member)
        note_finished(state)
    return identity.name


def _ask(context: Context, given: ServerJoinInput) -> ClientAnswer:
    http = Http(context)
    try:
        answer = http.request("POST", PATH, given)
    finally:
        http.close()
    try:
        raise_problem(answer)
    except NotAuthenticated as problem:  # an unknown token doesn't say what it was for
        problem.hint = "at a server of the fabric: weft token create --use server makes another token"
        raise
    return answer


def refuse_another(state: Path, ca: str) -> None:
    """Raises AlreadyExists when the folder has a store of its own, or the keys of another fabric."""
    own = state / "ca.crt"
    if (state / STORE_FILE).exists() or (own.exists() and own.read_text() != ca):
        raise AlreadyExists(
            f"{state} is the folder of a server of another fabric", field="state", hint="give another --state"
        )


def _read_token(options: argparse.Namespace) -> str:
    try:
        text: str = options.token or read_small(options.token_file)
    except (OSError, UnicodeDecodeError) as problem:
        said = getattr(problem, "strerror", None) or "it isn't text"
        raise InvalidInput(
            f"--token-file {options.token_file} can't be read: {said}",
            field="token_file",
            hint="weft token create --use server prints the token; write it into a file",
        ) from None
    return text.strip()
