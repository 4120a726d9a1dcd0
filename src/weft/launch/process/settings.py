"""The settings of a process, each from the strongest place that has it: a flag, a variable, a line of its file, or its default.
They have the names of the flags. Reads the file and the environment; unknown names are refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import msgspec

from weft.launch.process.settings_file import ONE_VALUE, read_settings_file
from weft.objects.errors import InvalidInput
from weft.objects.schema import suggest

CONFIG = "config"  # the setting that names the file
WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class Setting(NamedTuple):
    """A value in force, as it was written, and where it comes from."""

    value: Any
    written: str
    origin: str


Settings = dict[str, Setting]  # by argparse's names
# Of a file's map and what finds the place of a key: what is written, the setting that it means, and its value.
Translate = Callable[[Mapping[Any, Any], Callable[[Any], str]], Iterable[tuple[Any, Any, Any]]]


def _translate(given: Mapping[Any, Any], find_place: Callable[[Any], str]) -> Iterable[tuple[Any, Any, Any]]:
    return ((key, key, value) for key, value in given.items())


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A program, and where its settings may be. ``find_file`` gives the file that is read if nobody names one, by the settings of
    flags and variables, or None."""

    command: str  # weft agent
    title: str  # the agent, in an error
    example: str  # a line of its file
    find_file: Callable[[Mapping[str, Setting], argparse.Namespace], Path | None] = lambda *_: None
    not_in_file: tuple[str, ...] = (CONFIG,)  # the file is found by them
    translate: Translate = _translate

    @property
    def prefix(self) -> str:
        """The prefix of its variables."""
        return f"{self.command.partition(' gateway')[0].replace(' ', '_').upper()}_"


def find_settings(
    program: Program,
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
    environ: Mapping[str, str],
    beside: Sequence[str] = (),
) -> tuple[argparse.Namespace, Settings]:
    """The command line, and all settings but for positional arguments and those of ``beside``. Raises InvalidInput for a variable
    or a line that can't be; argparse ends the process for such a flag."""
    actions = {
        action.dest: action
        for action in parser._actions
        if action.option_strings and action.dest not in ("help", *beside)
    }
    found = {name: Setting(_read_default(one), write(one.default), "default") for name, one in actions.items()}
    for action in actions.values():
        action.default, action.required = argparse.SUPPRESS, False  # what argparse sets now was given
    options = parser.parse_args(argv)
    flags = {
        name: Setting(value, write(value), f"flag {actions[name].option_strings[0]}")
        for name, value in vars(options).items()
        if name in actions
    }
    strong = {**_read_environment(program, actions, environ), **flags}
    named = strong.get(CONFIG)
    file = Path(named.value) if named is not None else program.find_file(strong, options)
    lines = (
        _read_file(program, actions, file, named.origin.partition(" ")[2] if named is not None else "") if file else {}
    )
    if lines and named is None:
        found[CONFIG] = Setting(file, str(file), "default")
    return options, {**found, **lines, **strong}


def locate(problem: InvalidInput, settings: Mapping[str, Setting]) -> InvalidInput:
    """``problem`` of a setting, with the flag, variable, or line of the file that it was given by."""
    field = problem.field or ""
    if field not in settings:
        return problem
    sort, _, place = settings[field].origin.partition(" ")
    where = f"{place}: {field}" if sort == "file" else place or field
    message = problem.message.removeprefix(f"{field}: ")
    return InvalidInput(f"{where}: {message}", field=field, hint=problem.hint)


def add_show(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """The flags of ``show_settings``; returns argparse's names of them."""
    parser.add_argument("--show-origin", action="store_true", help="show where each comes from")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="form (default table)")
    return "show_origin", "output"


def show_settings(
    settings: Mapping[str, Setting], out: TextIO, *, show_origin: bool = True, output: str = "table"
) -> None:
    """Show the settings as a table, or as JSON."""
    if output == "json":
        rows = [
            {"name": name, "value": one.value, **({"origin": one.origin} if show_origin else {})}
            for name, one in settings.items()
        ]
        out.write(msgspec.json.format(msgspec.json.encode(rows, enc_hook=str), indent=2).decode() + "\n")
        return
    cells = [
        ("SETTING", "VALUE", "ORIGIN"),
        *((name, one.written or "–", one.origin) for name, one in settings.items()),
    ]
    widths = [max(len(row[column]) for row in cells) for column in (0, 1)]
    for row in cells:
        shown = row if show_origin else row[:2]
        out.write(
            "  ".join(f"{text:<{width}}" for text, width in zip(shown, [*widths, 0], strict=False)).rstrip() + "\n"
        )


def write(value: Any) -> str:
    """Write a value in the form that people use."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _read_default(action: argparse.Action) -> Any:
    read: Any = action.type
    return read(action.default) if isinstance(action.default, str) and read is not None else action.default


def _read_environment(
    program: Program, actions: Mapping[str, argparse.Action], environ: Mapping[str, str]
) -> dict[str, Setting]:
    names, prefix = _find_names(actions), program.prefix
    found: dict[str, Setting] = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(prefix) or not text:  # an empty one is as good as none
            continue
        name = names.get(variable.removeprefix(prefix).lower())
        if name is None:
            raise _refuse(program, variable, [f"{prefix}{known.upper()}" for known in names], "variable", variable)
        many = isinstance(actions[name], argparse._AppendAction)
        raw = [part for part in text.split(",") if part] if many else text
        found[name] = Setting(_convert(actions[name], raw, variable), text, f"environment {variable}")
    return found


def _read_file(
    program: Program, actions: Mapping[str, argparse.Action], path: Path, named_by: str
) -> dict[str, Setting]:
    """The settings in the file; none if there is no file, unless people named it by a flag or a variable."""
    try:
        given, find_place = read_settings_file(path, program.example)
    except FileNotFoundError:
        if named_by:
            raise InvalidInput(f"{named_by} {path}: there is no such file", field=CONFIG) from None
        return {}
    known = {name: one for name, one in _find_names(actions).items() if one not in program.not_in_file}
    found: dict[str, Setting] = {}
    for written, key, value in program.translate(given, find_place):
        where = find_place(written)
        shown = ".".join(map(str, written)) if isinstance(written, tuple) else str(written)
        name = known.get(str(key).replace("-", "_"))
        if key in program.not_in_file:
            raise InvalidInput(
                f"{where}: {key} can't be set in the file: {program.title} finds the file by it",
                field=key,
                hint=f"give --{key}, or set {program.prefix}{key.upper()}",
            )
        if name is None:
            raise _refuse(program, f"{where}: {key}", list(known), "setting", str(key))
        if name in found:
            raise InvalidInput(f"{where}: {shown}: {name} is given twice", field=name, hint="keep one of them")
        found[name] = Setting(_convert(actions[name], value, f"{where}: {shown}"), write(value), f"file {where}")
    return found


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
        word = WORDS.get(str(raw).lower())
        if word is None:
            raise InvalidInput(f"{where}: must be true or false, not {str(raw)[:60]!r}", field=name)
        return word
    if isinstance(action, argparse._AppendAction):
        listed = raw if isinstance(raw, list) else [raw]
        extends = isinstance(action, argparse._ExtendAction)
        if extends and isinstance(raw, list) and not all(isinstance(one, str) for one in raw):
            raise InvalidInput(f"{where}: must be a list of texts", field=name, hint="put each of them in quotes")
        read = [_convert_one(action, one, where) for one in listed]
        return [one for many in read for one in many] if extends else read
    return _convert_one(action, raw, where)


def _convert_one(action: argparse.Action, raw: Any, where: str) -> Any:
    read: Any = action.type or str
    unchecked = read in (str, Path)
    if (isinstance(raw, bool) and unchecked) or not isinstance(raw, (str, int, float)):
        raise InvalidInput(
            f"{where}: must be a text or a number, not {str(raw)[:60]!r}", field=action.dest, hint=ONE_VALUE
        )
    try:
        value = read(str(raw).lower() if isinstance(raw, bool) else str(raw))
    except (argparse.ArgumentTypeError, ValueError) as problem:
        raise InvalidInput(f"{where}: {problem}", field=action.dest) from None
    if action.choices is not None and value not in action.choices:
        raise InvalidInput(
            f"{where}: must be one of {', '.join(action.choices)}, not {str(raw)[:60]!r}", field=action.dest
        )
    return value


def _refuse(program: Program, what: str, known: Sequence[str], of: str, name: str) -> InvalidInput:
    meant = suggest(name, list(known))
    hint = f"did you mean {meant}?" if meant else f"{program.command} --help lists the settings"
    return InvalidInput(f"{what} is not a known {of} of {program.title}", field=name, hint=hint)
