"""The settings of an agent, each from the strongest place that has it: a flag, a variable ``WEFT_AGENT_…``, a line of the file
``agent.yaml``, or its default. They have the names of the flags. Reads the file and the environment; unknown names are refused.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import msgspec

from weft.agent.node.enrolment import default_node_name, read_enrolment
from weft.launch.agent.options import STATE, make_agent_parser
from weft.launch.agent.places import check_places
from weft.launch.process.settings_file import ONE_VALUE, read_settings_file
from weft.objects.errors import InvalidInput, NotFound
from weft.objects.schema import suggest

FILE = "agent.yaml"
PREFIX = "WEFT_AGENT_"
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_PLACES = ("state", "config")  # where the file is: no file says that
# What an edge deployment of NovaCron writes: the setting that it means, and the unit of its number.
_LIMITS = {"max_memory_mb": ("memory", "M"), "max_cpu_cores": ("cpu", ""), "max_storage_gb": ("disk", "G")}
_LIMITS_OF = "resource_limits"
_ALWAYS = ("offline_mode", "local_decisions")
_INFERENCE = "ai_inference"


class Setting(NamedTuple):
    """A value in force, as it was written, and where it comes from."""

    value: Any
    written: str
    origin: str


def parse_agent(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> argparse.Namespace:
    """The settings that an agent runs with. Raises InvalidInput for a variable or a line that can't be; argparse ends the process
    for such a flag."""
    options, settings = _read(make_agent_parser(), argv, environ)
    for name, setting in settings.items():
        setattr(options, name, setting.value)
    return options


def show_configuration(argv: Sequence[str], environ: Mapping[str, str] = os.environ, out: TextIO = sys.stdout) -> int:
    """``weft agent config [NODE] [--show-origin] [-o json] [FLAG…]``: the settings that the agent would run with."""
    parser = make_agent_parser()
    parser.prog, parser.description = "weft agent config", "Show the settings that a node's agent runs with."
    for action in parser._actions:
        if action.dest == "node":
            action.nargs, action.default = "?", default_node_name()
    parser.add_argument("--show-origin", action="store_true", help="show where each comes from")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="form (default table)")
    options, settings = _read(parser, argv, environ, ("show_origin", "output"))
    try:
        read_enrolment(Path(settings["state"].value))
    except NotFound:
        print(f"note: no node has joined in {settings['state'].value}", file=sys.stderr)
    except InvalidInput as problem:
        print(f"note: {problem.message}", file=sys.stderr)
    if options.output == "json":
        rows = [
            {"name": name, "value": one.value, **({"origin": one.origin} if options.show_origin else {})}
            for name, one in settings.items()
        ]
        out.write(msgspec.json.format(msgspec.json.encode(rows, enc_hook=str), indent=2).decode() + "\n")
        return 0
    cells = [
        ("SETTING", "VALUE", "ORIGIN"),
        *((name, one.written or "–", one.origin) for name, one in settings.items()),
    ]
    widths = [max(len(row[column]) for row in cells) for column in (0, 1)]
    for row in cells:
        shown = row if options.show_origin else row[:2]
        out.write(
            "  ".join(f"{text:<{width}}" for text, width in zip(shown, [*widths, 0], strict=False)).rstrip() + "\n"
        )
    return 0


def _read(
    parser: argparse.ArgumentParser, argv: Sequence[str], environ: Mapping[str, str], beside: Sequence[str] = ()
) -> tuple[argparse.Namespace, dict[str, Setting]]:
    """The command line, and all settings by the names of argparse, but for NODE and those of ``beside``."""
    actions = {
        action.dest: action
        for action in parser._actions
        if action.option_strings and action.dest not in ("help", *beside)
    }
    found = {name: Setting(one.default, _write(one.default), "default") for name, one in actions.items()}
    for action in actions.values():
        action.default = argparse.SUPPRESS  # what argparse sets now was given
    options = parser.parse_args(argv)
    given = {name: value for name, value in vars(options).items() if name in actions}
    flags = {
        name: Setting(value, _write(value), f"flag {actions[name].option_strings[0]}") for name, value in given.items()
    }
    variables = _read_environment(actions, environ)
    strong = {**variables, **flags}
    if "state" not in strong:
        found["state"] = Setting(STATE / options.node, str(STATE / options.node), "default")
    state = Path(strong.get("state", found["state"]).value)
    file = Path(strong["config"].value) if "config" in strong else state / FILE
    lines = _read_file(actions, file, strong["config"].origin.partition(" ")[2] if "config" in strong else "")
    if lines and "config" not in strong:
        found["config"] = Setting(file, str(file), "default")
    settings = {**found, **lines, **strong}
    try:
        check_places(lambda name: settings[name].value)
    except InvalidInput as problem:
        raise _locate(problem, settings) from None
    return options, settings


def _locate(problem: InvalidInput, settings: Mapping[str, Setting]) -> InvalidInput:
    """``problem`` of a setting, with the flag, variable, or line of the file that it was given by."""
    field = problem.field or ""
    sort, _, place = settings[field].origin.partition(" ")
    where = f"{place}: {field}" if sort == "file" else place or field
    message = problem.message.removeprefix(f"{field}: ")
    return InvalidInput(f"{where}: {message}", field=field, hint=problem.hint)


def _read_environment(actions: Mapping[str, argparse.Action], environ: Mapping[str, str]) -> dict[str, Setting]:
    names = _find_names(actions)
    found: dict[str, Setting] = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(PREFIX) or not text:  # an empty one is as good as none
            continue
        name = names.get(variable.removeprefix(PREFIX).lower())
        if name is None:
            raise _refuse(variable, [f"{PREFIX}{known.upper()}" for known in names], "variable", variable)
        many = isinstance(actions[name], argparse._AppendAction)
        raw = [part for part in text.split(",") if part] if many else text
        found[name] = Setting(_convert(actions[name], raw, variable), text, f"environment {variable}")
    return found


def _read_file(actions: Mapping[str, argparse.Action], path: Path, named_by: str) -> dict[str, Setting]:
    """The settings in the file; none if there is no file, unless people named it by a flag or a variable."""
    try:
        given, find_place = read_settings_file(path, "log_size: 4G")
    except FileNotFoundError:
        if named_by:
            raise InvalidInput(f"{named_by} {path}: there is no such file", field="config") from None
        return {}
    known = {name: one for name, one in _find_names(actions).items() if one not in _PLACES}
    found: dict[str, Setting] = {}
    for written, key, value in _translate(given, find_place):
        where = find_place(written)
        shown = ".".join(map(str, written)) if isinstance(written, tuple) else str(written)
        name = known.get(str(key).replace("-", "_"))
        if key in _PLACES:
            raise InvalidInput(
                f"{where}: {key} can't be set in the file: the agent finds the file by it",
                field=key,
                hint=f"give --{key}, or set {PREFIX}{key.upper()}",
            )
        if name is None:
            raise _refuse(f"{where}: {key}", list(known), "setting", str(key))
        if name in found:
            raise InvalidInput(f"{where}: {shown}: {name} is given twice", field=name, hint="keep one of them")
        found[name] = Setting(_convert(actions[name], value, f"{where}: {shown}"), _write(value), f"file {where}")
    return found


def _translate(given: Mapping[Any, Any], find_place: Callable[[Any], str]) -> Iterator[tuple[Any, Any, Any]]:
    """The lines of the file: what is written, the setting that it means (NovaCron has other names), and its value."""
    for key, value in given.items():
        file = find_place(key)
        if key == _LIMITS_OF:
            if not isinstance(value, dict) or not value.keys() <= _LIMITS.keys():
                raise InvalidInput(f"{file}: {key}: must be a map of {', '.join(_LIMITS)}", field=key)
            for limit, number in value.items():
                if isinstance(number, bool) or not isinstance(number, (int, float)):
                    raise InvalidInput(f"{file}: {key}.{limit}: must be a number", field=f"{key}.{limit}")
                name, unit = _LIMITS[limit]
                yield (key, limit), name, f"{number}{unit}"
        elif key in (*_ALWAYS, _INFERENCE):
            if not isinstance(value, bool):
                raise InvalidInput(f"{file}: {key}: must be true or false", field=key)
            if key in _ALWAYS and not value:
                raise InvalidInput(
                    f"{file}: {key}: can't be false: an agent that can't reach the server keeps its workloads running",
                    field=key,
                    hint="leave it out, or stop the agent",
                )
            if key == _INFERENCE and value and "functions" not in given:
                yield key, "functions", "auto"  # a model runs as a function, or in a container
        else:
            yield key, key, value


def _find_names(actions: Mapping[str, argparse.Action]) -> dict[str, str]:
    """argparse's names of all settings by those that people write."""
    names = {name: name for name in actions}
    for name, action in actions.items():
        for flag in action.option_strings:
            word = flag.removeprefix("--").replace("-", "_")
            if not word.startswith("no_"):
                names.setdefault(word, name)
    return names


def _convert(action: argparse.Action, raw: Any, where: str) -> Any:
    """``raw``, of a file or a variable, as the flag's own type reads it."""
    name = action.dest
    if action.nargs == 0:
        word = _WORDS.get(str(raw).lower())
        if word is None:
            raise InvalidInput(f"{where}: must be true or false, not {str(raw)[:60]!r}", field=name)
        return word
    if isinstance(action, argparse._AppendAction):
        return [_convert_one(action, one, where) for one in (raw if isinstance(raw, list) else [raw])]
    return _convert_one(action, raw, where)


def _convert_one(action: argparse.Action, raw: Any, where: str) -> Any:
    if isinstance(raw, bool) or not isinstance(raw, (str, int, float)):
        raise InvalidInput(
            f"{where}: must be a text or a number, not {str(raw)[:60]!r}", field=action.dest, hint=ONE_VALUE
        )
    read: Any = action.type or str
    try:
        value = read(str(raw))
    except (argparse.ArgumentTypeError, ValueError) as problem:
        raise InvalidInput(f"{where}: {problem}", field=action.dest) from None
    if action.choices is not None and value not in action.choices:
        raise InvalidInput(
            f"{where}: must be one of {', '.join(action.choices)}, not {str(raw)[:60]!r}", field=action.dest
        )
    return value


def _refuse(what: str, known: Sequence[str], of: str, name: str) -> InvalidInput:
    meant = suggest(name, list(known))
    hint = f"did you mean {meant}?" if meant else "weft agent --help lists the settings"
    return InvalidInput(f"{what} is not a known {of} of the agent", field=name, hint=hint)


def _write(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
