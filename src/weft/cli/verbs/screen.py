"""`weft vm screen web` (or `weft vm console web --vnc`): the guest's screen, at a port here for a VNC viewer, or as a web
socket's address for a browser."""

from __future__ import annotations

from urllib.parse import quote

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry, able
from weft.cli.command.lookup import find_one
from weft.cli.command.target import Target
from weft.cli.session import Session
from weft.cli.stream.port_forward import listen_here, relay
from weft.kinds.record import Kind


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        options.targets(kind, many=False, able=entry.kinds),
        click.Option(["--url"], is_flag=True, help="Print a web socket's URL instead, valid once."),
        click.Option(["--port"], type=int, default=0, help="The local port. [any free one]"),
    ]
    return options.build(verb, "Show the guest's screen to a VNC viewer, or to a browser.", _run, kind, params)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], url: bool, port: int) -> int:
    target = find_one(session, kind, words, able("screen"), "give one VM")
    return show_screen(session, target, url, port)


def show_screen(session: Session, target: Target, url: bool, port: int) -> int:
    """Print where the screen is, and serve it there until interrupted (``url``: print and end)."""
    ticket = session.client.verb(target.kind.name, target.name, "screen", {})  # what can't be is said at once
    if url:
        print(f"wss://{ticket['address']}/v1/stream?ticket={quote(ticket['ticket'])}")
        return 0
    with listen_here(port) as listener:
        here = listener.getsockname()[1]
        print(f"vnc://127.0.0.1:{here}", flush=True)
        session.say(f"the screen of {target.what} is at 127.0.0.1:{here} for VNC viewers; Ctrl-C ends it")
        relay(session, listener, target, "screen", {})
    return 0
