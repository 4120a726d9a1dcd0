"""Errors about fields, in the words of who typed flags: ``--by is missing`` for ``input.by is missing``.

Pure. The table is the command's own: each flag that sets a field is named after the field's path."""

from __future__ import annotations

import re

import click
from click.core import ParameterSource

from weft.cli.command.flags import flag_parameter
from weft.cli.session import Session
from weft.objects.errors import NotFound, WeftError, begin_small

_BY_VERBS = {
    "spec__shared_with": "with",
    "spec__warm__memory": "memory",
    "spec__warm__cpu": "cpu",
    "spec__snapshots__every": "every",
    "spec__snapshots__keep": "keep",
    "spec__autoscale__min": "least",
    "spec__autoscale__max": "most",
    "spec__autoscale__metric": "metric",
    "spec__autoscale__target": "target",
    "spec__autoscale__cooldown": "cooldown",
    "cluster": "to_cluster",
    "spec__cluster": "destination",
    "bytes_per_second": "bandwidth",
    "pause_ms": "pause",
    "spec__values__witness": "token",
    "expires_seconds": "expires",
}  # fields that the input of a verb sets
_WHOLE = "all of "
_FIELD = re.compile(r"(?<![\w./-])(?:spec|input)(?:\.\w+)+(?:\[\d+\])?")


def name_flags(command: click.Context, problem: WeftError) -> WeftError:
    """``problem`` with the flags of ``command`` for the fields that they set. Its ``field`` stays: programs read that."""
    flags = _find_flags(command)
    if flag := flags.get(problem.field or ""):  # of a verb's input, by its name alone
        problem.message = re.sub(rf"^{re.escape(problem.field or '')}(?=[: ])", flag, problem.message)
    problem.message = _rename(flags, problem.message)
    named = _find_flag(flags, problem.field or "") if isinstance(problem, NotFound) else None
    if named and named not in problem.message and not problem.message.startswith(f"{named.removeprefix('--')} "):
        problem.message = f"{named}: {problem.message}"  # node "x" not found: which of several flags meant a node
    hint = problem.hint or ""
    if (problem.field or "").startswith("input.") and problem.message.endswith(" is missing") and hint:
        hint = f"give {problem.message.removesuffix(' is missing')} ({begin_small(hint)})"  # what the field is
    problem.hint = _rename(flags, hint) or None
    problem.message = _shorten(problem.message, problem.field or "")
    for other in problem.details.get("problems") or []:
        other["message"] = _shorten(_rename(flags, str(other.get("message", ""))), str(other.get("field") or ""))
    return problem


def _shorten(message: str, field: str) -> str:
    """``message`` about a ``field`` of a verb's input that no flag sets, without the word that only the API's own pages have."""
    return message.replace(field, field.removeprefix("input."), 1) if field.startswith("input.") else message


def _find_flags(command: click.Context) -> dict[str, str]:
    """Each flag by its parameter's name, as it was typed. Where a file may set fields, too: only the flags that were typed."""
    every = not command.params.get("config")
    session = command.find_object(Session)
    typed = {word.partition("=")[0] for word in session.typed} if session is not None else set()
    found = {
        param.name: next((name for name in param.opts if name in typed), param.opts[0])
        for param in command.command.params
        if isinstance(param, click.Option)
        and param.name
        and (every or command.get_parameter_source(param.name) is ParameterSource.COMMANDLINE)
    }
    groups = dict[
        str, list[str]
    ]()  # of fields that have none of their own: the flags that were typed for what is in them
    for name, flag in found.items():
        if "__" in name and command.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            groups.setdefault(_WHOLE + name.rpartition("__")[0], []).append(flag)
    wholes = {name: " and ".join(given) for name, given in groups.items()}
    return {**found, **wholes, **{field: found[name] for field, name in _BY_VERBS.items() if name in found}}


def _rename(flags: dict[str, str], text: str) -> str:
    return _FIELD.sub(lambda found: _find_flag(flags, found[0]) or found[0], text)


def _find_flag(flags: dict[str, str], path: str) -> str | None:
    """``--memory`` for ``spec.memory``, ``--env A`` for ``spec.env.A``, ``--by`` for ``input.by``."""
    if whole := flags.get(_WHOLE + flag_parameter(path)):
        return whole
    way = path.partition("[")[0].removeprefix("input.").split(".")
    for length in range(len(way), 0, -1):
        field = ".".join(way[:length])
        own = field.removeprefix("spec.").replace(
            ".", "_"
        )  # of a command whose options are its own: weft storage backup
        if flag := flags.get(flag_parameter(field)) or flags.get(own):
            return " ".join([flag, *way[length:]])
    return None
