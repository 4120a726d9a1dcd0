"""`weft function invoke thumb --data '{"n":1}'`: run it once. Only its answer goes to standard output."""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.exit_codes import ERROR, OK
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.command.target import usage
from weft.cli.output.terminal import clean
from weft.cli.session import Session
from weft.cli.stream.client import exchange
from weft.cli.verbs.api import read_data
from weft.kinds.record import Kind
from weft.protocol.invocations import MAX_PAYLOAD_BYTES as MOST_DATA_BYTES

_SHOWN_LINES = 20


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="NAME[:QUALIFIER]" if kind else "function/NAME[:QUALIFIER]"),
        click.Option(
            ["-d", "--data"], metavar="JSON|@FILE|-", default=None, help="The event to invoke the function with. [{}]"
        ),
        click.Option(["--version"], metavar="N", default=None, help="The version to invoke, like NAME:N."),
        click.Option(["--alias"], metavar="ALIAS", default=None, help="The alias to invoke, like NAME:ALIAS."),
        click.Option(["--async", "later"], is_flag=True, help="Queue the invocation, and print the request's id."),
        click.Option(["--tail-logs"], is_flag=True, help="Print the last lines of its log to standard error."),
        click.Option(
            ["--client-context"], metavar="JSON", default="", help="Client context to pass to the code: a JSON object."
        ),
        click.Option(
            ["--timeout", "patience"], type=options.Duration(), default=0.0, help="How long to wait for the answer."
        ),
    ]
    return options.build(verb, "Invoke a function, and print its answer.", _run, kind, params)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], data: str | None, **given: Any) -> int:
    for flag, name in (("--timeout", "patience"), ("--tail-logs", "tail_logs")):
        if given["later"] and given[name]:
            raise usage(f"{flag} has no effect with --async, which doesn't wait for the answer", f"leave out {flag}")
    plain, qualifier = _split_qualifier(words, given["version"], given["alias"])
    hint = f"to give the event: --data '{words[-1]}'" if words else ""
    target = find_one(session, kind, plain, ("function",), "give one function", hint)
    payload = read_event(data)
    asked = {
        "qualifier": qualifier,
        "client_context": given["client_context"],
        "tail": given["tail_logs"],
        "timeout": given["patience"],
        "later": given["later"],
    }
    answer, report = exchange(
        session, "function", target.name, "invoke", asked, payload, cut_hint="the invocation may have run"
    )
    if given["tail_logs"]:
        _print_tail(base64.b64decode(report.get("tail") or ""))
    if report.get("code"):
        _print_error(target.what, answer, report)
        return ERROR
    if given["later"]:
        print(report.get("requestId", ""))
        return OK
    sys.stdout.buffer.write(answer if answer.endswith(b"\n") else answer + b"\n")
    sys.stdout.flush()
    return OK


def _split_qualifier(words: tuple[str, ...], version: str | None, alias: str | None) -> tuple[list[str], str]:
    """The words without ``:QUALIFIER``, and the qualifier; a second one is refused."""
    if not words:
        return [], ""
    *before, last = words
    name, _, written = last.partition(":")
    given = [one for one in (written, version, alias) if one]
    if len(given) > 1:
        raise click.UsageError("give the qualifier once: NAME:QUALIFIER, --version or --alias")
    return [*before, name], given[0] if given else ""


def read_event(given: str | None) -> bytes:
    """The payload that ``--data`` names, ``{}`` without it. Raises as ``read_data``."""
    return b"{}" if given is None else read_data(given, MOST_DATA_BYTES)


def _print_tail(tail: bytes) -> None:
    """Runtimes end lines that belong together with a carriage return."""
    for line in tail.decode(errors="replace").replace("\r", "\n").splitlines():
        print(clean(line), file=sys.stderr, flush=True)


def _print_error(what: str, answer: bytes, report: dict[str, Any]) -> None:
    """The function's own error: its type, message, and place in the code."""
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        document = None
    found = document if isinstance(document, dict) else {}
    type_ = str(found.get("errorType") or report.get("errorType") or "Unhandled")
    message = str(found.get("errorMessage") or (answer.decode(errors="replace") if document is None else ""))
    print(f"error: {what}: {clean(type_)}" + (f": {_tidy(message)}" if message else ""), file=sys.stderr)
    trace = found.get("stackTrace")
    lines = "".join(str(line) for line in trace).splitlines() if isinstance(trace, list) else []
    for line in lines[-_SHOWN_LINES:]:
        print(clean(line), file=sys.stderr)


def _tidy(text: str) -> str:
    return "\n".join(clean(line) for line in text[:4000].splitlines())
