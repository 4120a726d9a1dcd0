"""The settings of ``weft witness``, each from the strongest place that has it: a flag, a line of its file, or its default. Unknown
names are refused."""

from __future__ import annotations

import argparse
import ipaddress
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from weft.launch.process.address import take_address
from weft.launch.process.amounts import Parser, count
from weft.launch.process.settings_file import ONE_VALUE, read_settings_file
from weft.objects.errors import InvalidInput
from weft.objects.schema import suggest

STATE = Path("/var/lib/weft-witness")
COMMANDS = ("add-site", "remove-site")
MOST_RATE = 100_000
_DOMAIN = re.compile(r"(?:[A-Za-z0-9_*](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?){1,100}")
_DEFAULTS: Mapping[str, Any] = {
    "state": STATE,
    "listen": "127.0.0.1:7443",
    "names": "",
    "metrics": "",
    "rate": 1000,
}


class Settings(NamedTuple):
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
    parser.add_argument("command", nargs="?", choices=COMMANDS, help="instead of serving: add or remove a cluster")
    parser.add_argument("site", nargs="?", metavar="NAME", help="what the witness calls that cluster")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a file of these settings, like listen: 0.0.0.0:7443"
    )
    parser.add_argument("--state", type=Path, help=f"the witness's own folder (default with --config: {STATE})")
    parser.add_argument(
        "--listen", type=take_address, metavar="ADDRESS:PORT", help="where clusters reach it (default 127.0.0.1:7443)"
    )
    parser.add_argument("--names", type=take_names, help="further names and addresses for its certificate, with commas")
    parser.add_argument(
        "--metrics",
        type=take_address,
        metavar="ADDRESS:PORT",
        help="where to answer /metrics and /healthz, without TLS",
    )
    parser.add_argument("--rate", type=count(1, MOST_RATE), help="requests a second of one cluster (default 1000)")
    return parser


def read_settings(argv: Sequence[str]) -> Settings:
    """Raises InvalidInput; argparse ends the process for a wrong flag."""
    parser = make_witness_parser()
    options = vars(parser.parse_args(argv))
    command, site, config = options.pop("command") or "", options.pop("site") or "", options.pop("config")
    if command and not site:
        raise InvalidInput(
            f"weft witness {command}: the name is missing", field="name", hint=f"weft witness {command} east"
        )
    if config is None and options["state"] is None:  # typed to see what it is: nothing may be made yet
        raise InvalidInput(
            "weft witness: its file of settings is missing",
            field="config",
            hint="write one with listen: and names:, and give it with --config FILE; or give a folder alone: --state DIR",
        )
    found = dict(_DEFAULTS)
    if config is not None:
        actions = {action.dest: action for action in parser._actions if action.dest in options}
        found.update(_read_file(actions, config))
    found.update({name: value for name, value in options.items() if value is not None})
    names = tuple(name.strip() for name in found.pop("names").split(",") if name.strip())
    return Settings(**found, names=names, command=command, site=site)


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


def _read_file(actions: Mapping[str, argparse.Action], path: Path) -> dict[str, Any]:
    try:
        given, find_place = read_settings_file(path, "listen: 0.0.0.0:7443")
    except FileNotFoundError:
        raise InvalidInput(
            f"--config {path}: this file doesn't exist", field="config", hint="give the path of a file"
        ) from None
    found = {}
    for key, value in given.items():
        where, name = find_place(key), str(key).replace("-", "_")
        if name not in actions:
            meant = suggest(name, list(actions))
            hint = f"did you mean {meant}?" if meant else "weft witness --help lists the settings"
            raise InvalidInput(f"{where}: {str(key)[:60]} is not a known setting of the witness", field=name, hint=hint)
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise InvalidInput(
                f"{where}: {key}: must be a text or a number, not {str(value)[:60]!r}", field=name, hint=ONE_VALUE
            )
        read: Any = actions[name].type or str
        try:
            found[name] = read(str(value))
        except (argparse.ArgumentTypeError, ValueError) as problem:
            raise InvalidInput(f"{where}: {key}: {problem}", field=name) from None
    return found
