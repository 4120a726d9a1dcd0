"""`weft cluster link-token east` at one cluster prints what `weft cluster link west URL --token TOKEN` at the other needs: both are
linked then."""

from __future__ import annotations

import sys
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.flags import refuse_twice
from weft.cli.command.grammar import Entry
from weft.cli.command.target import Target, usage
from weft.cli.output.formats import print_object
from weft.cli.session import Session
from weft.cli.verbs.version import ask_time
from weft.cli.wait.finish import finish_one
from weft.client.answer import raise_problem
from weft.kinds.cluster import CLUSTER
from weft.kinds.fields.cluster.link import GRANTS, VALUE, read_witness_token
from weft.kinds.record import Kind
from weft.objects.errors import WeftError
from weft.objects.identity import check_name
from weft.objects.quantity import parse_period

LIFE, LONGEST_LIFE_SECONDS = "1h", 7 * 86400.0
LOOPBACK = ("https://127.", "https://localhost", "https://[::1]")


def link_token_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="[NAME]"),
        *_terms(),
        click.Option(["--expires", "life"], metavar="DURATION", default=LIFE, help=f"How long it is valid. [{LIFE}]"),
        options.output(),
    ]
    words = (
        "Print a token that links one other cluster with this one, once. NAME is what that cluster is called here. Its grants are "
        "what that cluster may do here: without any, it may only ask how this one is; one that is linked already keeps its own."
    )
    return options.build(verb, words, _make_token, kind, params)


def witness_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="NAME [URL]"),
        click.Option(["--peer"], metavar="SITE", help="What the witness calls the other cluster. [NAME]"),
        click.Option(["--token"], metavar="TOKEN", help="What weft witness add-site printed for this cluster."),
        click.Option(["--token-stdin"], is_flag=True, help="Read the token from stdin."),
        click.Option(["--off"], is_flag=True, help="Ask no witness any more."),
        options.output(),
    ]
    words = (
        "Set the witness of the link with cluster NAME: the third place, at URL, that both clusters ask which of them is primary. "
        "While it gets word from the cluster that a VM runs at, the VM's replica at the other is promoted with --force only."
    )
    return options.build(verb, words, _set_witness, kind, params)


def link_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="NAME URL"),
        click.Option(["--token"], metavar="TOKEN", help="What weft cluster link-token printed at the other cluster."),
        click.Option(["--token-stdin"], is_flag=True, help="Read the token from stdin."),
        click.Option(
            ["--own-url"], metavar="URL", help="This cluster's API server, as the other reaches it. [the context's]"
        ),
        *_terms(),
        *options.waits(),
        options.output(),
    ]
    words = (
        "Link another cluster with this one. NAME is what it is called here, URL is its API server, as this cluster reaches it. "
        "The grants are what the other cluster may do here: without any, it may only ask how this one is; one that is linked "
        "already keeps its own."
    )
    return options.build(verb, words, _link, kind, params)


def _terms() -> list[click.Parameter]:
    return [
        click.Option(
            ["--grants"], metavar="WORDS", help=f"What the other cluster may do here, with commas: {', '.join(GRANTS)}."
        ),
        click.Option(
            ["--projects"],
            metavar="NAMES",
            help="Projects that the link is for, with commas: NAME, or NAME=THERE if it has another name there.",
        ),
    ]


def _read_terms(grants: str | None, projects: str | None) -> dict[str, Any]:
    """Read the terms; what is left out stays as the link has it."""
    terms: dict[str, Any] = {}
    if grants is not None:
        terms["grants"] = _split(grants)
    if projects is not None:
        terms["projects"] = {}
        for here, _, there in (word.partition("=") for word in _split(projects)):
            refuse_twice(here, terms["projects"], "--projects")
            terms["projects"][here] = there or here
    return terms


def _split(text: str | None) -> list[str]:
    return [word for word in (part.strip() for part in (text or "").split(",")) if word]


def _make_token(
    session: Session, kind: Kind, words: tuple[str, ...], grants: str | None, projects: str | None, life: str
) -> None:
    if len(words) > 1:
        raise usage(f"more than one name given: {' '.join(words)}", "give one name, or none")
    seconds = parse_period(life, "--expires")
    if seconds < 1.0:
        raise usage(f"--expires: {life} is less than a second", "give a duration like 1h")
    if seconds > LONGEST_LIFE_SECONDS:
        raise usage(
            f"--expires: {life} is more than a week", "give a shorter time: the link lasts, the token is for making it"
        )
    name = check_name(words[0].removeprefix("cluster/")) if words else ""
    spec = {
        "use": "link",
        "expires_at": ask_time(session) + seconds,
        "link": {"name": name, **_read_terms(grants, projects)},
    }
    made = session.client.create({"kind": "token", "spec": spec})
    if session.is_data:
        print_object(session, made)
        return
    print(made["secret"])
    server = session.client.context.server
    session.notify(f"valid once, for {life}; at the other cluster: weft cluster link NAME {server} --token TOKEN")
    if server.startswith(LOOPBACK):
        session.notify("that address is this machine's own; give the other cluster one that it reaches")


def _set_witness(session: Session, kind: Kind, words: tuple[str, ...], **given: Any) -> None:
    if len(words) != (1 if given["off"] else 2):
        raise usage(
            "give the cluster's name and the witness's address", "weft cluster witness west https://192.0.2.7:7443"
        )
    name = check_name(words[0].removeprefix("cluster/"))
    if given["off"]:
        changes: dict[str, Any] = {"witness": None}
    else:
        if bool(given["token"]) == given["token_stdin"]:
            raise usage("give the token once", "with --token TOKEN, or by stdin and --token-stdin")
        token = given["token"] or sys.stdin.readline(1000).strip()
        peer, own = given["peer"] or name, read_witness_token(token)
        if own is not None and own.site == peer:
            raise usage(
                f"--token is that of {peer}, the other cluster",
                "give this cluster's own: weft witness add-site prints one for each",
            )
        changes = {"witness": {"url": words[1], "peer": peer}, "values": {VALUE: token}}
    made = session.client.patch(CLUSTER.name, name, {"spec": changes})
    if session.is_data:
        print_object(session, made)
    else:
        asks = "asks the witness from now on; its answers: weft replication list -o wide, column WITNESS"
        print(f"cluster/{name} {'asks no witness any more' if given['off'] else asks}")


def _link(session: Session, kind: Kind, words: tuple[str, ...], **given: Any) -> int:
    if len(words) != 2:
        raise usage("give a name and an address", "weft cluster link west https://10.0.0.1:8443 --token TOKEN")
    name, url = check_name(words[0].removeprefix("cluster/")), words[1]
    if bool(given["token"]) == given["token_stdin"]:
        raise usage("give the token once", "with --token TOKEN, or by stdin and --token-stdin")
    token = given["token"] or sys.stdin.readline(1000).strip()
    own = given["own_url"] or session.client.context.server
    body = {"url": url, "token": token, "own_url": own, **_read_terms(given["grants"], given["projects"])}
    answer = session.client.http.request("POST", f"/v1/clusters/{name}:link", body, timeout_seconds=60.0)
    raise_problem(answer)
    made = answer.json()
    if not isinstance(made, dict):
        raise WeftError("the server's answer is not an object")
    if given["own_url"] is None and own.startswith(LOOPBACK) and not url.startswith(LOOPBACK):
        session.notify(
            f"{name} knows this cluster at {own}, which is this machine's own: link it again with --own-url URL"
        )
    return finish_one(session, Target(CLUSTER, name), made, "create")
