"""The settings of ``weft edge gateway``, each from the strongest place that has it: a flag, a variable ``WEFT_EDGE_…``, a line of
its file, or its default. Unknown names are refused."""

from __future__ import annotations

import argparse
import importlib
import os
import ssl
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from weft.drivers.device.address import split_place
from weft.drivers.device.opcua.words import read_address
from weft.launch.process.address import take_address
from weft.launch.process.amounts import Parser, count
from weft.launch.process.settings_file import ONE_VALUE, read_settings_file
from weft.objects.errors import InvalidInput
from weft.objects.schema import suggest

PREFIX = "WEFT_EDGE_"
MOST_RATE = 10_000
MOST_HOSTS = 500
LEAST_CACHE_SECONDS, MOST_CACHE_SECONDS = 3, 7 * 86400
NO_CACHE, SQLITE_CACHE = "off", "sqlite"
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class Setting(NamedTuple):
    """A value in force, and where it comes from."""

    value: Any
    origin: str


class Settings(NamedTuple):
    """``node_state``: the folder of the node's agent, with its certificate. ``state``: the gateway's own. ``listen``: where devices
    reach the broker. ``births``: where they announce themselves without a password, "": nowhere. ``rate``: messages a second of
    one device. ``local_devices``: devices that the gateway calls may be at addresses of this machine, and link-local ones.
    ``coap_hosts``: places that are asked which CoAP device they are,
    ``opcua_hosts``: which OPC UA server. ``cache``: "off", "sqlite" or the address of a Redis; ``cache_password``: file with its
    password, "": none; ``cache_authority``: PEM file of who signed its certificate, "": as the machine trusts."""

    node_state: Path
    state: Path
    listen: str
    certificate: str
    key: str
    births: str
    rate: int
    connections: int
    local_devices: bool
    coap_hosts: list[str]
    opcua_hosts: list[str]
    cache: str
    cache_password: str
    cache_authority: str
    cache_seconds: int


def _take_switch(text: str) -> bool:
    if text.lower() not in _WORDS:
        raise argparse.ArgumentTypeError(f"give true or false, not {text[:60]!r}")
    return _WORDS[text.lower()]


def _take_births(text: str) -> str:
    word = _WORDS.get(text.lower())
    if word is None and text:
        return take_address(text)
    if word:
        raise argparse.ArgumentTypeError(
            "strangers announce themselves at a broker of their own: give its ADDRESS:PORT, like 192.168.7.1:1884"
        )
    return ""


def _take_cache(text: str) -> str:
    if text == SQLITE_CACHE:
        return text
    if text.lower() in (NO_CACHE, "false", "no", "none", ""):  # "off" is false in YAML
        return NO_CACHE
    places: Any = importlib.import_module("weft.drivers.cache.redis.place")  # few gateways need it
    try:
        places.read_place(text)
    except InvalidInput as wrong:
        raise argparse.ArgumentTypeError(f"{wrong.message}; {wrong.hint}, or give sqlite or off") from None
    return text


def _take_coap_hosts(text: str) -> list[str]:
    return _take_hosts(text, lambda host: split_place(host, 1, "192.168.7.30:5683"))


def _take_opcua_hosts(text: str) -> list[str]:
    return _take_hosts(text, read_address)


def _take_hosts(text: str, check: Callable[[str], object]) -> list[str]:
    hosts = [one.strip() for one in text.split(",") if one.strip()]
    if len(hosts) > MOST_HOSTS:
        raise argparse.ArgumentTypeError(f"{len(hosts)} hosts are too many; give at most {MOST_HOSTS}")
    for host in hosts:
        try:
            check(host)
        except InvalidInput as wrong:
            raise argparse.ArgumentTypeError(f"{wrong.message.removeprefix('address: ')}; {wrong.hint}") from None
    return hosts


def make_edge_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="weft edge gateway", description="Run the gateway of a node's devices, with its MQTT broker.")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a file of these settings, like listen: 0.0.0.0:1883"
    )
    parser.add_argument(
        "--show-config", action="store_true", help="show the settings and where each comes from, and end"
    )
    parser.add_argument("--node-state", type=Path, help="the state folder of the node's agent")
    parser.add_argument("--state", type=Path, help="the gateway's own folder (default NODE_STATE-edge)")
    parser.add_argument(
        "--listen",
        type=take_address,
        metavar="ADDRESS:PORT",
        help="where devices reach the broker (default 127.0.0.1:1883)",
    )
    parser.add_argument("--certificate", help="PEM file: the broker speaks TLS with it")
    parser.add_argument("--key", help="PEM file: the key of --certificate")
    parser.add_argument(
        "--births",
        type=_take_births,
        metavar="ADDRESS:PORT",
        help="where devices announce themselves without a password, at a broker of its own (default: nowhere)",
    )
    parser.add_argument("--rate", type=count(1, MOST_RATE), help="messages a second of one device (default 100)")
    parser.add_argument(
        "--connections", type=count(1, 100_000), help="devices that are connected together (default 5000)"
    )
    parser.add_argument(
        "--local-devices",
        type=_take_switch,
        help="let devices be at this machine's own addresses, and at link-local ones (default false)",
    )
    parser.add_argument(
        "--coap-hosts",
        type=_take_coap_hosts,
        metavar="HOST[:PORT],…",
        help="where CoAP devices may be found, with commas between them",
    )
    parser.add_argument(
        "--opcua-hosts",
        type=_take_opcua_hosts,
        metavar="HOST[:PORT][/PATH],…",
        help="where OPC UA servers may be found, with commas between them",
    )
    parser.add_argument(
        "--cache",
        type=_take_cache,
        metavar="off|sqlite|redis://HOST[:PORT]",
        help="where what devices are is kept for other programs of the site (default off)",
    )
    parser.add_argument("--cache-password", metavar="FILE", help="the password of the cache's Redis is in this file")
    parser.add_argument(
        "--cache-authority", metavar="FILE", help="PEM file: who signed the certificate of a rediss:// cache"
    )
    parser.add_argument(
        "--cache-seconds",
        type=count(LEAST_CACHE_SECONDS, MOST_CACHE_SECONDS),
        help="how long a device is in the cache after it was written (default 60)",
    )
    return parser


_DEFAULTS = {
    "listen": "127.0.0.1:1883",
    "certificate": "",
    "key": "",
    "births": "",
    "rate": 100,
    "connections": 5000,
    "local_devices": False,
    "coap_hosts": [],
    "opcua_hosts": [],
    "cache": NO_CACHE,
    "cache_password": "",
    "cache_authority": "",
    "cache_seconds": 60,
}


def read_settings(
    argv: Sequence[str], environ: Mapping[str, str] = os.environ
) -> tuple[Settings, dict[str, Setting], bool]:
    """The settings, each with its origin, and whether they are only to show. Raises InvalidInput; argparse ends the process for a
    wrong flag."""
    parser = make_edge_parser()
    options = vars(parser.parse_args(argv))
    only_show, config = options.pop("show_config"), options.pop("config")
    actions = {action.dest: action for action in parser._actions if action.dest in options}
    found = {name: Setting(value, "default") for name, value in _DEFAULTS.items()}
    if config is not None:
        found.update(_read_file(actions, config))
    for variable, text in sorted(environ.items()):
        if variable.startswith(PREFIX):
            name = variable.removeprefix(PREFIX).lower()
            if name not in actions:
                raise _refuse(variable, [PREFIX + known.upper() for known in actions], variable)
            found[name] = Setting(_convert(actions[name], text, variable), f"environment {variable}")
    for name, value in options.items():
        if value is not None:
            found[name] = Setting(value, f"flag {actions[name].option_strings[0]}")
    if "node_state" not in found:
        raise InvalidInput(
            "node_state is missing: the folder of the node's agent, with its certificate",
            field="node_state",
            hint="write node_state: /var/lib/weft/NODE, or join first: weft agent join",
        )
    found.setdefault("state", Setting(Path(f"{found['node_state'].value}-edge"), "default"))
    if bool(found["certificate"].value) != bool(found["key"].value):
        missing = "key" if found["certificate"].value else "certificate"
        raise InvalidInput(
            f"{missing} is missing: TLS needs certificate and key", field=missing, hint="give both, or none"
        )
    for name in ("certificate", "key"):
        path = found[name].value
        if path and not Path(path).is_file():
            raise InvalidInput(f"{name}: {path} must be a file", field=name, hint="give the path of a PEM file")
    if found["births"].value == found["listen"].value:
        raise InvalidInput(
            f"births: {found['listen'].value} is where listen already is",
            field="births",
            hint="give another port: strangers get a broker of their own",
        )
    if found["certificate"].value:
        _check_pair(found["certificate"].value, found["key"].value)
    _check_cache({name: found[name].value for name in ("cache", "cache_password", "cache_authority")})
    return Settings(**{name: one.value for name, one in found.items()}), found, only_show


def _check_pair(certificate: str, key: str) -> None:
    """Raises InvalidInput: Mosquitto would only end again and again, and say little."""
    _check_certificates("certificate", certificate)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError) as problem:
        is_other = getattr(problem, "reason", "") == "KEY_VALUES_MISMATCH"
        what = f"is not the key of {certificate}" if is_other else "is not a key in PEM form without a password"
        raise InvalidInput(
            f"key: {key} {what}", field="key", hint="give the key that the certificate was made for"
        ) from None


def _check_certificates(name: str, path: str) -> None:
    """Raises InvalidInput unless certificates are in the file."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as problem:
        why = (
            "has no certificate in PEM form"
            if isinstance(problem, ssl.SSLError)
            else f"can't be read: {problem.strerror}"
        )
        raise InvalidInput(
            f"{name}: {path} {why}", field=name, hint="give a file with -----BEGIN CERTIFICATE-----"
        ) from None


def _check_cache(given: Mapping[str, str]) -> None:
    """Raises InvalidInput: what is given for a Redis must be of use to one."""
    cache = given["cache"]
    for name, schemes, like in (
        ("cache_password", ("redis://", "rediss://", "unix://"), "redis://192.168.7.5:6379"),
        ("cache_authority", ("rediss://",), "rediss://cache.example:6379"),
    ):
        if not given[name]:
            continue
        if not cache.startswith(schemes):
            raise InvalidInput(
                f"{name} is given, but cache is {cache}", field=name, hint=f"write cache: {like}, or leave {name} out"
            )
        if not Path(given[name]).is_file():
            raise InvalidInput(f"{name}: {given[name]} must be a file", field=name, hint="give the path of a file")
    if given["cache_authority"]:
        _check_certificates("cache_authority", given["cache_authority"])
    if "@" in cache and not given["cache_password"]:
        raise InvalidInput(
            "cache names a user, but cache_password is missing",
            field="cache_password",
            hint="write the user's password into a file, and its path as cache_password",
        )


def show_settings(settings: Mapping[str, Setting], out: TextIO = sys.stdout) -> None:
    rows = [("SETTING", "VALUE", "ORIGIN"), *((name, _show(one.value), one.origin) for name, one in settings.items())]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        out.write(f"{name:<{widths[0]}}  {value or '–':<{widths[1]}}  {origin}\n")


def _show(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


def _read_file(actions: Mapping[str, argparse.Action], path: Path) -> dict[str, Setting]:
    try:
        given, find_place = read_settings_file(path, "listen: 0.0.0.0:1883")
    except FileNotFoundError:
        raise InvalidInput(
            f"--config {path}: this file doesn't exist", field="config", hint="give the path of a file"
        ) from None
    found = {}
    for key, value in given.items():
        where = find_place(key)
        name = str(key).replace("-", "_")
        if name not in actions:
            raise _refuse(f"{where}: {key}", list(actions), name)
        found[name] = Setting(_convert(actions[name], value, f"{where}: {key}"), f"file {where}")
    return found


def _convert(action: argparse.Action, raw: Any, where: str) -> Any:
    if isinstance(raw, list) and all(isinstance(one, str) for one in raw):
        raw = ",".join(raw)
    if not isinstance(raw, (bool, str, int, float)):
        raise InvalidInput(
            f"{where}: must be a text or a number, not {str(raw)[:60]!r}", field=action.dest, hint=ONE_VALUE
        )
    read: Any = action.type or str
    try:
        return read(str(raw))
    except (argparse.ArgumentTypeError, ValueError) as problem:
        raise InvalidInput(f"{where}: {problem}", field=action.dest) from None


def _refuse(what: str, known: Sequence[str], name: str) -> InvalidInput:
    meant = suggest(name, list(known))
    hint = f"did you mean {meant}?" if meant else "weft edge gateway --help lists the settings"
    return InvalidInput(f"{what} is not a known setting of the gateway", field=name, hint=hint)
