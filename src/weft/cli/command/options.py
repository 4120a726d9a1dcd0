"""Options that many commands share, and how a verb's file becomes a command. Common options write into the session."""

from __future__ import annotations

import importlib
import math
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from weft.cli.command.completion import complete_context, complete_field, complete_name, complete_target
from weft.cli.command.target import refuse_project, usage
from weft.cli.output.form import OUTPUTS, WITH_EXPRESSION, Form, read_form
from weft.cli.output.local_time import read_moment
from weft.cli.session import Session
from weft.kinds.record import Kind
from weft.objects.errors import InvalidInput
from weft.objects.quantity import format_limit, parse_duration, parse_period

Run = Callable[..., int | None]
_ARGV, _TYPED = "weft.argv", "weft.typed"


# Texts for people, bodies of requests, patterns that everything matches, and lists of which an empty one takes away what there was.
_MAY_BE_EMPTY = ("description", "comment", "reason", "data", "filter", "regex", "desired", "grants", "projects")
_CLIENT = "--dry-run-here"  # what --dry-run=client is read as: an option with a value would swallow the next word
_DRY_RUNS = {"--dry-run=client": _CLIENT, "--dry-run=server": "--dry-run"}


class Plain(click.Command):
    """A command line as ``build`` makes it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if any(_CLIENT in param.opts for param in self.params):
            args = [_DRY_RUNS.get(arg, arg) for arg in args]
        left = super().parse_args(ctx, list(args))
        given = self.make_parser(ctx).parse_args(list(args))[0]
        for param in self.params:
            _refuse_empty(ctx, param, given.get(param.name or ""))
        return left


def _refuse_empty(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Raises UsageError for an empty value where it means nothing: mostly a shell's variable that isn't set. An empty field of an
    object is that field's to refuse."""
    name, values = param.name or "", value if isinstance(value, list | tuple) else (value,)
    if "" not in values or name.startswith("spec__") or name in _MAY_BE_EMPTY:
        return
    if isinstance(param, click.Option) and ctx.info_name == "set":  # what the object had goes
        return
    shown = " ".join(word for word in (param.metavar or name.upper()).partition("--")[0].split() if "|" not in word)
    words = re.findall(r"[A-Z_]+(?:/[A-Z_]+)?", shown)
    what = f"argument {words[min(values.index(''), len(words) - 1)]}" if words else "an argument"
    if isinstance(param, click.Option):
        session = ctx.find_object(Session)
        typed = {word.partition("=")[0] for word in session.typed} if session is not None else set()
        what = next((flag for flag in param.opts if flag in typed), param.opts[0])
    hint = f"leave {what} out, or give it a value; " if isinstance(param, click.Option) and not param.required else ""
    raise usage(f"{what} must not be empty", f"{hint}{ctx.command_path} --help")


class WithCommand(Plain):
    """A command line that ends with a command for a guest after ``--``, which is cut off before the arguments are read."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_TYPED] = list(args)
        if "--" in args:
            place = args.index("--")
            ctx.meta[_ARGV] = args[place + 1 :]
            args = args[:place]
            ctx.allow_interspersed_args = True
        return super().parse_args(ctx, args)


class WithOwnCommand(WithCommand):
    """One whose guest command has options that weft would take for its own if ``--`` is missing."""

    where_options_go = "put a command that has options of its own after --"


def read_argv() -> list[str] | None:
    """The command after ``--`` of a WithCommand's command line; None where there is no ``--``."""
    argv: list[str] | None = click.get_current_context().meta.get(_ARGV)
    return argv


def read_typed() -> list[str]:
    """A WithCommand's own arguments, as they were typed."""
    typed: list[str] = click.get_current_context().meta[_TYPED]
    return typed


def retype(count: int) -> str:
    """The whole WithCommand's command line as it was typed, but with ``--`` behind the first ``count`` of its words."""
    context = click.get_current_context()
    typed, args = context.ensure_object(Session).typed, read_typed()
    own = args[: args.index("--")] if "--" in args else args
    marked = [_Word(_DRY_RUNS.get(arg, arg)) for arg in own]
    words = context.command.make_parser(context).parse_args([*marked])[0]["words"]
    flags = [arg for arg, mark in zip(own, marked, strict=True) if not any(mark is word for word in words)]
    before = typed[: len(typed) - len(args)]
    return shlex.join(["weft", *before, *words[:count], *flags, "--", *words[count:], *args[len(own) + 1 :]])


class _Word(str):
    """Distinct from other parameters of the same letters."""


class Duration(click.ParamType[float]):
    """Seconds from 30s, 5m, 1h30m; from ``least`` to ``most``, in seconds. ``unit``: a number alone is refused."""

    name = "duration"

    def __init__(self, least: float = 0.0, most: float = math.inf, *, unit: bool = False) -> None:
        self._least, self._most, self._parse = least, most, parse_period if unit else parse_duration

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            seconds = self._parse(value, name := param.opts[-1] if param else "duration")
        except InvalidInput as problem:  # whose value it is comes before all that fails here
            self.fail(f"{problem.message.removeprefix(f'{name}: ')}; {problem.hint}", param, ctx)
        if seconds > self._most:
            self.fail(f"{value} is too long; give at most {format_limit(self._most)}", param, ctx)
        if seconds < self._least:
            self.fail(f"{value} is too short; give a duration like 30s or 10m", param, ctx)
        return seconds


class Moment(click.ParamType[float | str]):
    """Seconds since 1970 from 22:00, 2026-12-24T22:00, or 2h from now."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        session = ctx.find_object(Session) if ctx is not None else None
        if isinstance(value, float) or not value or session is None:
            return value  # type: ignore[no-any-return]
        try:
            return read_moment(value, session.clock.now(), name := param.opts[0] if param else "time")
        except InvalidInput as problem:
            self.fail(f"{problem.message.removeprefix(f'{name}: ')}; {problem.hint}", param, ctx)


class Output(click.ParamType[Form]):
    """One of OUTPUTS, or ``more``."""

    name = "format"

    def __init__(self, more: Sequence[str] = ()) -> None:
        self._more = more

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Form:
        if isinstance(value, Form):
            return value
        try:
            return read_form(value, self._more)
        except InvalidInput as problem:
            self.fail("; ".join(filter(None, (problem.message, problem.hint))), param, ctx)

    def words(self) -> list[str]:
        return [f"{word}=" if word in WITH_EXPRESSION else word for word in (*OUTPUTS, *self._more)]

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(word) for word in self.words() if word.startswith(incomplete)]


_GIVES_RIGHTS = ("token", "rolebinding")  # for them -p says where


def build(
    name: str,
    summary: str,
    run: Run,
    kind: Kind | None,
    params: Sequence[click.Parameter] = (),
    *,
    command_class: type[click.Command] = Plain,
    in_project: bool = False,
    **settings: Any,
) -> click.Command:
    """The command ``name``: ``run(session, kind, **params)`` with the common options added to ``params``. ``in_project``: what it
    makes belongs to a project, although objects of ``kind`` may belong to none."""

    def callback(**given: Any) -> int | None:
        context = click.get_current_context()
        session = context.find_object(Session)
        if session is not None:
            session.command = context
            if session.detach and session.timeout_seconds is not None:
                raise usage("--timeout has no effect with --detach, which doesn't wait", "leave out one of them")
            if not in_project and not (name == "create" and kind is not None and kind.name in _GIVES_RIGHTS):
                refuse_project(session, [kind] if kind is not None else [])
        if session is not None and session.explain:
            module = importlib.import_module("weft.cli.command.explain")
            explained: int = module.explain_run(session, context, lambda: run(session, kind, **given))
            return explained
        return run(session, kind, **given)

    prints = any("--output" in param.opts for param in params)
    every = [*(parts() if prints else []), *common()]
    return command_class(
        name, callback=callback, params=[*params, *every], help=summary, short_help=summary, **settings
    )


def common() -> list[click.Parameter]:
    """Options that every command takes."""
    return [
        _setting(
            ["-p", "--project"],
            "given_project",
            "Work in this project.",
            metavar="NAME",
            check=_refuse_port,
            shell_complete=complete_name("project"),
        ),
        _setting(
            ["--context"],
            "context_file",
            "Context to use: a name or a file.",
            metavar="NAME|FILE",
            shell_complete=complete_context,
        ),
        _setting(
            ["--explain"], "explain", "Show the requests that the command would send; change nothing.", is_flag=True
        ),
        _setting(["--debug"], "debug", "Show requests, their ids, and tracebacks.", is_flag=True),
        _setting(["--no-color"], "no_color", "Don't use colours.", is_flag=True),
        _setting(["--wait-timeout"], "timeout_seconds", "How long to wait.", type=Duration(), hidden=True),
    ]


def output(*more: str) -> click.Option:
    own = f", {' or '.join(more)}" if more else ""
    help_ = f"Output format: table, wide, json, yaml, csv, name{own} … (see weft help output)."
    return _setting(["-o", "--output"], "given_form", help_, type=Output(more), metavar="FORM", is_eager=True)


def parts() -> list[click.Parameter]:
    """Options of commands that print objects, beside ``output``; every command that has that option has these too."""
    return [
        _setting(["--json"], "json_fields", "Print only these fields, as JSON.", metavar="FIELD,…", is_eager=True),
        _setting(["--jq"], "jq", "Filter the JSON with this jq expression.", metavar="EXPR", is_eager=True),
    ]


def listing() -> list[click.Parameter]:
    """Options of commands that list objects: how many of them, and for how long."""
    return [
        ended(),
        click.Option(["-w", "--watch"], is_flag=True, help="Keep showing what changes, until Ctrl-C."),
    ]


def ended() -> click.Option:
    return click.Option(["-a", "--all", "every"], is_flag=True, help="Include tasks that have ended.")


def table() -> list[click.Parameter]:
    """Options of commands that print many rows: which of them, and in which order."""
    return [
        _setting(
            ["-c", "--columns"],
            "columns",
            "Show only these columns, or fields like spec.image.",
            metavar="NAME,…",
            multiple=True,
        ),
        _setting(["--sort"], "sort", "Sort by this column or field; -NAME puts the largest first.", metavar="NAME"),
        _setting(["--no-header"], "no_header", "Print rows without titles.", is_flag=True),
    ]


def all_projects() -> click.Option:
    return _setting(["-A", "--all-projects"], "all_projects", "Include all projects.", is_flag=True)


def shared(kind: Kind | None) -> list[click.Parameter]:
    """Options of lists of what other projects may share."""
    if kind is not None and not kind.is_shareable:
        return []
    return [click.Option(["--shared"], is_flag=True, help="What other projects share with this one instead.")]


def waits(flags: Sequence[click.Parameter] = ()) -> list[click.Parameter]:
    """Options of commands that wait for completion. If one of their ``flags`` is called --timeout, the wait's is --wait-timeout."""
    taken = any("--timeout" in flag.opts for flag in flags)
    return [
        click.Option(["--wait"], is_flag=True, expose_value=False, help="Wait for completion (default)."),
        detach(),
        *([] if taken else [timeout()]),
    ]


def making(*, named: bool = True) -> list[click.Parameter]:
    """Options of commands that make an object: ``config``, ``labels`` and, unless the name is an argument alone, ``named``."""
    form = "A file with the object or its spec, in YAML, JSON, TOML or nix."
    name = click.Option(["--name", "named"], metavar="NAME", hidden=True, help="The name, if not given as an argument.")
    return [
        *([name] if named else []),
        click.Option(["-f", "--config"], metavar="FILE", help=form),
        click.Option(["-l", "--label", "labels"], multiple=True, metavar="KEY=VALUE", help="A label; may be repeated."),
    ]


def dry_runs() -> list[click.Parameter]:
    """``dry_run``: None, ``server`` for --dry-run, ``client`` for --dry-run=client."""
    help_ = (
        "Let the server check the object and show the result, but store nothing; --dry-run=client contacts no server."
    )
    return [
        click.Option(["--dry-run", "dry_run"], flag_value="server", default=None, help=help_),
        click.Option([_CLIENT, "dry_run"], flag_value="client", hidden=True),
    ]


def replace() -> click.Option:
    """The option of commands that write a file of a name that people give."""
    return click.Option(["--force"], is_flag=True, help="Replace the file if it exists already.")


def detach() -> click.Option:
    return _setting(["--detach"], "detach", "Don't wait.", is_flag=True)


def timeout(help_: str = "How long to wait; afterwards the work goes on. [10m]") -> click.Option:
    return _setting(["--timeout"], "timeout_seconds", help_, type=Duration())


def answer_timeout() -> click.Option:
    """The option of a question to the scheduler, which leaves no work behind."""
    return timeout("How long to wait for the scheduler's answer. [30s]")


def selectors(kind: Kind | None = None) -> list[click.Parameter]:
    return [
        click.Option(
            ["-l", "--selector", "--label", "labels"],
            multiple=True,
            metavar="KEY=VALUE",
            help="Only objects with these labels.",
        ),
        click.Option(
            ["--field", "fields"],
            multiple=True,
            metavar="FIELD=VALUE",
            help="Only objects with this field value, like phase=Running.",
            shell_complete=complete_field(kind),
        ),
    ]


def targets(kind: Kind | None, *, required: bool = True, many: bool = True, able: Sequence[str] = ()) -> click.Argument:
    """The objects to act on: NAME after a noun, else KIND NAME or KIND/NAME."""
    metavar = "NAME" if kind else "KIND/NAME"
    metavar = f"[{metavar}]" if not required else metavar
    return click.Argument(
        ["words"],
        nargs=-1,
        metavar=f"{metavar}..." if many else metavar,
        shell_complete=complete_target(kind, able),
    )


def _refuse_port(context: click.Context, value: str) -> None:
    """Other tools publish ports with -p. Raises UsageError for a value that can only be a port."""
    if ":" in value:
        takes = any("--publish" in param.opts for param in context.command.params)
        hint = f"to publish a port: --publish {value}" if takes else f"{context.command_path} --help"
        raise usage(f"-p {value}: -p means --project, and no project's name has a colon", hint)


def _setting(
    names: list[str],
    attribute: str,
    help_: str,
    check: Callable[[click.Context, Any], None] | None = None,
    **more: Any,
) -> click.Option:
    def store(context: click.Context, param: click.Parameter, value: Any) -> None:
        _refuse_empty(context, param, value)
        if check is not None and value is not None:
            check(context, value)
        session = context.find_object(Session)
        if session is not None and value is not None and value is not False:
            setattr(session, attribute, value)

    return click.Option([*names, attribute], expose_value=False, callback=store, help=help_, **more)
