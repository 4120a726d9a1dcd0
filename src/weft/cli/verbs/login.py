"""`weft login`, `weft logout`, `weft whoami`: people work as themselves, with a token that a context keeps for a while."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.target import usage
from weft.cli.output.formats import print_data, print_rows
from weft.cli.output.table import Column
from weft.cli.output.terminal import is_terminal
from weft.cli.session import Session
from weft.cli.verbs.context import use_context
from weft.cli.verbs.user import PASSWORD_STDIN, ask_password
from weft.client.answer import raise_problem
from weft.client.context import (
    FOLDER,
    NAMED,
    Context,
    hash_ca,
    locate_context,
    read_context,
    refuse_other_server,
    user_folder,
    write_context,
)
from weft.client.http import Http
from weft.client.small_file import read_small
from weft.client.tls import check_digest, fetch_ca, find_unknown_ca
from weft.kinds.record import Kind
from weft.objects.errors import AlreadyExists, InvalidInput, NotAuthenticated, NotFound, describe_failure
from weft.objects.identity import check_name
from weft.objects.quantity import format_age, parse_period
from weft.protocol.login import LoginAnswer, LoginBegun, WhoAmI


def login_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft login --user ann`: the token goes into a context of the user's name, which is used from then on. For a server that a
    project's ``.weft`` names, as ``make up`` writes it, the context is a file beside: elsewhere nobody's commands go there."""
    params: list[click.Parameter] = [
        click.Option(["--server"], metavar="URL", help="The server's address. [that of the context]"),
        click.Option(["--ca"], metavar="FILE", help="The server's CA certificate. [that of the context]"),
        click.Option(
            ["--ca-sha256"],
            metavar="HEX",
            help="SHA-256 digest of the CA certificate that --ca names, or the server shows.",
        ),
        click.Option(["--user"], metavar="NAME", help="Who logs in."),
        PASSWORD_STDIN,
        click.Option(["--oidc"], is_flag=True, help="Log in at the server's OIDC provider, in a browser."),
        click.Option(["--device"], is_flag=True, help="Log in at the OIDC provider, with a browser on another device."),
        click.Option(
            ["--callback-port"], type=int, default=0, metavar="PORT", help="Where the browser comes back. [any]"
        ),
        click.Option(["--expires", "life"], metavar="DURATION", help="How long the login is valid. [12h]"),
        click.Option(["--save-as"], metavar="NAME|FILE", help="The context to write. [one of the user's name]"),
    ]
    return options.build(verb, "Log in as a user, and use the context that keeps the login.", _login, kind, params)


def _login(
    session: Session,
    kind: Kind | None,
    user: str | None,
    password_stdin: bool,
    oidc: bool,
    device: bool,
    callback_port: int,
    life: str | None,
    save_as: str | None,
    **place: str | None,
) -> None:
    if save_as and _names_file(save_as) and Path(save_as).exists():
        _refuse_other_file(Path(save_as))
    server = _find_server(session, **place)
    if user or save_as:
        _find_place(session, server, user or "", save_as)  # refused before a login is there that nobody could use
    if oidc or device:
        given = _log_in_by_code(session, server) if device else _log_in_by_browser(session, server, callback_port)
        return save_login(session, server, ask_login(server, given, life), save_as)
    if not user:
        if not is_terminal(sys.stdin):
            raise usage("the user is missing", "weft login --user NAME")
        user = str(click.prompt("User", err=True))
    given = {"user": user, "password": ask_password(f"Password of {user}", password_stdin)}
    return save_login(session, server, ask_login(server, given, life), save_as)


def _log_in_by_browser(session: Session, server: Context, port: int) -> dict[str, Any]:
    """The data that finish the login, once the browser has come back."""
    loopback = importlib.import_module("weft.client.loopback").Loopback(port)
    try:
        begun = _begin(server, {"oidc": "browser", "redirect": loopback.url})
        session.notify(f"open this page to log in: {begun.url}")
        if session.environ.get("DISPLAY") or session.environ.get("WAYLAND_DISPLAY"):
            importlib.import_module("webbrowser").open(begun.url)
        code = loopback.wait(begun.state, session.wait_seconds, session.clock.elapsed)
        return {"session": begun.session, "code": code}
    finally:
        loopback.close()


def _log_in_by_code(session: Session, server: Context) -> dict[str, Any]:
    """The data that finish the login, once the person may have typed the code."""
    begun = _begin(server, {"oidc": "device"})
    session.notify(f"open this page on any device to log in: {begun.url}")
    session.notify(f"it asks for the code {begun.user_code}")
    return {"session": begun.session}


def _begin(server: Context, given: dict[str, Any]) -> LoginBegun:
    http = Http(server)
    try:
        answer = http.request("POST", "/v1/login", given)
        raise_problem(answer)
        return msgspec.convert(answer.json(), LoginBegun)
    finally:
        http.close()


def ask_login(server: Context, given: dict[str, Any], life: str | None) -> LoginAnswer:
    """The server's answer to a login. Raises NotAuthenticated, Throttled."""
    if life is not None:
        given["expires_seconds"] = parse_period(life, "--expires")
    http = Http(server)
    try:
        while True:
            answer = http.request("POST", "/v1/login", given)
            if answer.status != 409 or answer.json().get("reason") != "loginPending":
                raise_problem(answer)
                return msgspec.convert(answer.json(), LoginAnswer)
            http.closed.wait(float(answer.json().get("retry_after_seconds") or 5.0))
    finally:
        http.close()


def save_login(session: Session, server: Context, made: LoginAnswer, save_as: str | None) -> None:
    """Put the login into a context, and use that."""
    context = msgspec.structs.replace(server, token=made.secret)
    if session.given_project is None:
        context.project = _find_project(session, context)
    try:
        path, name, local = _find_place(session, server, made.user, save_as)
    except AlreadyExists:
        _end(context, made.token)
        raise
    session.would(f"write the context {path}")
    write_context(path, context)
    session.notify(
        f"logged in as {made.user} for {format_age(made.expires_at - session.clock.now())}, project {context.project}"
    )
    if name:
        use_context(session, name)
    else:
        print(f"context  {path}")
    if local:
        session.notify(f"you still work as before; to work as {made.user} in this shell: export WEFT_CONTEXT={path}")


def _find_place(session: Session, server: Context, user: str, save_as: str | None) -> tuple[Path, str, bool]:
    """The file for a login, its context's name ("": it is a file), and whether it lies beside a project's own. Raises
    AlreadyExists where the context of another server is."""
    local = None if save_as else _find_folder(session, server)
    if local is not None:
        path, name = local / NAMED / f"{check_name(user)}.json", ""
    elif save_as and _names_file(save_as):
        path, name = Path(save_as), ""
    else:
        name = check_name(save_as or user)
        path = user_folder(session.environ) / NAMED / f"{name}.json"
    remove = f"weft context remove {name or user}" if name or local else f"rm {path}"
    refuse_other_server(path, server, f"give --save-as NAME to keep both, or remove that one: {remove}")
    return path, name, local is not None


def _end(context: Context, token: str) -> None:
    """Delete the token of a login that can't be kept."""
    http = Http(context)
    try:
        http.request("DELETE", f"/v1/tokens/{token}")
    finally:
        http.close()


def _names_file(save_as: str) -> bool:
    return "/" in save_as or save_as.endswith(".json")


def _refuse_other_file(path: Path) -> None:
    """A login renews a context, and replaces no other file. Raises InvalidInput."""
    if path.is_dir():
        raise InvalidInput(
            f"--save-as: {path} is a folder", field="--save-as", hint=f"give a file in it: {path}/NAME.json"
        )
    try:
        read_context(path)
    except InvalidInput:
        raise InvalidInput(
            f"--save-as: {path} exists already and is not a context",
            field="--save-as",
            hint="give another name, or remove that file",
        ) from None


def _find_project(session: Session, context: Context) -> str:
    """The project to work in: that of ``context`` if the user has a role there, else the only one, or the first, with a role."""
    http = Http(context)
    try:
        answer = http.request("GET", "/v1/whoami")
        raise_problem(answer)
    finally:
        http.close()
    grants = msgspec.convert(answer.json(), WhoAmI).grants
    projects = sorted({held.project for held in grants if held.project is not None})
    if not projects or context.project in projects or any(held.project is None for held in grants):
        return context.project
    if len(projects) > 1:
        session.notify(f"you have roles in {', '.join(projects)}: -p NAME chooses another")
    return projects[0]


def _find_folder(session: Session, server: Context) -> Path | None:
    """The project's ``.weft`` with the context in force, if that is of this server."""
    try:
        found = locate_context(session.context_file, session.environ)
    except NotFound:
        return None
    folder = next((one for one in Path(found.place).absolute().parents if one.name == FOLDER), None)
    return folder if found.context.server == server.server else None


def _find_server(session: Session, server: str | None, ca: str | None, ca_sha256: str | None) -> Context:
    """The server to log in to, without credentials: that of the context where flags don't say. Raises InvalidInput, NotFound."""
    try:
        known = locate_context(session.context_file, session.environ).context
    except NotFound:
        if server is None:
            raise
        known = Context(server="")
    same = server is None or server.rstrip("/") == known.server.rstrip("/")
    text = known.ca if same else ""
    if ca is not None:
        text = _read_ca(ca, ca_sha256)
    elif ca_sha256 is not None:
        text = fetch_ca(server or known.server, ca_sha256)
    elif not same and (shown := find_unknown_ca(server or "")):
        _ask_trust(server or "", hash_ca(shown))
        text = shown
    name = known.server_name if same else ""
    return Context(server=server or known.server, ca=text, server_name=name, project=session.project or known.project)


def _read_ca(file: str, sha256: str | None) -> str:
    """The CA certificate in ``file``. Raises InvalidInput for anything else, and for one with another digest."""
    hint = "give the file with the server's CA certificate (PEM); --ca-sha256 alone fetches it from the server"
    try:
        text = read_small(Path(file))
    except (OSError, UnicodeDecodeError) as problem:
        why = (
            problem.strerror.lower() if isinstance(problem, OSError) and problem.strerror else describe_failure(problem)
        )
        raise InvalidInput(f"--ca: {file} can't be read: {why}", field="ca", hint=hint) from None
    try:
        digest = hash_ca(text)
    except ValueError:
        raise InvalidInput(f"--ca: {file} is not a certificate", field="ca", hint=hint) from None
    if sha256 is not None:
        check_digest(sha256)
        if digest != sha256.lower().replace(":", ""):
            raise InvalidInput(
                f"--ca-sha256: the certificate in {file} has another digest: {digest}",
                field="ca_sha256",
                hint="give the right file, or leave out --ca: then the server's certificate is compared",
            )
    return text


def _ask_trust(server: str, sha256: str) -> None:
    """Whether the person trusts the CA of a server that this machine doesn't know. Raises UsageError where nobody can be asked,
    NotAuthenticated for no."""
    if not is_terminal(sys.stdin):
        raise usage(
            f"this machine doesn't know the server at {server}: its CA has the SHA-256 digest {sha256}",
            f"if that is what weft user invite or its administrator says: give --ca-sha256 {sha256}",
        )
    print(
        f"This machine doesn't know the server at {server}. The SHA-256 digest of its CA:\n  {sha256}", file=sys.stderr
    )
    if not click.confirm("Is that what weft user invite or its administrator says?", err=True):
        raise NotAuthenticated(
            f"the server at {server} isn't trusted: nothing was sent to it", hint="ask its administrator for the digest"
        )


def logout_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    return options.build(verb, "End the login of the context: its token is deleted.", _logout, kind)


def _logout(session: Session, kind: Kind | None) -> None:
    found = locate_context(session.context_file, session.environ)
    me = _ask_who(session)
    if me.user is None:
        raise usage("the context's token is not a user's login", f"weft token delete {me.token} deletes it")
    session.client.delete("token", me.token)
    path = Path(found.place)
    if path.is_file() and (kept := read_context(path)).token == found.context.token:
        write_context(path, msgspec.structs.replace(kept, token=""))
    print(f"user/{me.user}  logged out")


def whoami_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    return options.build(
        verb, "Show who you are to the server, and your roles.", _whoami, kind, [*options.table(), options.output()]
    )


def _whoami(session: Session, kind: Kind | None) -> None:
    me = _ask_who(session)
    if session.is_document:
        print_data(session, msgspec.to_builtins(me))
        return
    ends = "" if me.expires_at is None else f", valid for {format_age(me.expires_at - session.clock.now())}"
    what = f"user/{me.user}" if me.user is not None else me.name
    session.notify(f"{what}, by token/{me.token}{ends}")
    if me.limit is not None:
        session.notify(f"this token allows role {me.limit.role} at most, in {me.limit.project or 'all projects'}")
    if not me.grants:
        session.notify("no roles: an administrator gives them by weft rolebinding create")
    rows = [[held.role, held.project or "all"] for held in me.grants]
    print_rows(session, [Column("ROLE"), Column("PROJECT")], rows)


def _ask_who(session: Session) -> WhoAmI:
    answer = session.client.http.request("GET", "/v1/whoami")
    raise_problem(answer)
    return msgspec.convert(answer.json(), WhoAmI)
