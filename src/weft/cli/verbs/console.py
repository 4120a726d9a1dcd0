"""`weft vm console web`: the guest's serial console; Ctrl-] leaves it. With --vnc its screen, over the same gateway."""

from __future__ import annotations

import sys

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry, able
from weft.cli.command.lookup import find_one
from weft.cli.output.terminal import is_terminal, raw_mode
from weft.cli.session import Session
from weft.cli.stream.client import Stream, dial, send_resizes
from weft.cli.verbs.screen import show_screen
from weft.kinds.record import Kind

ESCAPE = b"\x1d"


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        options.targets(kind, many=False, able=entry.kinds),
        click.Option(["--vnc"], is_flag=True, help="Open the screen instead, at a local port for a VNC viewer."),
        click.Option(["--url"], is_flag=True, help="With --vnc: print a web socket's URL instead, valid once."),
        click.Option(["--port"], type=int, default=0, help="With --vnc: the local port. [any free one]"),
    ]
    return options.build(verb, "Show the guest's serial console and type on it; Ctrl-] leaves.", _run, kind, params)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], vnc: bool, url: bool, port: int) -> int:
    target = find_one(session, kind, words, able("console"), "give one VM: consoles open one at a time")
    if vnc:
        return show_screen(session, target, url, port)
    ticket = session.client.verb(target.kind.name, target.name, "console", {})
    with dial(session.client.context, ticket) as sock:
        if not is_terminal(sys.stdin):
            return Stream(sock).run(sys.stdin.fileno()) or 0
        session.say(f"console of {target.what}; Ctrl-] leaves it")
        stream = Stream(sock, escape=ESCAPE, forward_end=False)
        with raw_mode(sys.stdin.fileno()), send_resizes(stream):
            code = stream.run(sys.stdin.fileno())
        session.say("")
        return code or 0
