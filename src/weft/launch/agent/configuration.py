"""The settings of an agent: flags, variables ``WEFT_AGENT_…``, and the file ``agent.yaml`` in the node's folder."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from weft.agent.node.enrolment import default_node_name, list_joined, read_enrolment
from weft.launch.agent.options import STATE, make_agent_parser
from weft.launch.agent.places import check_places
from weft.launch.process.settings import (
    CONFIG,
    Program,
    Setting,
    Settings,
    add_show,
    find_settings,
    locate,
    show_settings,
)
from weft.objects.errors import InvalidInput, NotFound

FILE = "agent.yaml"
# What an edge deployment of NovaCron writes: the setting that it means, and the unit of its number.
_LIMITS = {"max_memory_mb": ("memory", "M"), "max_cpu_cores": ("cpu", ""), "max_storage_gb": ("disk", "G")}
_LIMITS_OF = "resource_limits"
_ALWAYS = ("offline_mode", "local_decisions")
_INFERENCE = "ai_inference"


def parse_agent(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> argparse.Namespace:
    """The settings that an agent runs with. Raises InvalidInput for a variable or a line that can't be; argparse ends the process
    for such a flag."""
    parser = make_agent_parser()
    joined = list_joined(STATE)
    _make_optional(parser, joined[0] if len(joined) == 1 else "")
    options, settings = _read(parser, argv, environ)
    if not options.node and settings["state"].origin == "default":
        raise InvalidInput(
            f"which node? {', '.join(joined[:5])} have joined here" if joined else f"no node has joined in {STATE}",
            field="node",
            hint=f"weft agent {joined[0]}"
            if joined
            else "weft token create --join prints the command that joins this machine",
        )
    for name, setting in settings.items():
        setattr(options, name, setting.value)
    return options


def show_configuration(argv: Sequence[str], environ: Mapping[str, str] = os.environ, out: TextIO = sys.stdout) -> int:
    """``weft agent config [NODE] [--show-origin] [-o json] [FLAG…]``: the settings that the agent would run with."""
    parser = make_agent_parser()
    parser.prog, parser.description = "weft agent config", "Show the settings that a node's agent runs with."
    _make_optional(parser, default_node_name())
    options, settings = _read(parser, argv, environ, add_show(parser))
    try:
        read_enrolment(Path(settings["state"].value))
    except NotFound:
        print(f"note: no node has joined in {settings['state'].value}", file=sys.stderr)
    except InvalidInput as problem:
        print(f"note: {problem.message}", file=sys.stderr)
    show_settings(settings, out, show_origin=options.show_origin, output=options.output)
    return 0


def _make_optional(parser: argparse.ArgumentParser, node: str) -> None:
    for action in parser._actions:
        if action.dest == "node":
            action.nargs, action.default = "?", node


def _read(
    parser: argparse.ArgumentParser, argv: Sequence[str], environ: Mapping[str, str], beside: Sequence[str] = ()
) -> tuple[argparse.Namespace, Settings]:
    options, settings = find_settings(PROGRAM, parser, argv, environ, beside)
    if settings["state"].value is None:
        settings["state"] = Setting(STATE / options.node, str(STATE / options.node), "default")
    try:
        check_places(lambda name: settings[name].value)
    except InvalidInput as problem:
        raise locate(problem, settings) from None
    return options, settings


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


def _find_file(strong: Mapping[str, Setting], options: argparse.Namespace) -> Path:
    state = strong.get("state")
    return Path(state.value if state is not None else STATE / options.node) / FILE


PROGRAM = Program(
    command="weft agent",
    title="the agent",
    example="log_size: 4G",
    find_file=_find_file,
    not_in_file=("state", CONFIG),
    translate=_translate,
)
