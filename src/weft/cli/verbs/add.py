"""`weft image add NAME URL --sha256 HEX`, `weft image add web oci://… --registry-secret NAME`: have an image fetched and checked.
What can't be fetched isn't kept."""

from __future__ import annotations

import re
from pathlib import Path

import click

from weft.cli.command import options
from weft.cli.command.completion import complete_target
from weft.cli.command.exit_codes import INTERRUPTED, OK, TIMED_OUT
from weft.cli.command.grammar import Entry
from weft.cli.command.target import Target
from weft.cli.manifest.check import check_spec
from weft.cli.session import Session
from weft.cli.wait.finish import Done, finish, plan_wait
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.objects.errors import AlreadyExists, DriverFailed, NotFound
from weft.objects.identity import check_name

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|file:")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        click.Argument(["words"], nargs=-1, metavar="NAME URL" if kind else "image NAME URL"),
        click.Option(
            ["--sha256"], default="", metavar="HEX", help="The image's digest; a file with another digest is refused."
        ),
        click.Option(
            ["--registry-secret"],
            default="",
            metavar="SECRET",
            help="With oci://: the secret with the registry's credentials.",
            shell_complete=complete_target(BY_NAME["secret"]),
        ),
        *options.waits(),
        options.output(),
    ]
    return options.build(
        verb, "Fetch an image from http, https, ftp, a file or a registry (oci://), and check it.", _run, kind, params
    )


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], sha256: str, registry_secret: str) -> int:
    given = list(words)
    if kind is None and given[:1] in (["image"], ["images"]):
        del given[0]
    if len(given) != 2:
        raise click.UsageError("give NAME and URL, like: weft image add web file:///srv/web.qcow2")
    target = Target(BY_NAME["image"], check_name(given[0].removeprefix("image/")))
    spec = {"url": as_url(given[1]), **({"sha256": sha256.lower()} if sha256 else {})}
    spec |= {"registry_secret": registry_secret} if registry_secret else {}
    for problem in check_spec(target.kind, spec):
        raise problem
    made = session.client.create({"kind": "image", "name": target.name, "spec": spec})
    wait = plan_wait(made, target, "create")
    code = finish(session, [Done(target, made, "create")], [wait] if wait else [])
    if code not in (OK, TIMED_OUT, INTERRUPTED):
        try:
            session.client.delete("image", target.name)
        except NotFound:
            return code
        session.say(f"{target.what} was not kept; correct the URL, the digest or the secret, and add the image again")
    return code


def as_url(given: str) -> str:
    """``given``, or the file URL of a plain path."""
    return given if _SCHEME.match(given) else Path(given).absolute().as_uri()


def add_file(session: Session, path: str) -> str:
    """The name of the image that the file is; one is made, named after it, and waited for unless there is one. Raises
    AlreadyExists for another image of that name, DriverFailed."""
    url = as_url(path)
    name = check_name(re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-")[:60])
    target = Target(BY_NAME["image"], name)
    try:
        known = session.client.get("image", name)
    except NotFound:
        made = session.client.create({"kind": "image", "name": name, "spec": {"url": url}})
        wait = plan_wait(made, target, "create")
        code = finish(session, [Done(target, made, "create")], [wait] if wait else [])
        if code != OK:
            raise DriverFailed(
                f"{target.what} could not be fetched from {path}", hint=f"weft describe {target.what}"
            ) from None
        return name
    if known["spec"]["url"] != url:
        raise AlreadyExists(
            f"{target.what} exists already, from {known['spec']['url']}",
            hint="add the file under another name (weft image add NAME FILE) and give that name",
        )
    return name
