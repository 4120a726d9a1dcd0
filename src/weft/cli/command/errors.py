"""How errors are printed on standard error: what failed, why, what to type next; with ``-o json`` as an object."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import click

from weft.cli.command.exit_codes import OK, USAGE, exit_code
from weft.cli.command.synonyms import find_option_meant
from weft.cli.output.local_time import localize
from weft.cli.output.terminal import clean, plan_paint
from weft.cli.session import NotSent, Session
from weft.kinds.registry import BY_NAME, WORKLOADS
from weft.language.complaint import draw_caret
from weft.objects.errors import WeftError, begin_small
from weft.objects.schema import suggest

# Reasons that the message explains better than their name.
_PLAIN = {
    *("invalidInput", "unknownField", "unknownKind", "invalidManifest", "notFound", "usage", "timedOut"),
    *("alreadyExists", "beingDeleted", "unavailable", "internalError", "noContext"),
}
_RETRYABLE = {"unavailable", "storeUnavailable", "timedOut", "cursorGone", "staleRevision"}
_MOST_LISTED = 10


def complain(error: WeftError, output: str, color: bool, debug: bool = False) -> int:
    """Print ``error`` for a person (or with ``output`` json for a program); the exit code."""
    if isinstance(error, NotSent):
        return OK  # it is printed with the rest of the explanation
    if output == "json":
        print(json.dumps(describe_error(error)), file=sys.stderr)
        return exit_code(error)
    lines = [_headline(error), *_picture(error)]
    lines += (error.hint or "").splitlines()
    others = (error.details.get("problems") or [])[1:]
    lines += ["also: " + clean(str(other.get("message", ""))) for other in others[:_MOST_LISTED]]
    if len(others) > _MOST_LISTED:
        lines.append(f"and {len(others) - _MOST_LISTED} more")
    request_id = error.details.get("request_id")
    if request_id and (debug or error.token == "internalError"):
        lines.append(f"request {request_id}: the server's log has details")
    paint = plan_paint(sys.stderr, color)
    print(paint.color("error:", "red"), localize("\n".join(lines)), file=sys.stderr, flush=True)
    return exit_code(error)


def complain_of_usage(error: click.ClickException, output: str, color: bool) -> int:
    """Report a command line that can't be parsed; always exit 2."""
    message = error.format_message().strip().rstrip(".")
    message = begin_small(message)
    hints: list[str] = []
    if isinstance(error, click.NoSuchOption):
        message = f"no such option: {error.option_name}"
        if error.option_name[1:2].isdigit():  # -3, of which click takes the first character for an option
            message += ", and no number here may be negative"
        known = _options_of(getattr(error, "ctx", None))
        if remembered := find_option_meant(error.option_name, known):
            hints.append(f"did you mean {remembered}?")
        elif others := _find_kinds_with(error.option_name.strip("-"), getattr(error, "ctx", None)):
            hints.append(f"only of {' and '.join(others)}")
        elif error.possibilities:
            by_word = {one.strip("-"): one for one in error.possibilities}  # every option begins alike
            if meant := suggest(error.option_name.strip("-"), list(by_word)):
                hints.append(f"did you mean {by_word[meant]}?")
    elif isinstance(error, click.MissingParameter) and error.param is not None:
        message = _name_missing(error.param)
    elif isinstance(error, click.BadParameter) and isinstance(error.param, click.Argument):
        message = begin_small(error.message).rstrip(".")  # it was typed without a name
    elif (
        isinstance(error, click.BadParameter)
        and error.param is not None
        and isinstance(error.param.type, click.IntRange)
    ):
        given = error.message.partition(" is not ")[0]
        message = f"{_find_typed(error)}: {given} is not a whole number{_describe_range(error.param.type)}"
    context = getattr(error, "ctx", None)
    if context is not None:
        if isinstance(error, click.NoSuchOption) and (rule := getattr(context.command, "where_options_go", "")):
            hints.append(rule)
        hints.append(f"{context.command_path} --help")
    hint = getattr(error, "hint", None) or "   ".join(hints)
    complaint = WeftError(message, reason="usage", hint=hint or None)
    complain(complaint, output, color)
    return USAGE


def _find_typed(error: click.BadParameter) -> str:
    """The option as it was typed, of those that mean the same."""
    assert error.param is not None
    session = error.ctx.find_object(Session) if error.ctx is not None else None
    typed = {word.partition("=")[0] for word in session.typed} if session is not None else set()
    return next((name for name in error.param.opts if name in typed), error.param.opts[0])


def _describe_range(numbers: click.IntRange) -> str:
    """`` from 1 to 500``"""
    least = f" from {numbers.min}" if numbers.min is not None else ""
    return least + (f" to {numbers.max}" if numbers.max is not None else " on" if least else "")


def _name_missing(param: click.Parameter) -> str:
    name = param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
    words = f": give {' or '.join(param.type.choices)}" if isinstance(param.type, click.Choice) else ""
    return f"{name} is missing{words}"


def _find_kinds_with(flag: str, context: click.Context | None) -> list[str]:
    """Kinds of workloads, and volumes, that have a field with this flag, where ``context`` is the command that sets another's."""
    words = context.command_path.split() if context is not None else []
    if len(words) < 3 or words[-2] not in BY_NAME or words[-1] not in ("create", "set"):
        return []
    flags = importlib.import_module("weft.cli.command.flags")  # help, which is read more often, does without
    kinds = [BY_NAME[name] for name in (*WORKLOADS, "volume")]
    return [kind.name for kind in kinds if any(flag == flags.flag_name(doc) for doc in flags.flag_fields(kind))]


def _options_of(context: click.Context | None) -> list[str]:
    return [name for param in context.command.params for name in param.opts] if context is not None else []


def describe_error(error: WeftError) -> dict[str, Any]:
    """``error`` as the stable object that scripts read."""
    details = {key: value for key, value in error.details.items() if key != "request_id"}
    if error.field:
        details["field"] = error.field
    return {
        "code": error.token,
        "message": error.message,
        "details": details,
        "hint": error.hint,
        "retryable": error.retry_after_seconds is not None or error.token in _RETRYABLE,
        "request_id": error.details.get("request_id"),
    }


def _picture(error: WeftError) -> list[str]:
    """The place in an expression that the error is about, if it is about one."""
    problems = error.details.get("problems") or [{}]
    details = error.details if "expression" in error.details else problems[0].get("details") or {}
    text, at, length = (details.get(key) for key in ("expression", "at", "length"))
    if not isinstance(text, str) or not isinstance(at, int) or not isinstance(length, int):
        return []
    return draw_caret(text, at, length)


def _headline(error: WeftError) -> str:
    message = "\n".join(clean(line) for line in error.message.splitlines())
    if error.token in _PLAIN or error.token in message:
        return message
    first, newline, rest = message.partition("\n")
    return f"{first} ({error.token}){newline}{rest}"
