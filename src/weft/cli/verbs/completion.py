"""`weft completion bash`: the script a shell loads; names come live from the server."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from weft.cli import options
from weft.cli.grammar import Entry, Root
from weft.cli.session import Session
from weft.kinds.record import Kind

_USE = {
    "bash": 'eval "$(weft completion bash)"      # in ~/.bashrc',
    "zsh": 'eval "$(weft completion zsh)"       # in ~/.zshrc',
    "fish": "weft completion fish | source       # in ~/.config/fish/config.fish",
}


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    shell = click.Argument(["shell"], type=click.Choice(list(_USE)))
    epilog = "\b\n" + "\n".join(_USE.values())
    return options.build(verb, "Print the completion script of a shell.", _run, kind, [shell], epilog=epilog)


def _run(session: Session, kind: Kind | None, shell: str) -> None:
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"no completion for {shell}")
    print(found(Root("weft"), {}, "weft", "_WEFT_COMPLETE").source())
