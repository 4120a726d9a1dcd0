"""`weft completion install`: TAB completes words, names and values from the next shell on; `… bash` prints the script."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from weft.cli import quick_completion
from weft.cli.command import options
from weft.cli.command.completion_grammar import write_grammar, write_in_background
from weft.cli.command.grammar import Entry, Root
from weft.cli.session import Session
from weft.kinds.record import Kind
from weft.objects.errors import InvalidInput

_USE = {
    "bash": 'eval "$(weft completion bash)"      # in ~/.bashrc',
    "zsh": 'eval "$(weft completion zsh)"       # in ~/.zshrc',
    "fish": "weft completion fish | source       # in ~/.config/fish/config.fish",
}
_ZSH_LINE = 'eval "$(weft completion zsh)"'


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        click.Argument(["act"], type=click.Choice([*_USE, "install"])),
        click.Argument(["shell"], type=click.Choice(list(_USE)), required=False, metavar="[bash|zsh|fish]"),
    ]
    epilog = "\b\nweft completion install             # for the shell that SHELL names\n" + "\n".join(_USE.values())
    return options.build(
        verb, "Install completion for a shell, or print its script.", _run, kind, params, epilog=epilog
    )


def _run(session: Session, kind: Kind | None, act: str, shell: str | None) -> None:
    if act != "install":
        if shell:
            raise click.UsageError(f"give one shell: weft completion {act}")
        print(_write_script(act), flush=True)
        write_in_background(click.get_current_context().find_root().command, session.environ)
        return
    shell = shell or Path(session.environ.get("SHELL", "")).name
    if shell not in _USE:
        raise click.UsageError(f"the shell is unknown: weft completion install {'|'.join(_USE)}")
    if not session.environ.get("HOME"):
        raise InvalidInput("HOME is not set, so there is nowhere to install it", hint=_USE[shell])
    print(f"completion  {_install(session, shell)}")
    write_grammar(click.get_current_context().find_root().command, session.environ)
    session.notify("completion works in the next shell that you open")


def _install(session: Session, shell: str) -> Path:
    """The file that was written. A second time changes nothing."""
    session.would(f"write the completion script of {shell} below {session.environ['HOME']}")
    home = Path(session.environ["HOME"])
    if shell == "zsh":
        path = home / ".zshrc"
        before = path.read_text() if path.exists() else ""
        if _ZSH_LINE not in before:
            path.write_text(f"{before.rstrip()}\n{_ZSH_LINE}\n".lstrip())
        return path
    if shell == "bash":
        data = Path(session.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
        path = data / "bash-completion" / "completions" / "weft"
    else:
        settings = Path(session.environ.get("XDG_CONFIG_HOME") or home / ".config")
        path = settings / "fish" / "completions" / "weft.fish"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_write_script(shell) + "\n")
    return path


def _write_script(shell: str) -> str:
    """Click's script, but it runs the quick completion first, which becomes ``weft`` if it doesn't know the answer."""
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"no completion for {shell}")
    script = found(Root("weft"), {}, "weft", "_WEFT_COMPLETE").source()
    program, file = shlex.quote(sys.executable), shlex.quote(quick_completion.__file__)
    ask, weft = f"_WEFT_COMPLETE={shell}_complete ", "$1" if shell == "bash" else "weft"
    if ask + weft not in script:
        return script
    if shell == "fish":
        begin = f"set -g _weft_quick; test -x {program} -a -r {file}; and set -g _weft_quick {program} -I -S {file};\n"
        return begin + script.replace(ask + weft, f"{ask}$_weft_quick weft")
    begin = f"_weft_quick=(); [ -x {program} ] && [ -r {file} ] && _weft_quick=({program} -I -S {file})\n"
    head, line, rest = script.partition("#compdef weft\n")
    head, rest = (head + line, rest) if line else ("", script)
    return head + begin + rest.replace(ask + weft, f'{ask}"${{_weft_quick[@]}}" {weft}')
