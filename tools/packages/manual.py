"""Manual pages, written from the commands and the settings themselves: ``weft.1``, ``weft-KIND.1`` for each kind, and one page of
section 8 for each process."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import click

from weft.cli.command.grammar import TOOLS, Entry, load, verbs_of
from weft.cli.command.options import common
from weft.kinds.record import Kind
from weft.kinds.registry import KINDS
from weft.launch.agent.options import make_agent_parser
from weft.launch.server.configuration import make_parser

_SERVICES = {
    "server": (
        "answers people and nodes, places workloads and carries plans out",
        make_parser,
        "/etc/weft/server.yaml",
    ),
    "agent": ("runs a node's guests", make_agent_parser, "/etc/weft/agent.yaml"),
}


def write_client_pages(version: str) -> dict[str, str]:
    """The pages of the command line, by file name."""
    pages = {"weft.1": "".join(_write_overview(version))}
    for kind in KINDS:
        if verbs_of(kind.name):
            pages[f"weft-{kind.name}.1"] = "".join(_write_kind(kind, version))
    return pages


def write_process_page(process: str, version: str) -> str:
    """The page ``weft-PROCESS.8``."""
    does, make, file = _SERVICES[process]
    flags = [action for action in make()._actions if action.option_strings and action.dest != "help"]
    parts = [
        _head(f"weft-{process}", 8, version, does),
        f".SH SYNOPSIS\n.B weft {process}\n[\\fIFLAG\\fR ...]\n",
        f".SH DESCRIPTION\nThe service weft\\-{process} runs it. Settings are flags, variables or lines of\n.IR {_escape(file)} ,\n"
        "which is read at each start.\n.SH FLAGS\n",
        *(_describe(_name_flag(flag), (flag.help or "").replace("%%", "%")) for flag in flags),
    ]
    return "".join(parts) + _see_also("weft(1)")


def _name_flag(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.choices is not None:
        metavar = "|".join(map(str, action.choices))
    return action.option_strings[0] if action.nargs == 0 else f"{action.option_strings[0]} {metavar}"


def _write_overview(version: str) -> Iterator[str]:
    yield _head("weft", 1, version, "place, run, move, watch and protect VMs, containers, functions and jobs")
    yield ".SH SYNOPSIS\n.B weft\n\\fINOUN VERB\\fR [\\fINAME\\fR] [\\fIOPTION\\fR ...]\n"
    yield ".br\n.B weft\n\\fIVERB KIND\\fR/\\fINAME\\fR [\\fIOPTION\\fR ...]\n"
    yield ".SH NOUNS\n"
    yield from (_describe(kind.name, kind.summary) for kind in KINDS if verbs_of(kind.name))
    yield ".SH TOOLS\n"
    yield from (_describe(word, entry.summary) for word, entry in TOOLS.items())
    yield ".SH OPTIONS OF EVERY COMMAND\n"
    yield from _write_options(common())
    yield _see_also(*(f"weft-{kind.name}(1)" for kind in KINDS if verbs_of(kind.name)))


def _write_kind(kind: Kind, version: str) -> Iterator[str]:
    yield _head(f"weft-{kind.name}", 1, version, kind.summary)
    yield f".SH SYNOPSIS\n.B weft {_escape(kind.name)}\n\\fIVERB\\fR [\\fINAME\\fR] [\\fIOPTION\\fR ...]\n.SH VERBS\n"
    for verb, entry in verbs_of(kind.name).items():
        yield from _write_verb(verb, entry, kind)
    yield _see_also("weft(1)")


def _write_verb(verb: str, entry: Entry, kind: Kind) -> Iterator[str]:
    command = load(verb, entry, kind)
    context = click.Context(command, info_name=verb)
    usage = " ".join(command.collect_usage_pieces(context)).replace("[OPTIONS]", "").strip()
    yield f".SS {_escape(f'{verb} {usage}'.strip())}\n{_escape((command.help or entry.summary).strip())}\n"
    known = {param.opts[0] for param in common()}
    yield from _write_options([param for param in command.params if param.opts[0] not in known])


def _write_options(params: list[click.Parameter]) -> Iterator[str]:
    for param in params:
        if isinstance(param, click.Option) and not param.hidden:
            record = param.get_help_record(click.Context(click.Command("weft")))
            if record is not None:
                yield _describe(*record)


def _head(name: str, section: int, version: str, does: str) -> str:
    title = f'.TH {_escape(name.upper())} {section} "" "weft {version}" "weft"\n'
    return title + f".SH NAME\n{_escape(name)} \\- {_escape(does[:1].lower() + does[1:])}\n"


def _describe(term: str, meaning: str) -> str:
    return f".TP\n.B {_escape(term)}\n{_escape(meaning) or 'See above.'}\n"


def _see_also(*pages: str) -> str:
    named = ",\n".join(f".BR {_escape(page.partition('(')[0])} ({page.partition('(')[2]}" for page in pages)
    return f".SH SEE ALSO\n{named}\n"


def _escape(text: str) -> str:
    """Text in roff: no line of it is a request, and its hyphens can be copied."""
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.replace("\\", "\\e").replace("-", "\\-").splitlines())
    return "\n".join(f"\\&{line}" if line[:1] in (".", "'") else line for line in lines if line)
