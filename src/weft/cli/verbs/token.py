"""`weft token create --join --node n4`: a token, shown once; for a new node with the command to type there, for an access key
with the variables that AWS's SDKs read."""

from __future__ import annotations

import itertools
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.completion import complete_name
from weft.cli.command.grammar import Entry
from weft.cli.command.target import usage
from weft.cli.output.formats import print_object
from weft.cli.session import Session
from weft.cli.verbs.version import ask_time
from weft.client.context import LOOPBACK, hash_ca
from weft.client.tls import split_server
from weft.kinds.record import Kind
from weft.kinds.token import ONCE
from weft.kinds.token import SERVER_USE as SERVER
from weft.objects.identity import check_name
from weft.objects.quantity import format_age, parse_period

ACCESS_KEY = "access-key"
_JOIN_LIFE = "1h"


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        click.Argument(["words"], nargs=-1, metavar="[NAME]"),
        click.Option(["--join"], is_flag=True, help="Create a token that lets one node join, once."),
        click.Option(
            ["--access-key"], is_flag=True, help="Create a key that signs calls of a project's functions (AWS SDKs)."
        ),
        click.Option(
            ["--use"],
            type=click.Choice(["join", "server", "access", "access-key"]),
            help="What the token is for: join (a node), server (joins the fabric), access or access-key.",
        ),
        click.Option(["--node"], metavar="NAME", help="The only node name that may join with it."),
        click.Option(
            ["--role"],
            metavar="ROLE",
            help="What its bearer may do, with -p in that project only: built in or your own. [viewer; access key: invoker]",
            shell_complete=complete_name("role"),
        ),
        click.Option(["--subject"], metavar="TEXT", help="The person or program that it is for."),
        click.Option(["--expires", "life"], metavar="DURATION", help="How long the token is valid. [join: 1h]"),
        click.Option(["--server"], metavar="URL", help="The server's address as the new node sees it."),
        click.Option(["-l", "--label", "labels"], multiple=True, metavar="KEY=VALUE", hidden=True),
        *options.waits(),
        options.output(),
    ]
    return options.build(
        verb, "Create a token for a new node (--join), a person or a program; NAME is the token's.", _run, kind, params
    )


def _run(session: Session, kind: Kind, words: tuple[str, ...], join: bool, server: str | None, **given: Any) -> None:
    if len(words) > 1:
        raise click.UsageError(f"more than one name given: {' '.join(words)}")
    if server is not None:
        split_server(server)
    uses = {use for use, is_given in (("join", join), (ACCESS_KEY, given["access_key"])) if is_given} | {given["use"]}
    if len(uses - {None}) > 1:
        raise click.UsageError("--join, --access-key and --use contradict each other: give one of them")
    use = max(uses - {None}, default="access")
    join, access_key = use == "join", use == ACCESS_KEY
    if given["node"] and not join:
        raise click.UsageError("--node needs --join: give it too")
    if given["role"] and use in ONCE:
        raise usage(f"--role has no effect on a {use} token, which gives no role", "leave out --role")
    if server is not None and use not in ONCE:
        raise usage("--server is for the command that a new node or server joins with", "leave out --server")
    spec: dict[str, Any] = {"use": use}
    if access_key or given["role"] == "invoker":
        spec["project"] = session.client.project
    elif session.given_project:
        spec["project"] = session.given_project
    spec |= {key: given[key] for key in ("node", "role", "subject") if given[key] is not None}
    life = given["life"] or (_JOIN_LIFE if join or use == SERVER else None)
    if life is not None:
        seconds = parse_period(life, "--expires")
        if seconds < 1.0:
            raise usage(f"--expires: {life} is less than a second", "give a duration like 1h")
        spec["expires_at"] = ask_time(session) + seconds
    name = {"name": check_name(words[0].removeprefix("token/"))} if words else {}  # the server draws one
    made = session.client.create({"kind": "token", **name, "spec": spec})
    if session.is_data:
        print_object(session, made)
        return
    if access_key:
        print(f"AWS_ACCESS_KEY_ID={made['marks']['key_id']}\nAWS_SECRET_ACCESS_KEY={made['secret']}")
        session.notify(f"the secret is shown only once; it signs calls in project {made['spec']['project']}")
        session.notify("weft function endpoint -o env prints the endpoint as variables")
        return
    if use == SERVER:
        _show_server_join(session, server, made["secret"], life)
        if words:
            session.notify(f"the token is called {made['name']}; --server names the new server")
        return
    if not join:
        print(made["secret"])
        session.notify("the token is shown only once")
        if life is None and (ends := made["spec"]["expires_at"]) is not None:
            session.notify(f"valid for {format_age(ends - session.clock.now())}")
        return
    context = session.client.context
    address = server or _find_server(session)
    node = f" --node {given['node']}" if given["node"] else ""
    print(f"weft agent join {address} --token {made['secret']} --ca-sha256 {hash_ca(context.ca)}{node}")
    session.notify(f"valid once, for {life}; run it on the new node")
    if server is None and address.startswith(LOOPBACK):
        session.notify("that address is this machine's own; for another machine give --server https://ADDRESS:PORT")


def _find_server(session: Session) -> str:
    """The server's address as other machines reach it: the context of people on its own machine has one that only this reaches."""
    own = session.client.context.server
    shown = (
        [str(one["status"]["address"]) for one in session.client.list("server").items]
        if own.startswith(LOOPBACK)
        else []
    )
    return next((address for address in shown if address and not address.startswith(LOOPBACK)), own)


def _show_server_join(session: Session, server: str | None, secret: str, life: str | None) -> None:
    """Print the command that makes another machine a server, with the next free name."""
    context, servers = session.client.context, session.client.list("server").items
    taken, member = {one["name"] for one in servers}, any(one["marks"]["member"] for one in servers)
    ready = [one["status"]["address"] for one in servers if one["status"]["phase"] == "Ready"]
    is_gone = len(servers) > 1 and context.server not in ready  # of several, each says where others reach it
    address = server or (ready[0] if is_gone and ready else _find_server(session))
    name = next(name for number in itertools.count(2) if (name := f"s{number}") not in taken)
    print(
        f"weft server join {address} --token {secret} --ca-sha256 {hash_ca(context.ca)} --server {name}"
        " --state /var/lib/weft/server" + (" --member ADDRESS" if member else "")
    )
    session.notify(f"valid once, for {life}; run it on the new server. Keep it secret: it gives the keys of the fabric")
    if member:
        session.notify("ADDRESS is one of the new server, at which the others reach its member of the store")
    if server is None and address.startswith(LOOPBACK):
        session.notify("that address is this machine's own; for another machine give --server https://ADDRESS:PORT")
