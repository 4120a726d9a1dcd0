"""The settings of ``weft edge gateway``: flags, variables ``WEFT_EDGE_…``, and a file."""

from __future__ import annotations

import argparse
import importlib
import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from weft.drivers.device.address import split_place
from weft.drivers.device.opcua.words import read_address
from weft.launch.process.address import take_address
from weft.launch.process.amounts import Parser, count
from weft.launch.process.settings import WORDS, Program, Setting, find_settings
from weft.objects.errors import InvalidInput

PROGRAM = Program(command="weft edge gateway", title="the gateway", example="listen: 0.0.0.0:1883")
MOST_RATE = 10_000
MOST_HOSTS = 500
LEAST_CACHE_SECONDS, MOST_CACHE_SECONDS = 3, 7 * 86400
NO_CACHE, SQLITE_CACHE = "off", "sqlite"


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
    if text.lower() not in WORDS:
        raise argparse.ArgumentTypeError(f"give true or false, not {text[:60]!r}")
    return WORDS[text.lower()]


def _take_births(text: str) -> str:
    word = WORDS.get(text.lower())
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
        default="127.0.0.1:1883",
        metavar="ADDRESS:PORT",
        help="where devices reach the broker (default 127.0.0.1:1883)",
    )
    parser.add_argument("--certificate", default="", help="PEM file: the broker speaks TLS with it")
    parser.add_argument("--key", default="", help="PEM file: the key of --certificate")
    parser.add_argument(
        "--births",
        type=_take_births,
        default="",
        metavar="ADDRESS:PORT",
        help="where devices announce themselves without a password, at a broker of its own (default: nowhere)",
    )
    parser.add_argument(
        "--rate", type=count(1, MOST_RATE), default=100, help="messages a second of one device (default 100)"
    )
    parser.add_argument(
        "--connections", type=count(1, 100_000), default=5000, help="devices that are connected together (default 5000)"
    )
    parser.add_argument(
        "--local-devices",
        type=_take_switch,
        default=False,
        help="let devices be at this machine's own addresses, and at link-local ones (default false)",
    )
    parser.add_argument(
        "--coap-hosts",
        action="extend",
        default=[],
        type=_take_coap_hosts,
        metavar="HOST[:PORT],…",
        help="where CoAP devices may be found, with commas between them",
    )
    parser.add_argument(
        "--opcua-hosts",
        action="extend",
        default=[],
        type=_take_opcua_hosts,
        metavar="HOST[:PORT][/PATH],…",
        help="where OPC UA servers may be found, with commas between them",
    )
    parser.add_argument(
        "--cache",
        type=_take_cache,
        default=NO_CACHE,
        metavar="off|sqlite|redis://HOST[:PORT]",
        help="where what devices are is kept for other programs of the site (default off)",
    )
    parser.add_argument(
        "--cache-password", default="", metavar="FILE", help="the password of the cache's Redis is in this file"
    )
    parser.add_argument(
        "--cache-authority",
        default="",
        metavar="FILE",
        help="PEM file: who signed the certificate of a rediss:// cache",
    )
    parser.add_argument(
        "--cache-seconds",
        type=count(LEAST_CACHE_SECONDS, MOST_CACHE_SECONDS),
        default=60,
        help="how long a device is in the cache after it was written (default 60)",
    )
    return parser


def read_settings(
    argv: Sequence[str], environ: Mapping[str, str] = os.environ
) -> tuple[Settings, dict[str, Setting], bool]:
    """The settings, each with its origin, and whether they are only to show. Raises InvalidInput; argparse ends the process for a
    wrong flag."""
    options, found = find_settings(PROGRAM, make_edge_parser(), argv, environ, ("show_config",))
    if found["node_state"].value is None:
        raise InvalidInput(
            "node_state is missing: the folder of the node's agent, with its certificate",
            field="node_state",
            hint="write node_state: /var/lib/weft/NODE, or join first: weft agent join",
        )
    if found["state"].value is None:
        state = Path(f"{found['node_state'].value}-edge")
        found["state"] = Setting(state, str(state), "default")
    for name in ("coap_hosts", "opcua_hosts"):
        if len(found[name].value) > MOST_HOSTS:
            raise InvalidInput(
                f"{name}: {len(found[name].value)} hosts are too many; give at most {MOST_HOSTS}", field=name
            )
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
    values = {name: found[name].value for name in Settings._fields}
    return Settings(**values), found, options.show_config


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
