"""`weft help`, `weft help all`, `weft help vm create`, `weft help exit-codes`, `weft help output`."""

from __future__ import annotations

import click

from weft.cli.command import options
from weft.cli.command.exit_codes import print_table
from weft.cli.command.grammar import PROCESSES, Entry, write_all
from weft.cli.output.form import describe_forms
from weft.cli.session import Session
from weft.kinds.record import Kind

TOPICS = {
    "all": lambda: write_all(click.get_current_context().find_root()),
    "exit-codes": print_table,
    "output": describe_forms,
}


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    words = click.Argument(["words"], nargs=-1, metavar=f"[COMMAND...|{'|'.join(TOPICS)}]")
    return options.build(verb, f"Show help on a command or a topic ({', '.join(TOPICS)}).", _run, kind, [words])


def _run(session: Session, kind: Kind | None, words: tuple[str, ...]) -> None:
    if len(words) == 1 and words[0] in TOPICS:
        print(TOPICS[words[0]]())
        return
    if words and words[0] in PROCESSES:
        raise click.UsageError(f"{words[0]} has help of its own: weft {' '.join(words)} --help")
    context = click.get_current_context().find_root()
    for word in words:
        group = context.command
        if not isinstance(group, click.Group):
            break
        _, found, _ = group.resolve_command(context, [word])
        if found is None:
            break
        context = click.Context(found, parent=context, info_name=word)
    print(context.get_help())
