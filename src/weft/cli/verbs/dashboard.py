"""`weft dashboard`: the API server's page in this machine's browser, with the user's own login; until Ctrl-C."""

from __future__ import annotations

import asyncio
import errno
import html
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.dashboard.relay import Gateway, Relay
from weft.cli.session import Session
from weft.client.answer import raise_problem
from weft.kinds.record import Kind
from weft.objects.errors import InvalidInput

PORT = 8080
_NEXT_PORTS = 20  # that are tried where nobody chose one
PAGES = {"overview": "", "storage": "#/storage", "network": "#/networks"}


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft dashboard`, `weft dashboard storage`, `weft dashboard --port 9000 --no-open`: the page at a port of this machine's
    loopback. The link that is printed signs one browser in, once; requests then go to the context's server with its login."""
    params: list[click.Parameter] = [
        click.Argument(["page"], type=click.Choice(list(PAGES)), default="overview", required=False),
        click.Option(
            ["--port"],
            type=click.IntRange(0, 65535),
            metavar="PORT",
            help=f"Listen at this port; 0: any that is free. [{PORT}, or the next that is free]",
        ),
        click.Option(["--no-open"], is_flag=True, help="Print the link and don't open a browser."),
    ]
    return options.build(verb, f"{entry.summary}.", _run, kind, params)


def _run(session: Session, kind: Kind | None, page: str, port: int | None, no_open: bool) -> None:
    find_gateway(session)  # a login that doesn't count is said here, not in the browser
    query = ""
    if session.given_project:
        session.client.get("project", session.given_project)  # raises for one that isn't there
        query = f"?project={session.given_project}"
    asyncio.run(_serve(session, (PAGES[page] or "#/") + query if query else PAGES[page], port, opens=not no_open))


def find_gateway(session: Session) -> Gateway | None:
    """The gateway of the server that answers. Raises what that refuses, Unavailable."""
    answer = session.client.http.request("GET", "/v1/gateway")
    raise_problem(answer)
    found = answer.json()
    return Gateway(found["streams"], found["server_name"]) if found.get("streams") else None


async def _serve(session: Session, page: str, port: int | None, *, opens: bool) -> None:
    client = session.client
    relay = Relay(
        client.context,
        client.http.endpoints,
        partial(find_gateway, session),
        lambda link: session.notify(f"for another browser: {link}{page}"),
    )
    await _listen(relay, port)
    link = relay.link + page
    print(link, flush=True)
    session.notify("the link signs one browser in; Ctrl-C ends the dashboard")
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    with tempfile.TemporaryDirectory(prefix="weft-dashboard-") as folder:  # of mode 0700
        if opens:
            _open(link, Path(folder))
        try:
            await ended.wait()
        finally:
            await relay.close()


async def _listen(relay: Relay, port: int | None) -> None:
    """Raises InvalidInput for a port that is taken."""
    first = PORT if port is None else port
    for each in range(first, first + (_NEXT_PORTS if port is None else 1)):
        try:
            await relay.listen(each)
            return
        except OSError as problem:
            if problem.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "is in use" if problem.errno == errno.EADDRINUSE else "may not be used by you"
    raise InvalidInput(
        f"--port: port {each} {why}", field="port", hint="give another, or --port 0 for any that is free"
    )


def _open(link: str, folder: Path) -> None:
    """Open a browser where there is a desktop to open it on. The link is in a file that only this user may read: a command line
    is shown to every user of the machine."""
    opener: list[str] | None = ["open"] if sys.platform == "darwin" else None
    if opener is None and (found := shutil.which("xdg-open")):
        opener = [found]
    if opener is not None:
        file = folder / "dashboard.html"
        file.write_text(
            f'<!doctype html><title>weft</title><meta http-equiv="refresh" content="0; url={html.escape(link)}">'
        )
        quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        subprocess.Popen([*opener, str(file)], start_new_session=True, **quiet)
