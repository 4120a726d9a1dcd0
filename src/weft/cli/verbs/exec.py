"""`weft vm exec web -- CMD ARG…`: run a command in the guest. Its output, errors and exit code are this one's."""

from __future__ import annotations

import sys

import click

from weft.cli.command import options
from weft.cli.command.flags import read_pairs
from weft.cli.command.grammar import Entry, able
from weft.cli.command.lookup import find_one
from weft.cli.command.target import Target, is_noun
from weft.cli.output.terminal import is_terminal, raw_mode
from weft.cli.session import Session
from weft.cli.stream.client import Stream, dial, send_resizes
from weft.kinds.record import Kind


class GuestCommand(options.WithCommand):
    """Options end at ``--``, or else at the first word that is none; what follows goes to the guest unchanged."""

    allow_interspersed_args = False


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    name = "NAME" if kind else "KIND/NAME"
    params = [
        options.targets(kind, able=entry.kinds),
        click.Option(["-t", "--tty"], is_flag=True, help="Give the command a terminal."),
        click.Option(["-i", "--stdin", "ignored"], is_flag=True, expose_value=False, hidden=True),
        click.Option(
            ["-e", "--env"], multiple=True, metavar="KEY=VALUE", help="Set an environment variable for the command."
        ),
        click.Option(["-w", "--cwd"], default="", metavar="DIR", help="Run the command in this folder."),
    ]
    made = options.build(
        verb,
        "Run a command in the guest, with its streams and exit code here.",
        _run,
        kind,
        params,
        command_class=GuestCommand,
    )
    made.options_metavar = f"[OPTIONS] {name} -- CMD"
    return made


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], tty: bool, env: tuple[str, ...], cwd: str) -> int:
    argv = options.read_argv()
    if argv is None:
        words, argv = split_words(kind, words)
    target = find_one(session, kind, words, able("exec"), "give one guest, and -- before the command")
    if not argv:
        raise click.UsageError(f"the command is missing: weft vm exec {target.name} -- CMD")
    given = {"argv": list(argv), "env": read_pairs(env, "env"), "cwd": cwd, "tty": tty}
    return run_command(session, target, given)


def run_command(session: Session, target: Target, given: dict[str, object]) -> int:
    """Run it and carry its bytes; its exit code. Raises the error that kept it from running."""
    ticket = session.client.verb(target.kind.name, target.name, "exec", given)
    session.unfinished = True
    with dial(session.client.context, ticket) as sock:
        stream = Stream(sock)
        stdin = None if sys.stdin is None or sys.stdin.closed else sys.stdin.fileno()
        if given["tty"] and stdin is not None and is_terminal(sys.stdin):
            with raw_mode(stdin), send_resizes(stream):
                return stream.run(stdin) or 0
        return stream.run(stdin) or 0


def split_words(kind: Kind | None, words: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """Where no ``--`` says it: the object's words, and the command's."""
    named = 2 if kind is None and words and "/" not in words[0] and is_noun(words[0]) else 1
    return words[:named], list(words[named:])
