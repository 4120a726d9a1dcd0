"""`weft version`: the version here, and the server's version and capabilities if one answers."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Any

import click

import weft
from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.output.formats import print_data
from weft.cli.session import Session
from weft.client.answer import raise_problem
from weft.kinds.record import Kind
from weft.objects.errors import WeftError

_TIMEOUT_SECONDS = 2.0


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    return options.build(verb, "Show the version of weft here and at the server.", _run, kind, [options.output()])


def _run(session: Session, kind: Kind | None) -> None:
    health, trouble = ask_health(session)
    server, able = health.get("version"), health.get("capabilities") or []
    if session.is_document:
        print_data(session, {"client": weft.__version__, "server": server, "capabilities": able})
        return
    print(f"weft {weft.__version__}")
    print(f"server {server or f'unknown: {trouble}'}" + (f", {len(able)} capabilities (-o json)" if able else ""))


def ask_server(session: Session) -> tuple[str | None, str]:
    """The server's version, or None and why it isn't known."""
    health, trouble = ask_health(session)
    return (None, trouble.message) if trouble is not None else (str(health.get("version", "")), "")


def ask_health(session: Session) -> tuple[dict[str, Any], WeftError | None]:
    """The server's health, or nothing and why it isn't known."""
    try:
        answer = session.make_client(timeout_seconds=_TIMEOUT_SECONDS).http.request("GET", "/v1/healthz")
        raise_problem(answer)
        return dict(answer.json()), None
    except WeftError as problem:
        return {}, problem


def ask_time(session: Session) -> float:
    """Unix seconds by the server's clock, to the second: this machine's may be wrong."""
    health = session.client.http.request("GET", "/v1/healthz").headers.get("date", "")
    try:
        return parsedate_to_datetime(health).timestamp()
    except ValueError:
        return session.clock.now()
