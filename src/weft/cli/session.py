"""What one run of the command knows: who asks whom, how to show the answer, how long to wait.

Verbs get it as their first argument; common options fill it in."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from weft.cli.terminal import Paint, plan_paint

if TYPE_CHECKING:
    from weft.client import Client

DEFAULT_WAIT_SECONDS = 600.0
OUTPUTS = ("table", "wide", "json", "yaml", "name")


class Clock(Protocol):
    """The two questions the command has for a clock."""

    def now(self) -> float: ...

    def elapsed(self) -> float: ...


class Session:
    """One run. ``output`` is one of OUTPUTS; ``timeout_seconds`` bounds waiting, None means the default."""

    def __init__(self, make_clock: Callable[[], Clock], environ: Mapping[str, str] = os.environ) -> None:
        self._make_clock = make_clock
        self.environ = environ
        self.context_file: str | None = None
        self.project: str | None = environ.get("WEFT_PROJECT")
        self.all_projects = False
        self.output = environ.get("WEFT_OUTPUT", "table") if environ.get("WEFT_OUTPUT") in OUTPUTS else "table"
        self.debug = False
        self.no_color = bool(environ.get("NO_COLOR"))
        self.timeout_seconds: float | None = None
        self.detach = False
        self._told_of_skew = False

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
        return client

    def _warn_of_skew(self, server: str) -> None:
        """Once in a run, if the server is of another release."""
        told = importlib.import_module("weft.client.skew").describe_skew(server)
        if told and not self._told_of_skew:
            self._told_of_skew = True
            self.say(f"warning: {told}")

    @property
    def wait_seconds(self) -> float:
        """How long a command waits for what it has asked for."""
        return DEFAULT_WAIT_SECONDS if self.timeout_seconds is None else self.timeout_seconds

    @property
    def color(self) -> bool:
        """Whether colours are wanted, where there is a terminal."""
        return not self.no_color

    @property
    def paint(self) -> Paint:
        """Colours for standard output; none off a terminal."""
        return plan_paint(sys.stdout, self.color)

    @property
    def is_data(self) -> bool:
        """Standard output is for a program, so nothing but objects may go there."""
        return self.output in ("json", "yaml", "name")

    def say(self, line: str) -> None:
        """One line for the person, beside the data."""
        print(line, file=sys.stderr, flush=True)
