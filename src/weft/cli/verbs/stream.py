"""Verbs that carry bytes to and from a guest: exec, ssh, console, screen, forward."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import ssl
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import click
import msgspec

from weft.cli.command import options
from weft.cli.command.flags import read_pairs
from weft.cli.command.grammar import Entry, able
from weft.cli.command.lookup import find_one, find_targets
from weft.cli.command.target import Target, is_noun
from weft.cli.output.terminal import find_size, is_terminal, raw_mode
from weft.cli.session import Session
from weft.cli.stream.client import Stream, open_stream, send_resizes
from weft.cli.stream.held_exec import HeldExec
from weft.cli.stream.port_forward import carry, listen_here, relay
from weft.kinds.parts.convert_verb import refuse_departed
from weft.kinds.record import Kind
from weft.objects.errors import InvalidInput, NotFound
from weft.protocol.frames import ClientSession


class GuestCommand(options.WithCommand):
    """Options end at ``--``, or at the first argument; what follows goes to the guest unchanged."""

    allow_interspersed_args = False


def exec_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft vm exec web -- CMD ARG…`: run a command in the guest. Its output, errors and exit code are this one's."""
    words = options.targets(kind, many=False, able=entry.kinds)
    words.metavar = f"{words.metavar} -- CMD..."
    params = [
        words,
        click.Option(["-t", "--tty"], is_flag=True, help="Give the command a terminal."),
        click.Option(["-i", "--stdin", "ignored"], is_flag=True, expose_value=False, hidden=True),
        click.Option(
            ["-e", "--env"], multiple=True, metavar="KEY=VALUE", help="Set an environment variable for the command."
        ),
        click.Option(["-w", "--cwd"], default="", metavar="DIR", help="Run the command in this folder."),
    ]
    summary = "Run a command in the guest, with its streams and exit code here."
    return options.build(verb, summary, _exec, kind, params, command_class=GuestCommand)


def _exec(
    session: Session, kind: Kind | None, words: tuple[str, ...], tty: bool, env: tuple[str, ...], cwd: str
) -> int:
    argv = options.read_argv()
    if argv is None:
        words, argv = split_words(kind, words)
    target = find_one(session, kind, words, able("exec"), "give one guest, and -- before the command")
    if not argv:
        raise click.UsageError(f"the command is missing: weft {target.kind.name} exec {target.name} -- CMD")
    given: dict[str, object] = {"argv": list(argv), "env": read_pairs(env, "env"), "cwd": cwd, "tty": tty}
    if tty and sys.stdin is not None and is_terminal(sys.stdin):
        given["rows"], given["columns"] = find_size()
    return run_command(session, target, given)


def run_command(session: Session, target: Target, given: dict[str, object]) -> int:
    """Run it and carry its bytes, through another gateway if its own is lost; its exit code. Raises the error that kept it from
    running, or ended it."""

    def open_at(where: ClientSession) -> ssl.SSLSocket:
        said = msgspec.to_builtins(where)
        return open_stream(session.client, target.kind.name, target.name, "exec", given, session=said)

    held = HeldExec(open_at, session.clock.elapsed, session.client.http.closed.wait)
    with held.begin() as sock:
        session.unfinished = True
        stream = Stream(sock, held=held)
        stdin = None if sys.stdin is None or sys.stdin.closed else sys.stdin.fileno()
        if given["tty"] and stdin is not None and is_terminal(sys.stdin):
            with raw_mode(stdin), send_resizes(stream):
                return stream.run(stdin) or 0
        return stream.run(stdin) or 0


def split_words(kind: Kind | None, words: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """The object's words and the command's, without a ``--`` between them."""
    named = 2 if kind is None and words and "/" not in words[0] and is_noun(words[0]) else 1
    return words[:named], list(words[named:])


PATIENCE = "60s"


def ssh_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft ssh [USER@]web [-- CMD]`: log into a guest by SSH, from wherever the API can be reached.

    The connection goes through the gateway to port 22 of the guest (`weft vm forward` as ssh's ProxyCommand). Host keys are
    kept by the VM's uid, so a new VM of an old name raises no alarm."""
    params = [
        click.Argument(["words"], nargs=-1, metavar="[USER@]NAME [-- CMD...]"),
        click.Option(["-i", "--identity"], default="", metavar="FILE", help="The private key to log in with."),
    ]
    summary = "Log into a VM by SSH, through the gateway."
    return options.build(verb, summary, _ssh, kind, params, command_class=GuestCommand)


def _ssh(session: Session, kind: Kind | None, words: tuple[str, ...], identity: str) -> int:
    argv = options.read_argv()
    if argv is None:
        words, argv = split_words(kind, words)
    user, at, _ = words[0].rpartition("@") if words else ("", "", "")
    target = find_one(
        session,
        kind,
        (words[0].removeprefix(f"{user}{at}"), *words[1:]) if words else words,
        able("ssh"),
        "give one VM, and -- before the command",
    )
    if shutil.which("ssh") is None:
        raise NotFound("this machine has no ssh", hint="apt-get install openssh-client")
    vm = session.client.get("vm", target.name)
    refuse_departed(vm)
    spec = vm["spec"]
    if not spec.get("ssh_keys") and not spec.get("user_data"):
        raise InvalidInput(
            f"{target.what} was created without an SSH key",
            field="ssh-key",
            hint=f"weft vm exec -t {target.name} -- sh, or create it with --ssh-key FILE",
        )
    user = user or (spec.get("users") or ["root"])[0]
    session.would(f"run ssh to {target.what} through weft vm forward")
    settings = ssh_settings(session, target.name, vm["uid"], identity)
    sys.stdout.flush()
    os.execvp("ssh", ["ssh", *settings, f"{user}@{target.name}", *argv])


def ssh_settings(session: Session, name: str, uid: str, identity: str) -> list[str]:
    """ssh's options for the VM ``name``: the way there, and where its host key is kept."""
    known_hosts = Path(session.environ.get("HOME") or "/root") / ".config" / "weft" / "known_hosts"
    known_hosts.parent.mkdir(parents=True, exist_ok=True)
    program = Path(sys.argv[0]).resolve() if Path(sys.argv[0]).exists() else "weft"
    way = [str(program), "vm", "forward", name, "22", "--patience", PATIENCE]
    for flag, value in (("--context", session.context_file), ("--project", session.project)):
        way += [flag, value] if value else []
    settings = {
        "ProxyCommand": shlex.join(way),
        "HostKeyAlias": f"weft-{uid}",
        "UserKnownHostsFile": str(known_hosts),
        "StrictHostKeyChecking": "accept-new",
        "LogLevel": "ERROR",
    }
    return [
        *(word for key, value in settings.items() for word in ("-o", f"{key}={value}")),
        *(["-i", identity] if identity else []),
    ]


ESCAPE = b"\x1d"
_PORT = click.IntRange(0, 65_535)


def console_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft vm console web`: the guest's serial console; Ctrl-] leaves it. With --vnc its screen, over the same gateway."""
    params = [
        options.targets(kind, many=False, able=entry.kinds),
        click.Option(["--vnc"], is_flag=True, help="Open the screen instead, at a local port for a VNC viewer."),
        click.Option(["--url"], is_flag=True, help="With --vnc: print a web socket's URL instead, valid once."),
        click.Option(
            ["--port"], type=_PORT, default=0, metavar="PORT", help="With --vnc: the local port. [any free one]"
        ),
    ]
    return options.build(verb, "Show the guest's serial console and type on it; Ctrl-] leaves.", _console, kind, params)


def _console(session: Session, kind: Kind | None, words: tuple[str, ...], vnc: bool, url: bool, port: int) -> int:
    target = find_one(session, kind, words, able("console"), "give one VM: consoles open one at a time")
    if vnc:
        return show_screen(session, target, url, port)
    if url or port:
        raise click.UsageError(f"{'--url' if url else '--port'} needs --vnc: give it too")
    with open_stream(session.client, target.kind.name, target.name, "console", {}) as sock:
        if not is_terminal(sys.stdin):
            return Stream(sock).run(sys.stdin.fileno()) or 0
        session.notify(f"console of {target.what}; Ctrl-] leaves it")
        stream = Stream(sock, escape=ESCAPE, forward_end=False, cut_hint="open it again: the guest runs on")
        with raw_mode(sys.stdin.fileno()), send_resizes(stream):
            code = stream.run(sys.stdin.fileno())
        session.notify("")
        return code or 0


def screen_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft vm screen web` (or `weft vm console web --vnc`): the guest's screen, at a port here for a VNC viewer, or as a web
    socket's address for a browser."""
    params = [
        options.targets(kind, many=False, able=entry.kinds),
        click.Option(["--url"], is_flag=True, help="Print a web socket's URL instead, valid once."),
        click.Option(["--port"], type=_PORT, default=0, metavar="PORT", help="The local port. [any free one]"),
    ]
    return options.build(verb, "Show the guest's screen to a VNC viewer, or to a browser.", _screen, kind, params)


def _screen(session: Session, kind: Kind | None, words: tuple[str, ...], url: bool, port: int) -> int:
    target = find_one(session, kind, words, able("screen"), "give one VM")
    return show_screen(session, target, url, port)


def show_screen(session: Session, target: Target, url: bool, port: int) -> int:
    """Print where the screen is, and serve it there until interrupted (``url``: print and end)."""
    check_screen(session, target)
    if url:
        ticket = session.client.verb(target.kind.name, target.name, "screen", {})
        print(f"wss://{ticket['address']}/v1/stream?ticket={quote(ticket['ticket'])}")
        return 0
    with listen_here(port) as listener:
        here = listener.getsockname()[1]
        print(f"vnc://127.0.0.1:{here}", flush=True)
        session.notify(f"the screen of {target.what} is at 127.0.0.1:{here} for VNC viewers; Ctrl-C ends it")
        relay(session, listener, target, "screen", {})
    return 0


class _Greeted(Exception):
    """The screen has sent something."""


def check_screen(session: Session, target: Target) -> None:
    """Whether it has a screen is known only where it runs: ask for what the screen says first. Raises what the node answers."""

    def stop(descriptor: int, data: bytes) -> None:
        raise _Greeted

    with open_stream(session.client, target.kind.name, target.name, "screen", {}) as sock, suppress(_Greeted):
        Stream(sock, forward_end=False, write=stop).run(None)


_PORTS = re.compile(r"(?:(\d{1,5}):)?(\d{1,5})")


def forward_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft vm forward web 8080:80`: a port of this machine that leads to one of the guest's; `… web 22` over stdin and stdout."""
    name = "NAME" if kind else "KIND/NAME"
    params = [
        click.Argument(["words"], nargs=-1, metavar=f"{name} [HERE:]PORT"),
        click.Option(
            ["--patience"], type=options.Duration(), default=0.0, help="How long to retry while nothing listens."
        ),
    ]
    return options.build(
        verb, "Forward a TCP port of the guest to the local port HERE, or to stdin and stdout.", _forward, kind, params
    )


def _forward(session: Session, kind: Kind | None, words: tuple[str, ...], patience: float) -> int:
    match = _PORTS.fullmatch(words[-1]) if len(words) > 1 else None
    if match is None:
        raise click.UsageError("give the guest and its port, like: weft vm forward web 8080:80")
    (target,) = find_targets(session, kind, words[:-1], able("forward"))[:1]
    given = {"port": int(match[2]), "patience": patience}
    if match[1] is None:
        return carry(session, target, "forward", given, sys.stdin.fileno(), 1)
    session.client.verb(target.kind.name, target.name, "forward", given)  # refused at once if it can't be
    with listen_here(int(match[1])) as listener:
        session.notify(
            f"127.0.0.1:{listener.getsockname()[1]} leads to port {match[2]} of {target.what}; Ctrl-C ends it"
        )
        relay(session, listener, target, "forward", given)
    return 0
