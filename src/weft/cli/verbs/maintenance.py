"""`weft node maintenance n1 on --reason "new fans"`: say that a node is being worked on, or no more."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from weft.cli.command import options
from weft.cli.command.completion import complete_target
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_targets
from weft.cli.command.target import Target
from weft.cli.session import Session
from weft.cli.wait.batch import each, finish_each
from weft.cli.wait.finish import Done
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME


def _complete(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of nodes; after one of them, on and off too."""
    nodes = complete_target(BY_NAME["node"])(context, param, incomplete)
    states = ("on", "off") if context.params.get("words") else ()
    return [*nodes, *(CompletionItem(state) for state in states if state.startswith(incomplete))]


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    words = click.Argument(["words"], nargs=-1, metavar="NODE... on|off", shell_complete=_complete)
    reason = click.Option(["--reason"], metavar="TEXT", default="", help="What is being done to the node.")

    def run(session: Session, kind: Kind | None, words: tuple[str, ...], reason: str) -> int:
        *names, state = words or ("",)
        if state not in ("on", "off") or not names:
            raise click.UsageError('give nodes, and on or off: weft node maintenance n1 on --reason "new fans"')
        done: list[Done] = []

        def act(target: Target) -> None:
            body = {"on": state == "on", "reason": reason}
            obj = session.client.verb(target.kind.name, target.name, verb, body)
            done.append(Done(target, obj, verb, f"maintenance {state}"))

        codes = each(session, find_targets(session, kind, names, entry.kinds), act)
        return finish_each(session, codes, done, [])

    return options.build(verb, f"{entry.summary}.", run, kind, [words, reason, *options.waits(), options.output()])
