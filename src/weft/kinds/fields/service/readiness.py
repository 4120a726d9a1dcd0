"""When an endpoint of a service is ready: what people write, its check, and what the endpoint's node reports. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.objects.errors import InvalidInput
from weft.objects.quantity import format_duration
from weft.objects.schema import field

LEAST_INTERVAL_SECONDS, MOST_INTERVAL_SECONDS = 0.5, 300.0
LEAST_TIMEOUT_SECONDS, MOST_TIMEOUT_SECONDS = 0.1, 10.0  # a check that waits takes the turn of others
MOST_CHECKED = 16  # services that a workload is asked for; a node checks no more
MOST_WORDS = 64  # of a command
MOST_MESSAGE = 200  # characters
_PORT = "tcp/"
Word = Annotated[str, field("", max_length=4096, shown="word")]


class Readiness(msgspec.Struct, kw_only=True, frozen=True):
    """How an endpoint's node finds out whether it is ready."""

    type: Annotated[
        Literal["auto", "tcp", "http", "command", "none"],
        field(
            "tcp: the port accepts a connection; http: GET of the path answers 200 to 399; command: it exits with 0; none:"
            " whatever runs is ready; auto: tcp, or none without a TCP port"
        ),
    ] = "auto"
    port: Annotated[int, field("Port of the workload to ask; 0: the first TCP port", ge=0, le=65535)] = 0
    path: Annotated[str, field("Path to ask for (http)", max_length=1024)] = "/"
    command: Annotated[list[Word], field("Command to run in the workload (command)")] = []
    interval: Annotated[float, field("Time between checks", quantity="duration")] = 2.0
    timeout: Annotated[float, field("Timeout of one check", quantity="duration")] = 2.0
    fall: Annotated[int, field("Failures in a row until it counts as not ready", ge=1, le=100)] = 3
    rise: Annotated[int, field("Successes in a row until it counts as ready", ge=1, le=100)] = 1


class ReadinessReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Findings of a node about a workload, for one service."""

    ready: bool
    message: str = ""  # why it isn't; MOST_MESSAGE characters
    silent: bool = False  # it was ready since it started, and has said nothing since, neither yes nor no


def name_port(port: int) -> str:
    """The key by which a node reports whether a TCP port of a guest answers, beside those of services."""
    return f"{_PORT}{port}"


def is_service(name: str) -> bool:
    """Whether a node's word of that name is for a service."""
    return not name.startswith(_PORT)


def resolve_readiness(readiness: Readiness, first_tcp_port: int) -> Readiness:
    """Choose its type and port; ``first_tcp_port``: of the service's targets, 0 for none."""
    type_ = readiness.type
    if type_ == "auto":
        type_ = "tcp" if readiness.port or first_tcp_port else "none"
    return msgspec.structs.replace(readiness, type=type_, port=readiness.port or first_tcp_port)


def check_readiness(readiness: Readiness, first_tcp_port: int, at: str = "spec.readiness") -> None:
    """Raises InvalidInput."""
    if readiness.type in ("tcp", "http") and not (readiness.port or first_tcp_port):
        raise InvalidInput(
            f"{at}.port: the service has no TCP port to ask", field=f"{at}.port", hint="give one, or use type none"
        )
    if (readiness.type == "command") != bool(readiness.command) or len(readiness.command) > MOST_WORDS:
        raise InvalidInput(
            f"{at}.command: type {readiness.type} and a command of {len(readiness.command)} words",
            field=f"{at}.command",
            hint=f"give a command of at most {MOST_WORDS} words with type command, and with no other",
        )
    path = readiness.path
    if readiness.type == "auto" and path != "/":
        raise InvalidInput(
            f"{at}.path: type auto asks for no path, but whether the port accepts connections",
            field=f"{at}.path",
            hint="give type http, too",
        )
    if not path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path:
        raise InvalidInput(
            f"{at}.path: {path[:60]!r} is not a path",
            field=f"{at}.path",
            hint="write one like /healthz; %20 is a space",
        )
    for name, seconds, least, most, words in (
        ("interval", readiness.interval, LEAST_INTERVAL_SECONDS, MOST_INTERVAL_SECONDS, "500ms to 5m"),
        ("timeout", readiness.timeout, LEAST_TIMEOUT_SECONDS, MOST_TIMEOUT_SECONDS, "100ms to 10s"),
    ):
        if not least <= seconds <= most:
            raise InvalidInput(
                f"{at}.{name}: {format_duration(seconds)} is out of range", field=f"{at}.{name}", hint=f"give {words}"
            )
