"""``--explain`` on any command: how its words were read, and which requests would go out.

Requests that only read are sent, because later requests depend on their answers; requests that change anything are not."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from weft.cli.command.settings import find_settings
from weft.cli.output.form import Form
from weft.cli.output.formats import print_data
from weft.cli.session import NotSent, Session
from weft.trust.redaction import hide_in_body, hide_in_text, is_secret

if TYPE_CHECKING:
    from weft.client.connection import ClientRequest

_SOURCES = {ParameterSource.COMMANDLINE: "", ParameterSource.ENVIRONMENT: "from the environment"}
_FOLLOWS = ("watch=1", "follow=1")


class Calls:
    """The session's Recorder: what would be done, in its order."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.cut = False

    def note(self, request: ClientRequest) -> None:
        sent = is_reading(request.method, request.path, request.body)
        body = hide_in_body(request.body) if request.body else ""
        self.calls.append({"method": request.method, "path": hide_in_text(request.path), "body": body, "sent": sent})
        if not sent:
            self.cut = True
            raise NotSent("not sent")

    def would(self, step: str) -> None:
        self.calls.append({"method": "here", "path": step, "body": "", "sent": False})
        self.cut = True
        raise NotSent("not done")


def is_reading(method: str, path: str, body: bytes | None) -> bool:
    """Whether a request changes nothing, and has an end."""
    if method == "GET":
        return not any(word in path for word in _FOLLOWS)
    is_dry = path.endswith("/apply") and b'"dry_run":true' in (body or b"").replace(b" ", b"")
    return method == "POST" and (is_dry or "dry_run=1" in path)


def explain_run(session: Session, context: click.Context, run: Callable[[], int | None]) -> int:
    """Run the command without its changes, and print its requests instead of its output. Raises what the command raises,
    afterwards."""
    recorder = session.recorder = Calls()
    session.detach = True
    failure: Exception | None = None
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            run()
        except NotSent:
            pass  # that far and no further
        except Exception as problem:  # printed below, after what led to it
            failure = problem
    _print_calls(session, context, recorder)
    if failure is not None:
        raise failure
    return 0


def _print_calls(session: Session, context: click.Context, recorder: Calls) -> None:
    arguments = _list_arguments(session, context)
    settings = {name: one._asdict() for name, one in find_settings(session).items()}
    if session.is_document:
        shown_arguments = {
            "command": context.command_path,
            "arguments": arguments,
            "settings": settings,
            "calls": recorder.calls,
        }
        print_data(session, shown_arguments)
        return
    out = io.StringIO()
    print(context.command_path, file=out)
    for name, value in arguments.items():
        print(f"  {name:<16} {value}", file=out)
    print("asked as", file=out)
    for name in ("server", "project", "identity"):
        if name in settings:
            print(f"  {name:<16} {settings[name]['value']}   ({settings[name]['origin']})", file=out)
    print("calls", file=out)
    for call in recorder.calls:
        what = " ".join(filter(None, (call["method"], call["path"], call["body"])))
        print(f"  {what}" + ("   (sent: read-only)" if call["sent"] else ""), file=out)
    if not recorder.calls:
        print("  none", file=out)
    print(out.getvalue(), end="")
    session.notify("nothing was changed" + ("; the next requests depend on the answer" if recorder.cut else ""))


def _list_arguments(session: Session, context: click.Context) -> dict[str, str]:
    """The values of the command line by parameter, without defaults."""
    shown_arguments = {}
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        value = context.params.get(param.name or "", getattr(session, param.name or "", None))
        if source not in _SOURCES or value in (None, (), "") or param.name == "explain":
            continue
        name = param.opts[-1] if isinstance(param, click.Option) else _name_argument(param)
        value = value.name if isinstance(value, Form) else value
        shown = " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
        shown = "(hidden)" if is_secret((param.name or "").rpartition("__")[2]) else hide_in_text(shown)
        shown_arguments[name] = f"{shown} {_SOURCES[source]}".strip()
    return shown_arguments


def _name_argument(param: click.Parameter) -> str:
    """An argument's name as in help, without the signs for optional and repeated; its own name if help lists the choices."""
    shown = (param.metavar or param.opts[0]).removesuffix("...")
    if shown.startswith("[") and shown.find("]") == len(shown) - 1:
        shown = shown[1:-1].removesuffix("...")
    return param.opts[0].upper() if "|" in shown and " " not in shown else shown
