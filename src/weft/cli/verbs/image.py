"""Commands that get images: fetched, or built here."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import click

from weft.cli.command import options
from weft.cli.command.completion import complete_target
from weft.cli.command.exit_codes import OK
from weft.cli.command.grammar import Entry
from weft.cli.command.target import Target
from weft.cli.manifest.check import check_spec
from weft.cli.session import Session
from weft.cli.wait.finish import Done, finish, finish_one
from weft.client.context import FOLDER
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.objects.errors import AlreadyExists, DriverFailed, InvalidInput, NotFound, Unavailable
from weft.objects.identity import check_name

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|file:")


def add_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft image add NAME URL --sha256 HEX`, `weft image add web oci://… --registry-secret NAME`: fetch an image and
    check it. An image that can't be fetched isn't kept."""
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
        verb, "Fetch an image from http, https, ftp, a file or a registry (oci://), and check it.", _add, kind, params
    )


def _add(session: Session, kind: Kind | None, words: tuple[str, ...], sha256: str, registry_secret: str) -> int:
    given = list(words)
    if kind is None and given[:1] in (["image"], ["images"]):
        del given[0]
    if len(given) != 2:
        raise click.UsageError("give NAME and URL, like: weft image add web file:///srv/web.qcow2")
    target = Target(BY_NAME["image"], check_name(given[0].removeprefix("image/")))
    if given[1].startswith("vm/") and not Path(given[1]).exists():
        raise InvalidInput(
            f"URL: {given[1]} is a VM, not a file", hint=f"weft image create {target.name} --from {given[1]}"
        )
    spec = {"url": as_url(given[1]), **({"sha256": sha256.lower()} if sha256 else {})}
    spec |= {"registry_secret": registry_secret} if registry_secret else {}
    for problem in check_spec(target.kind, spec):
        raise problem
    made = session.client.create({"kind": "image", "name": target.name, "spec": spec})
    return finish_one(session, target, made, "create")


def as_url(given: str) -> str:
    """``given``, or the file URL of a plain path."""
    return given if _SCHEME.match(given) else Path(given).absolute().as_uri()


def add_file(session: Session, path: str) -> tuple[int, str]:
    """The exit code, and the name of the image that the file is; one is made, named after it, and waited for unless there is one.
    Raises AlreadyExists for another image of that name."""
    url = as_url(path)
    name = check_name(re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-")[:60])
    target = Target(BY_NAME["image"], name)
    try:
        known = session.client.get("image", name)
    except NotFound:
        made = session.client.create({"kind": "image", "name": name, "spec": {"url": url}})
        return finish_one(session, target, made, "create"), name
    if known["spec"]["url"] != url:
        raise AlreadyExists(
            f"{target.what} exists already, from {known['spec']['url'] or known['spec']['made_from']}",
            hint="add the file under another name (weft image add NAME FILE) and give that name",
        )
    return OK, name


def build_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft image build debian-12`: build one of weft's own images on this machine and have the server fetch it.

    The building runs as a process of its own (`python -m weft.images`); its steps are shown with their durations."""
    params = [
        click.Argument(["words"], nargs=-1, metavar="RECIPE" if kind else "image RECIPE"),
        click.Option(["--name"], default="", metavar="NAME", help="The image's name. [the recipe's]"),
        click.Option(["--fresh"], is_flag=True, help="Rebuild the image with the newest packages."),
        click.Option(["--cache"], default="", metavar="DIR", help="Where built images are kept. [.weft/cache]"),
        *options.waits(),
        options.output(),
    ]
    return options.build(
        verb,
        "Build busybox, debian-12, python3-11 or tiny on this machine, as root, and add it.",
        _run_build,
        kind,
        params,
    )


def _run_build(session: Session, kind: Kind | None, words: tuple[str, ...], name: str, fresh: bool, cache: str) -> int:
    given = list(words)
    if kind is None and given[:1] in (["image"], ["images"]):
        del given[0]
    if len(given) != 1:
        raise click.UsageError("give one recipe: busybox (for containers), debian-12, python3-11 or tiny")
    return build_and_add(session, given[0], name=name, cache=cache, fresh=fresh)


def build_and_add(
    session: Session, recipe: str, project: str = "", *, name: str = "", cache: str = "", fresh: bool = False
) -> int:
    """Build it here, have the server fetch it into ``project`` (the session's if unset), and wait for that; the exit code. Raises
    AlreadyExists for another image of that name, DriverFailed."""
    target = Target(BY_NAME["image"], check_name(name or recipe))
    client = session.client  # before minutes of work: is there a server to add it to?
    project = project or client.project
    try:
        known = client.get("image", target.name, project=project)
    except NotFound:
        known = None
    url = _build(session, recipe, Path(cache) if cache else _find_cache(), fresh).as_uri()
    if known is not None:
        if known["spec"]["url"] != url or fresh:
            raise AlreadyExists(
                f"{target.what} exists already, from {known['spec']['url'] or known['spec']['made_from']}",
                hint=f"weft image build {recipe} --name {target.name}-new builds another one beside it",
            )
        return finish(session, [Done(target, known, "unchanged")], [])
    made = client.create({"kind": "image", "name": target.name, "project": project, "spec": {"url": url}})
    return finish_one(session, target, made, "create")


def _find_builder() -> str:
    """The Python that has weft's recipes; that of the command line's own package has none. Raises Unavailable."""
    if importlib.util.find_spec("weft.images") is not None:
        return sys.executable
    for package in ("agent", "server"):
        program = Path(sys.prefix).parent / package / "bin" / "python3"
        if program.exists():
            return str(program)
    raise Unavailable(
        "weft image build needs weft's recipes, which aren't installed on this machine",
        reason="missingPackage",
        hint="install the package weft-agent or weft-server here",
    )


def _build(session: Session, recipe: str, cache: Path, fresh: bool) -> Path:
    """Run the recipe, showing its steps on standard error; the bundle it made or found. Raises DriverFailed."""
    argv = [_find_builder(), "-m", "weft.images", recipe, "--cache", str(cache), *(["--fresh"] if fresh else [])]
    session.would(f"run {' '.join(argv)}")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        step, began, lines = "", session.clock.elapsed(), []
        for line in process.stderr:
            line = line.rstrip()
            lines.append(line)
            if line.startswith("error: ") or lines[0].startswith("error: "):
                continue
            _report_step(session, step, began)
            step, began = line, session.clock.elapsed()
        path = process.stdout.read().strip()
    if process.returncode:
        words = [line.removeprefix("error: ") for line in lines]
        at = next((i for i, line in enumerate(lines) if line.startswith("error: ")), max(0, len(lines) - 1))
        raise DriverFailed(*words[at : at + 1], hint=words[at + 1] if at + 1 < len(words) else None)
    _report_step(session, step, began)
    return Path(path)


def _report_step(session: Session, step: str, began: float) -> None:
    if step:
        session.notify(f"✓ {step:<60} {session.clock.elapsed() - began:5.1f} s")


def _find_cache() -> Path:
    """The cache of the clone we are in, else the user's own."""
    here = Path.cwd()
    for place in (here, *here.parents):
        if (place / FOLDER).is_dir():
            return place / FOLDER / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weft"
