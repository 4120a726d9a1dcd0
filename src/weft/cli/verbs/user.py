"""`weft user create ann --password-stdin`, `weft user passwd ann`: users, and their passwords. No flag takes a password: a shell's
history and the list of processes would show it."""

from __future__ import annotations

import getpass
import sys
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.flags import make_flags
from weft.cli.command.grammar import Entry
from weft.cli.command.target import one_target, read_targets, usage
from weft.cli.output.terminal import is_terminal
from weft.cli.session import Session
from weft.cli.verbs.create import create_one
from weft.client.answer import raise_problem
from weft.kinds.record import Kind
from weft.kinds.user import MOST_BYTES, USER, check_password

PASSWORD_STDIN = click.Option(["--password-stdin"], is_flag=True, help="Read the password from standard input.")


def create_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    assert kind is not None
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="NAME"),
        *make_flags(kind),
        PASSWORD_STDIN,
        *options.making(),
        *options.dry_runs(),
        *options.waits(),
        options.output(),
    ]
    return options.build(
        verb,
        "Create a user, with a password if --password-stdin gives one. Role bindings say what the user may do.",
        _create,
        kind,
        params,
        command_class=options.WithCommand,
    )


def passwd_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """For administrators anyone's password, for users their own."""
    end_tokens = click.Option(["--end-tokens"], is_flag=True, help="End all of the user's other tokens, too.")
    params: list[click.Parameter] = [options.targets(kind or USER, many=False), PASSWORD_STDIN, end_tokens]
    words = (
        "Set a user's password: asks for it, and for the present one if it is your own. Ends the user's other logins."
    )
    return options.build(verb, words, _passwd, kind or USER, params)


def _create(session: Session, kind: Kind, words: tuple[str, ...], password_stdin: bool, **given: Any) -> int:
    password = check_password(read_stdin()) if password_stdin else None
    code, name = create_one(session, kind, words, **given)
    if password is not None and not given["dry_run"]:
        _set(session, name, password, "")
    return code


def _passwd(session: Session, kind: Kind, words: tuple[str, ...], password_stdin: bool, end_tokens: bool) -> None:
    name = one_target(read_targets(kind, words), "give one user: weft user passwd NAME").name
    answer = session.client.http.request("GET", "/v1/whoami")
    raise_problem(answer)
    is_own = answer.json().get("user") == name
    old = ask_password("Present password", password_stdin) if is_own else ""
    password = check_password(ask_password(f"New password of {name}", password_stdin))
    if not password_stdin and getpass.getpass("Again: ") != password:
        raise usage("the two passwords differ", f"weft user passwd {name}")
    left = _set(session, name, password, old, end_tokens=end_tokens)
    print(f"user/{name}  password set")
    if left:
        session.notify(
            f"still valid: {', '.join(f'token/{one}' for one in left)}; weft user passwd {name} --end-tokens ends them"
        )


def _set(session: Session, name: str, password: str, old: str, *, end_tokens: bool = False) -> list[str]:
    """Set it; the user's tokens that are still valid."""
    given = {"password": password, "old": old, **({"end_tokens": True} if end_tokens else {})}
    answer = session.client.http.request("POST", f"/v1/users/{name}:passwd", given)
    raise_problem(answer)
    return list(answer.json().get("tokens") or [])


def ask_password(prompt: str, from_stdin: bool) -> str:
    """A password from the terminal, unseen, or a line of standard input. Raises UsageError where neither gives one."""
    if from_stdin:
        return read_stdin()
    if not is_terminal(sys.stdin):
        raise usage("there is no terminal to ask for the password", "give --password-stdin")
    return getpass.getpass(f"{prompt}: ")


def read_stdin() -> str:
    """The next line of standard input. Raises UsageError if it is empty."""
    line = sys.stdin.readline(MOST_BYTES + 2).rstrip("\r\n")
    if not line:
        raise usage("stdin has no password: --password-stdin reads one from a line of it")
    return line
