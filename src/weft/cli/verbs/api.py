"""`weft api GET /v1/vms`: one request to the server's API, answered raw. Watches and followed events go on until ^C."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.target import usage
from weft.cli.output.formats import print_data, print_line, print_names
from weft.cli.output.terminal import is_terminal
from weft.cli.session import Session
from weft.client.answer import raise_problem
from weft.kinds.record import Kind
from weft.objects.errors import InvalidInput, TooLarge

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        click.Argument(["words"], nargs=-1, metavar=f"[{'|'.join(_METHODS)}] PATH"),
        click.Option(
            ["-d", "--data"], metavar="JSON|@FILE|-", help="The body: JSON, a file with JSON, or - for standard input."
        ),
        options.output(),
    ]
    return options.build(verb, "Send one request to the server's API and print the answer.", _run, kind, params)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], data: str | None) -> None:
    method, path = _read_words(words)
    if path.startswith("v1/"):
        raise usage(f"{path[:80]!r} has no / at its start", f"weft api {method.lower()} /{path[:80]}")
    path = path if path.startswith("/") else f"/v1/{path}"
    body = None if data is None else read_data(data)
    http = session.client.http
    wants_form = session.given_form is not None or session.jq is not None or bool(session.json_fields)
    if wants_form and not session.is_document and session.output != "name":
        raise usage(
            f"weft api has no rows for -o {session.output}", "use -o json, yaml, name, jsonpath=… or template=…"
        )
    if method == "GET" and any(word in path for word in ("watch=1", "follow=1")):
        with http.stream(method, path) as stream:
            for line in stream.lines():
                if wants_form:
                    print_line(session, json.loads(line))
                else:
                    print(line.decode(), flush=True)
        return
    answer = http.request(method, path, body)
    raise_problem(answer)
    if not answer.body:
        return
    if "json" not in answer.headers.get("content-type", ""):
        sys.stdout.flush()
        sys.stdout.buffer.write(answer.body)
    elif wants_form:
        _print_form(session, json.loads(answer.body))
    elif is_terminal(sys.stdout):
        print(json.dumps(json.loads(answer.body), indent=2, ensure_ascii=False))
    else:
        print(answer.body.decode())


def _print_form(session: Session, value: Any) -> None:
    items = value.get("items") if isinstance(value, dict) else None
    if session.output == "name":
        print_names(items if isinstance(items, list) else [value])
        return
    if isinstance(items, list):
        session.listed = sorted({item["kind"] for item in items if isinstance(item, dict) and "kind" in item})
    print_data(session, value)


def _read_words(words: tuple[str, ...]) -> tuple[str, str]:
    """Method and path; a path alone is read."""
    method, path = words if len(words) == 2 else ("GET", words[0] if len(words) == 1 else "")
    if method.upper() not in _METHODS or not path or path.upper() in _METHODS:
        raise usage(
            f"give a path, with one of {', '.join(_METHODS)} before it unless it is a GET", "like: weft api /v1/vms"
        )
    return method.upper(), path


def read_data(given: str, most: int = -1) -> bytes:
    """Read what ``--data`` names: JSON, @FILE, or - for standard input. Raises InvalidInput for anything but JSON, TooLarge above
    ``most`` bytes."""
    try:
        if given == "-":
            data = sys.stdin.buffer.read(most + 1 if most >= 0 else -1)
        else:
            data = Path(given[1:]).read_bytes() if given.startswith("@") else given.encode()
    except (OSError, UnicodeEncodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) and problem.strerror else "not text in UTF-8"
        raise InvalidInput(f"--data {given}: {why.lower()}", field="data", hint="give JSON, @FILE or -") from None
    if 0 <= most < len(data):
        raise TooLarge(f"--data: {len(data)} bytes is too large", field="data", hint=f"at most {most >> 20} MiB")
    try:
        json.loads(data)
    except (ValueError, RecursionError) as problem:
        why = "nested too deeply" if isinstance(problem, RecursionError) else str(problem)
        raise InvalidInput(f"--data is not JSON: {why}", field="data", hint="like --data '{\"n\": 1}'") from None
    return data
