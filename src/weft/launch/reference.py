"""``python -m weft.launch.reference`` prints docs/reference/settings.md: the settings of all processes."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Sequence

from weft.launch.agent import configuration as agent
from weft.launch.agent.options import make_agent_parser
from weft.launch.edge import configuration as edge
from weft.launch.process.settings import Program
from weft.launch.server import configuration as server
from weft.launch.witness import configuration as witness

_HEAD = """\
# Settings of processes

`python -m weft.launch.reference > docs/reference/settings.md` writes this page.

Each setting comes from the strongest place that has it: a flag, a variable, a line of the file, or its default. The file is YAML
with one line for each setting, named as its flag with `_` for `-`: `--log-size 4G` is `log_size: 4G`, and as a variable of the
agent `WEFT_AGENT_LOG_SIZE=4G`. What may be given several times is a list in the file, and has commas in a variable. Flags without
a value are `true` or `false`. An empty variable counts as none. An unknown name, or a value that can't be, ends the process with
its place and what to do; so does a file that was named and doesn't exist. A process reads its settings when it starts.
"""
# Of each process: its settings, its parser, its file, and what shows what is in force.
_PROCESSES: tuple[tuple[Program, argparse.ArgumentParser, str, str], ...] = (
    (server.SETTINGS, server.make_parser(), f"`{server.FILE}`", "`weft server config --show-origin`"),
    (agent.PROGRAM, make_agent_parser(), "`agent.yaml` in the node's folder", "`weft agent config NODE --show-origin`"),
    (edge.PROGRAM, edge.make_edge_parser(), "the one that `--config` names", "`weft edge gateway --show-config`"),
    (
        witness.PROGRAM,
        witness.make_witness_parser(),
        "the one that `--config` names",
        "`weft witness config --show-origin`",
    ),
)


def write_page() -> str:
    parts = [_HEAD, *(_write(*process) for process in _PROCESSES)]
    return "\n".join(parts)


def write_file(process: str) -> str:
    """The file with the settings of ``weft server`` or ``weft agent``, each a comment with its meaning."""
    program, parser, _, _ = next(one for one in _PROCESSES if one[0].command == f"weft {process}")
    lines = [f"# Settings of {program.command}; man weft-{process} has the rules. It reads this file when it starts."]
    for action in parser._actions:
        if action.option_strings and action.dest not in ("help", "show_config", *program.not_in_file):
            sample = "true" if action.nargs == 0 else action.metavar if isinstance(action.metavar, str) else "…"
            value = f"[{sample}]" if isinstance(action, argparse._AppendAction) else sample
            lines += ["", *(f"# {line}" for line in textwrap.wrap((action.help or "").replace("%%", "%"), 100))]
            lines.append(f"#{action.dest}: {value}")
    return "\n".join(lines) + "\n"


def _write(program: Program, parser: argparse.ArgumentParser, file: str, shown_by: str) -> str:
    lines = [
        f"## {program.command}",
        "",
        f"Variables `{program.prefix}…`; file: {file}. {shown_by} shows what is in force, and where it comes from.",
        "",
        "| flag | meaning |",
        "|---|---|",
        *_list_rows(parser._actions),
    ]
    return "\n".join(lines) + "\n"


def _list_rows(actions: Sequence[argparse.Action]) -> Iterator[str]:
    for action in actions:
        if not action.option_strings or action.dest in ("help", "show_config"):
            continue
        flag = action.option_strings[0]
        metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        if action.choices is not None:
            metavar = "|".join(map(str, action.choices))
        written = flag if action.nargs == 0 else f"{flag} {metavar}"
        meaning = (action.help or "").replace("%%", "%")
        yield f"| `{written.replace('|', chr(92) + '|')}` | {meaning.replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    print(write_page(), end="")
