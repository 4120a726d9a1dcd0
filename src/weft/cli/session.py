"""Context of one run of the command: the server, the form of the output, how long to wait.

Verbs get it as their first argument; common options fill it in."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from weft.cli.output.form import DOCUMENTS, Form, read_form
from weft.cli.output.terminal import Paint, plan_paint
from weft.objects.errors import Forbidden, WeftError

if TYPE_CHECKING:
    import click

    from weft.client import Client
    from weft.client.connection import ClientRequest

DEFAULT_WAIT_SECONDS = 600.0


class NotSent(Forbidden):
    """An error under --explain: the command would change or follow something here. It ends the command, or its work on one of
    several objects."""


class Clock(Protocol):
    """The clock that commands need."""

    def now(self) -> float: ...

    def elapsed(self) -> float: ...


class Recorder(Protocol):
    """A recorder, under --explain, of what would be done. ``cut``: more would follow, which depends on the answers."""

    cut: bool

    def note(self, request: ClientRequest) -> None:
        """Let ``request`` go if it only reads. Raises NotSent for all others."""

    def would(self, step: str) -> None:
        """Note something that is done here, not at the server. Raises NotSent."""


class Session:
    """One run. ``timeout_seconds`` bounds waiting, None means the default. ``columns`` and ``sort`` are for rows, ``json_fields``
    and ``jq`` for documents."""

    def __init__(self, make_clock: Callable[[], Clock], environ: Mapping[str, str] = os.environ) -> None:
        self._make_clock = make_clock
        self.environ = environ
        self.typed: list[str] = []  # the command line, after ``weft``
        self.command: click.Context | None = None  # the command that runs, with its flags
        self.context_file: str | None = None
        self.given_project: str | None = None
        self.all_projects = False
        self.given_form: Form | None = None
        self.no_header = False
        self.columns: tuple[str, ...] = ()
        self.sort = ""
        self.json_fields = ""
        self.listed: Sequence[str] = ()  # the kinds of the list that is printed, which may have no object
        self.jq: str | None = None
        self.debug = False
        self.no_color = bool(environ.get("NO_COLOR"))
        self.timeout_seconds: float | None = None
        self.detach = False
        self._skew_reported = False
        self.away: list[str] = []  # servers whose part of answers is missing
        self.explain = False
        self.recorder: Recorder | None = None
        self.unfinished = False  # the command still waits for its result

    @functools.cached_property
    def clock(self) -> Clock:
        return self._make_clock()

    @functools.cached_property
    def client(self) -> Client:
        """The client for the context that flags, environment or folder name."""
        return self.make_client()

    def make_client(self, **settings: float) -> Client:
        """A client with ``settings`` of its own. Its module is loaded on first use: help needs none of it."""
        module = importlib.import_module("weft.client")
        context = module.find_context(self.context_file, self.environ)
        client: Client = module.Client(context, project=self.project, **settings)
        client.http.on_version = self._warn_of_skew
        client.http.on_servers = self._keep_servers
        client.http.on_away = self._warn_of_away
        if self.recorder is not None:
            client.http.on_request = self.recorder.note
        elif self.debug:
            client.http.on_request, client.http.on_answer = self._log_request, self._log_answer
        return client

    def _keep_servers(self, others: list[str]) -> None:
        """Write the fabric's further servers into the context's file, for when the one in it doesn't answer."""
        module = importlib.import_module("weft.client.context")
        with contextlib.suppress(WeftError, OSError):  # of a context from the environment, or a file of another user's
            path = Path(module.locate_context(self.context_file, self.environ).place)
            context = module.read_context(path)
            context.others = others
            module.write_context(path, context)

    def would(self, step: str) -> None:
        """Call it before changing something on this machine. Raises NotSent with --explain."""
        if self.recorder is not None:
            self.recorder.would(step)

    def rests(self, seconds: float) -> bool:
        """Wait before the next refresh. False if there is none: the client was closed, or the command is only explained."""
        if self.recorder is not None:
            self.recorder.cut = True
            return False
        return not self.client.http.closed.wait(seconds)

    def _log_request(self, request: ClientRequest) -> None:
        hide = importlib.import_module("weft.trust.redaction")
        body = f"  {hide.hide_in_body(request.body)}" if request.body else ""
        self.notify(f"> {request.method} {hide.hide_in_text(request.path)}{body}")

    def _log_answer(self, request: ClientRequest, status: int, headers: Mapping[str, str], seconds: float) -> None:
        path = importlib.import_module("weft.trust.redaction").hide_in_text(request.path.partition("?")[0])
        self.notify(
            f"< {status} {request.method} {path}  {seconds * 1000:.0f} ms  request {headers.get('x-request-id', 'unknown')}"
        )

    def _warn_of_skew(self, server: str) -> None:
        """Warn once in a run, if the server is of another release."""
        warning = importlib.import_module("weft.client.server.version_skew").describe_skew(server)
        if warning and not self._skew_reported:
            self._skew_reported = True
            self.notify(f"warning: {warning}")

    def _warn_of_away(self, servers: list[str]) -> None:
        """Warn once in a run of servers whose part of an answer is missing."""
        if fresh := [name for name in servers if name not in self.away]:
            self.away += fresh
            who = f"server {fresh[0]} is" if len(fresh) == 1 else f"servers {', '.join(fresh)} are"
            self.notify(f"warning: {who} away: what lies only there is missing")

    @property
    def wait_seconds(self) -> float:
        """How long a command waits for completion."""
        return DEFAULT_WAIT_SECONDS if self.timeout_seconds is None else self.timeout_seconds

    @property
    def color(self) -> bool:
        """Whether colours are wanted, where there is a terminal."""
        return not self.no_color

    @property
    def paint(self) -> Paint:
        """Colours for standard output; none off a terminal."""
        return plan_paint(sys.stdout, self.color)

    @functools.cached_property
    def _usual_form(self) -> Form:
        """The output form without -o. Raises InvalidInput."""
        setting = importlib.import_module("weft.client.context").find_setting("output", self.environ)
        return read_form(setting.value or "table", field=setting.origin or "-o")

    @functools.cached_property
    def _usual_project(self) -> str | None:
        return importlib.import_module("weft.client.context").find_setting("project", self.environ).value or None

    @property
    def project(self) -> str | None:
        """The project that a flag, the environment or a file names; None: the context's own."""
        return self.given_project or self._usual_project

    @property
    def in_project(self) -> str:
        """The end of suggested commands: the project that the flag named, if any."""
        return f" -p {self.given_project}" if self.given_project else ""

    @property
    def form(self) -> Form:
        form = self.given_form or self._usual_form
        return form.without_header() if self.no_header else form

    @property
    def output(self) -> str:
        """The output form: one of OUTPUTS, or a word of the command's own."""
        if self.given_form is None and (self.jq is not None or self.json_fields):
            return "json"
        return self.form.name

    @property
    def is_data(self) -> bool:
        """Standard output is for a program, so nothing but objects may go there."""
        return self.output not in ("table", "wide")

    @property
    def is_document(self) -> bool:
        """Whole objects are wanted, not rows or names of them."""
        return self.output in DOCUMENTS

    def notify(self, line: str) -> None:
        """One line for the person, beside the data: in one write, as threads notify too."""
        print(f"{line}\n", end="", file=sys.stderr, flush=True)


def in_project_of(session: Session, project: str | None) -> str:
    """The end of suggested commands about objects of ``project``, which a command like a restore may have made elsewhere than in
    the session's; None: it isn't known."""
    if project is None or project == session.client.project:
        return session.in_project
    return f" -p {project}"
