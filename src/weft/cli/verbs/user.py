"""`weft user create ann --password-stdin`, `weft user invite ann -p lab`, `weft user passwd ann`: users, and their passwords. No
flag takes a password: a shell's history and the list of processes would show it."""

from __future__ import annotations

import getpass
import secrets
import sys
from contextlib import suppress
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.completion import complete_name
from weft.cli.command.flags import make_flags
from weft.cli.command.grammar import Entry
from weft.cli.command.target import one_target, read_targets, usage
from weft.cli.output.terminal import is_terminal
from weft.cli.session import Session
from weft.cli.verbs.create import create_one
from weft.client.answer import raise_problem
from weft.client.context import LOOPBACK, hash_ca
from weft.client.tls import split_server
from weft.kinds.fields.cells import dig
from weft.kinds.record import Kind
from weft.kinds.rolebinding import ROLE_BINDING
from weft.kinds.user import MOST_BYTES, USER, check_password
from weft.objects.errors import AlreadyExists, InUse
from weft.objects.identity import check_name, cut_name

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


def invite_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft user invite ann -p lab`: a user with a password and a role there, and the line to type on the user's machine."""
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="NAME"),
        click.Option(
            ["--role"],
            default="editor",
            metavar="ROLE",
            help="What the user may do in the project: built in or your own. [editor]",
            shell_complete=complete_name("role"),
        ),
        click.Option(["--server"], metavar="URL", help="The server's address as the user's machine sees it."),
    ]
    return options.build(
        verb,
        "Create a user with a role in a project, and print the line that the user types.",
        _invite,
        kind,
        params,
        in_project=True,
    )


def _invite(session: Session, kind: Kind | None, words: tuple[str, ...], role: str, server: str | None) -> None:
    """Each step may have been done before: an invitation that was cut off is given again."""
    if len(words) != 1:
        raise usage("give one user", "weft user invite NAME -p PROJECT")
    name = check_name(words[0].removeprefix(f"{USER.name}/"))
    if server is not None:
        split_server(server)
    client, project = session.client, session.client.project
    binding = cut_name(name, f"-{project}")
    wanted = {"role": role, "project": project, "users": [name]}
    made = {"kind": ROLE_BINDING.name, "name": binding, "spec": wanted}
    client.get("project", project)
    with suppress(AlreadyExists):
        client.create({**made, "spec": {**wanted, "users": []}}, dry_run=True)  # a role that isn't there leaves no user
    with suppress(AlreadyExists):
        client.create({"kind": USER.name, "name": name, "spec": {}})
    user = client.get(USER.name, name)
    try:
        client.create(made)
        print(f"user/{name}  {role} in project {project}")
    except AlreadyExists:
        has = client.get(ROLE_BINDING.name, binding)["spec"]
        if {key: has.get(key) for key in wanted} != wanted:
            raise InUse(
                f"rolebinding/{binding} is there with another role, project or other users",
                hint=f"weft rolebinding describe {binding} shows it; weft rolebinding create gives the role under another name",
            ) from None
        print(f"user/{name}  is {role} in project {project} already")
    address = server or client.context.server
    digest = f" --ca-sha256 {hash_ca(client.context.ca)}" if client.context.ca else ""
    print(f"weft login --server {address}{digest} --user {name}")
    if dig(user, "marks.password") or user["spec"].get("identity"):
        session.notify(f"{name} logs in as before; weft user passwd {name} sets another password")
    else:
        _give_password(session, name)
    session.notify(f"to limit what {name} takes there: weft quota set -p {project} --user {name} --cpu 4 --memory 16G")
    if server is None and address.startswith(LOOPBACK):
        session.notify("that address is this machine's own; for another machine give --server https://ADDRESS:PORT")


def _give_password(session: Session, name: str) -> None:
    """Set the user's first password and print it; none if another invitation did so meanwhile: that one's is valid."""
    password = "-".join(secrets.token_hex(3) for _ in range(3))
    try:
        _set(session, name, password, first=True)
    except AlreadyExists:
        session.notify(f"another invitation has just given {name} a password; weft user passwd {name} sets another one")
        return
    print(f"password  {password}")
    session.notify(f"the password is shown only once; {name} changes it by: weft user passwd {name}")


def passwd_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """The command that sets a password: for administrators anyone's password, for users their own."""
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
        _set(session, name, password)
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
    left = _set(session, name, password, old=old, end_tokens=end_tokens)
    print(f"user/{name}  password set")
    if left:
        session.notify(
            f"still valid: {', '.join(f'token/{one}' for one in left)}; weft user passwd {name} --end-tokens ends them"
        )


def _set(session: Session, name: str, password: str, **more: str | bool) -> list[str]:
    """Set it; the user's tokens that are still valid. Raises what the server does."""
    given = {"password": password, **{key: value for key, value in more.items() if value}}
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
