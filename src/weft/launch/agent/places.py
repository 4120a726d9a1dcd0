"""Settings of an agent that name addresses, folders and storage: what can't be one is refused before anything is made. Pure."""

from __future__ import annotations

import importlib
import ipaddress
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from weft.launch.agent.drivers import read_pools
from weft.objects.errors import InvalidInput
from weft.telemetry.audit.target import read_target

SOCKET = "agent.sock"  # in the run folder
_MOST_SOCKET_BYTES = 107  # of a unix socket's path


def check_places(find: Callable[[str], Any]) -> None:
    """``find`` gives a setting's value by its name. Raises InvalidInput with the setting as ``field``."""
    read_pools(find("pool"))
    if place := find("metrics"):
        read_metrics_place(place)
    if run_dir := find("run_dir"):
        check_run_dir(run_dir)
    if target := find("log_syslog"):
        _name("log_syslog", lambda: read_target(target))
    if url := find("log_otlp"):
        collector = importlib.import_module("weft.telemetry.collector")  # few agents have one
        export = importlib.import_module("weft.telemetry.logs.export")  # few agents have one
        _name("log_otlp", lambda: collector.read_collector(url, "log_otlp", export.PATH))
    if place := find("local_functions"):
        read_place(place, find("local_functions_tls") is not None)
        if not offers_functions(find("functions"), find("runtime")):
            raise InvalidInput("this node runs no functions", field="local_functions", hint="set functions to auto")


def offers_functions(functions: str | None, runtime: str) -> bool:
    """Whether a node with these settings runs functions, if it can."""
    return (functions or ("auto" if runtime == "qemu" else "none")) != "none"


def read_place(place: str, has_tls: bool) -> tuple[str, int]:
    """Address and port of the node's own functions. Raises InvalidInput for anything else, and for one that others reach, without
    TLS: tokens would be sent in clear."""
    split = urlsplit(f"//{place}")
    try:
        address, port = ipaddress.ip_address(split.hostname or ""), split.port
    except ValueError:
        port = None
    if not port or split.netloc != place or "@" in place:
        raise InvalidInput(
            f"{place[:80]!r} is not an address and a port", field="local_functions", hint="write it like 127.0.0.1:9466"
        )
    if not address.is_loopback and not has_tls:
        raise InvalidInput(
            f"{address} is not this machine's alone, and callers' tokens would be sent in clear",
            field="local_functions",
            hint="use 127.0.0.1, or give a file with a key and its certificate as local_functions_tls",
        )
    return str(address), port


def read_metrics_place(place: str) -> tuple[str, int]:
    """Raises InvalidInput."""
    try:
        split = urlsplit(f"//{place}")
        address, port = str(ipaddress.ip_address(split.hostname or "")), split.port
    except ValueError:
        port = None
    if port is None:
        raise InvalidInput(
            f"{place[:80]!r} is not an address and a port", field="metrics", hint="write it like 127.0.0.1:9464"
        )
    return address, port


def check_run_dir(folder: Path) -> None:
    """Raises InvalidInput for a folder whose sockets would have too long paths."""
    if len(os.fsencode(folder / SOCKET)) > _MOST_SOCKET_BYTES:
        most = _MOST_SOCKET_BYTES - len(SOCKET) - 1
        raise InvalidInput(
            f"a path of sockets can't have more than {most} bytes",
            field="run_dir",
            hint="give a short one, like /run/weft/n1",
        )


def _name(field: str, read: Callable[[], object]) -> None:
    try:
        read()
    except InvalidInput as problem:
        raise InvalidInput(problem.message, field=field, hint=problem.hint) from None
