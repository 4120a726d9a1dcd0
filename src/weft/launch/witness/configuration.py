"""The settings of ``weft witness``: flags, variables ``WEFT_WITNESS_…``, and a file."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from weft.launch.process.address import take_address
from weft.launch.process.amounts import Parser, count
from weft.launch.process.settings import CONFIG, Program, add_show, find_settings, show_settings
from weft.objects.errors import InvalidInput

STATE = Path("/var/lib/weft-witness")
COMMANDS = ("add-site", "remove-site", "config")
PROGRAM = Program(command="weft witness", title="the witness", example="listen: 0.0.0.0:7443")
MOST_RATE = 100_000
_DOMAIN = re.compile(r"(?:[A-Za-z0-9_*](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?){1,100}")


class WitnessSettings(NamedTuple):
    """``state``: the witness's folder. ``names``: further addresses of this machine in its certificate. ``rate``: requests a second
    of one site. ``command`` and ``site``: what to do instead of serving."""

    state: Path
    listen: str
    names: tuple[str, ...]
    metrics: str
    rate: int
    command: str
    site: str


def make_witness_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="weft witness",
        description="Run the third place that two clusters ask who is primary. add-site NAME prints the secret of a cluster, once; "
        "remove-site NAME ends what it may ask.",
    )
    parser.add_argument(
        "command", nargs="?", choices=COMMANDS, help="instead of serving: add or remove a cluster, show settings"
    )
    parser.add_argument("site", nargs="?", metavar="NAME", help="what the witness calls that cluster")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a file of these settings, like listen: 0.0.0.0:7443"
    )
    parser.add_argument(
        "--state", type=Path, default=STATE, help=f"the witness's own folder (default with --config: {STATE})"
    )
    parser.add_argument(
        "--listen",
        type=take_address,
        default="127.0.0.1:7443",
        metavar="ADDRESS:PORT",
        help="where clusters reach it (default 127.0.0.1:7443)",
    )
    parser.add_argument(
        "--names", type=take_names, default="", help="further names and addresses for its certificate, with commas"
    )
    parser.add_argument(
        "--metrics",
        type=take_address,
        metavar="ADDRESS:PORT",
        help="where to answer /metrics and /healthz, without TLS",
    )
    parser.add_argument(
        "--rate", type=count(1, MOST_RATE), default=1000, help="requests a second of one cluster (default 1000)"
    )
    return parser


def read_settings(
    argv: Sequence[str], environ: Mapping[str, str] = os.environ, out: TextIO = sys.stdout
) -> WitnessSettings:
    """Raises InvalidInput; argparse ends the process for a wrong flag. The command ``config`` has shown them."""
    parser = make_witness_parser()
    options, found = find_settings(PROGRAM, parser, argv, environ, add_show(parser))
    command, site = options.command or "", options.site or ""
    if command in COMMANDS[:2] and not site:
        raise InvalidInput(
            f"weft witness {command}: the name is missing", field="name", hint=f"weft witness {command} east"
        )
    if (
        found[CONFIG].value is None and found["state"].origin == "default"
    ):  # typed to see what it is: nothing may be made yet
        raise InvalidInput(
            "weft witness: its file of settings is missing",
            field="config",
            hint="write one with listen: and names:, and give it with --config FILE; or give a folder alone: --state DIR",
        )
    if command == "config":
        show_settings(found, out, show_origin=options.show_origin, output=options.output)
    names = tuple(name.strip() for name in found["names"].value.split(",") if name.strip())
    values = {name: found[name].value for name in ("state", "listen", "rate")}
    return WitnessSettings(**values, names=names, metrics=found["metrics"].value or "", command=command, site=site)


def take_names(text: str) -> str:
    """Names and addresses with commas. Raises ArgumentTypeError for what no certificate can have."""
    for name in filter(None, map(str.strip, text.split(","))):
        try:
            ipaddress.ip_address(name)
        except ValueError:
            if len(name) > 253 or not _DOMAIN.fullmatch(name):
                raise argparse.ArgumentTypeError(
                    f"{name[:60]!r} is not a name or an address; write it like w.example,192.0.2.7 (and others as xn--…)"
                ) from None
    return text
