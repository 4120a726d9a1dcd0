"""Writes down the grammar of the command line for ``quick_completion``: words, options, and what may be their values. Made once for
each weft, beside the names that are kept for a few seconds."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import weft
from weft.cli.command.completion import KIND_WORDS, Completer
from weft.cli.command.options import Output
from weft.cli.command.synonyms import SYNONYMS
from weft.cli.quick_completion import find_grammar, stamp_source

_PACKAGE = os.path.dirname(os.path.abspath(weft.__file__))
_ASK: dict[str, Any] = {}  # only the whole completion knows


def is_fresh(environ: Mapping[str, str]) -> bool:
    """Whether the stored grammar is of this weft."""
    try:
        with open(find_grammar(environ)) as file:
            return bool(json.loads(file.readline())["stamp"] == stamp_source(_PACKAGE))
    except (OSError, ValueError, KeyError, TypeError):  # a damaged one is made again
        return False


def write_grammar(root: click.Command, environ: Mapping[str, str]) -> None:
    """Raises OSError."""
    stamp = stamp_source(_PACKAGE)  # before it is read: what changes meanwhile makes it stale
    path = Path(find_grammar(environ))
    described = describe(root)
    nodes = described.pop("nodes")
    lines = [
        json.dumps({"stamp": stamp, **described}),
        *(f"{words}\t{json.dumps(node)}" for words, node in nodes.items()),
    ]
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text("\n".join(lines))
    fresh.replace(path)


def write_in_background(root: click.Command, environ: Mapping[str, str]) -> None:
    """A person who has pressed TAB doesn't wait for it."""
    if is_fresh(environ) or os.fork():
        return
    try:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        with contextlib.suppress(OSError):  # without a place for it the whole completion answers each time
            write_grammar(root, environ)
    finally:
        os._exit(0)


def describe(root: click.Command) -> dict[str, Any]:
    """The grammar below ``root``, in values that JSON has."""
    nodes: dict[str, Any] = {}
    _add(nodes, root, "", None)
    return {"nodes": nodes, "synonyms": {**SYNONYMS, **KIND_WORDS}, "kinds": KIND_WORDS}


def _add(nodes: dict[str, Any], command: click.Command, path: str, parent: click.Context | None) -> None:
    context = click.Context(command, parent, info_name=path.rpartition(" ")[2] or "weft", resilient_parsing=True)
    params = command.get_params(context)
    options: dict[str, Any] = {}
    for param in params:
        if isinstance(param, click.Option):
            names = [*param.opts, *param.secondary_opts]
            described = {
                "all": _list_alike(params, param),
                "many": param.multiple,
                "help": param.help or "",
                "hidden": param.hidden,
            }
            value = None if param.is_flag or param.count else _describe_value(param)
            options |= {name: {**described, "value": value} for name in names}
    arguments = [
        {"many": param.nargs == -1, "value": _describe_value(param)}
        for param in params
        if isinstance(param, click.Argument)
    ]
    node: dict[str, Any] = {"options": options, "arguments": arguments}
    nodes[path] = node
    if not isinstance(command, click.Group):
        return
    node["words"] = {}
    for word in command.list_commands(context):
        below = command.get_command(context, word)
        if below is not None and not below.hidden:
            node["words"][word] = below.get_short_help_str()
            _add(nodes, below, f"{path} {word}".strip(), context)


def _list_alike(params: Sequence[click.Parameter], param: click.Option) -> list[str]:
    """All options that set the same thing as ``param``, which is given only once."""
    alike = [one for one in params if isinstance(one, click.Option) and one.name == param.name]
    return [name for one in alike for name in (*one.opts, *one.secondary_opts)]


def _describe_value(param: click.Parameter) -> dict[str, Any]:
    custom = getattr(param, "_custom_shell_complete", None)
    if isinstance(custom, Completer):
        return custom.description
    if custom is not None or param.nargs not in (1, -1):
        return _ASK
    if isinstance(param.type, Output):
        return {"words": [[word, ""] for word in param.type.words()]}
    if isinstance(param.type, click.Choice):
        return {"words": [[str(choice), ""] for choice in param.type.choices]}
    if isinstance(param.type, click.Path):
        return {"type": "dir" if param.type.dir_okay and not param.type.file_okay else "file"}
    if isinstance(param.type, click.File):
        return {"type": "file"}
    if type(param.type).shell_complete is not click.ParamType.shell_complete:
        return _ASK
    return {"words": []}
