"""`weft vm forward web 8080:80`: a port of this machine that leads to one of the guest's; `… web 22` over stdin and stdout."""

from __future__ import annotations

import re
import sys

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry, able
from weft.cli.command.lookup import find_targets
from weft.cli.session import Session
from weft.cli.stream.port_forward import carry, listen_here, relay
from weft.kinds.record import Kind

_PORTS = re.compile(r"(?:(\d{1,5}):)?(\d{1,5})")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    name = "NAME" if kind else "KIND/NAME"
    params = [
        click.Argument(["words"], nargs=-1, metavar=f"{name} [HERE:]PORT"),
        click.Option(
            ["--patience"], type=options.Duration(), default=0.0, help="How long to retry while nothing listens."
        ),
    ]
    return options.build(
        verb, "Forward a TCP port of the guest to the local port HERE, or to stdin and stdout.", _run, kind, params
    )


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], patience: float) -> int:
    match = _PORTS.fullmatch(words[-1]) if len(words) > 1 else None
    if match is None:
        raise click.UsageError("give the guest and its port, like: weft vm forward web 8080:80")
    (target,) = find_targets(session, kind, words[:-1], able("forward"))[:1]
    given = {"port": int(match[2]), "patience": patience}
    if match[1] is None:
        return carry(session, target, "forward", given, sys.stdin.fileno(), 1)
    session.client.verb(target.kind.name, target.name, "forward", given)  # what can't be is said at once
    with listen_here(int(match[1])) as listener:
        session.say(f"127.0.0.1:{listener.getsockname()[1]} leads to port {match[2]} of {target.what}; Ctrl-C ends it")
        relay(session, listener, target, "forward", given)
    return 0
