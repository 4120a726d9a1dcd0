"""`weft ssh [USER@]web [-- CMD]`: log into a guest by SSH, from wherever the API can be reached.

The connection goes through the gateway to port 22 of the guest (`weft vm forward` as ssh's ProxyCommand). Host keys are
kept by the VM's uid, so a new VM of an old name is no intruder.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry, able
from weft.cli.command.lookup import find_one
from weft.cli.session import Session
from weft.cli.verbs.exec import GuestCommand, split_words
from weft.kinds.record import Kind
from weft.objects.errors import InvalidInput, NotFound

PATIENCE = "60s"


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        click.Argument(["words"], nargs=-1, metavar="[USER@]NAME -- CMD"),
        click.Option(["-i", "--identity"], default="", metavar="FILE", help="The private key to log in with."),
    ]
    made = options.build(
        verb, "Log into a VM by SSH, through the gateway.", _run, kind, params, command_class=GuestCommand
    )
    made.options_metavar = "[OPTIONS]"
    return made


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], identity: str) -> int:
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
    told = {
        "ProxyCommand": shlex.join(way),
        "HostKeyAlias": f"weft-{uid}",
        "UserKnownHostsFile": str(known_hosts),
        "StrictHostKeyChecking": "accept-new",
        "LogLevel": "ERROR",
    }
    return [
        *(word for key, value in told.items() for word in ("-o", f"{key}={value}")),
        *(["-i", identity] if identity else []),
    ]
