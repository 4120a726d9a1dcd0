"""Speaks with an HAProxy that runs, over its socket for statistics and changes. Answers are bounded."""

from __future__ import annotations

import asyncio
import importlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from weft.contracts.proxy import Listener
from weft.drivers.proxy.haproxy.config import list_slots, name_backend, name_server, render_server
from weft.objects.errors import DriverFailed

ANSWER_SECONDS = 5.0
MOST_ANSWER_BYTES = 4 << 20


class Server(msgspec.Struct, frozen=True):
    """A server as it stands in the process."""

    address: str
    port: int
    weight: int
    stopped: bool


async def ask(socket_: Path, command: str) -> str:
    """Return the answer to one command. Raises DriverFailed."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(socket_), limit=MOST_ANSWER_BYTES)
            try:
                writer.write(command.encode() + b"\n")
                await writer.drain()
                answer = bytearray()
                while piece := await reader.read(65_536):
                    answer += piece
                    if len(answer) > MOST_ANSWER_BYTES:
                        raise DriverFailed("proxy: its answer is too long")
            finally:
                writer.close()
    except (OSError, TimeoutError) as problem:
        raise DriverFailed(f"proxy: it doesn't answer: {problem or 'in time'}", details={"step": "proxy"}) from problem
    return answer.decode(errors="replace")


async def read_servers(socket_: Path, backend: str) -> dict[str, Server]:
    """Read the servers by name. Raises DriverFailed."""
    lines = (await ask(socket_, f"show servers state {backend}")).splitlines()
    head = next((line for line in lines if line.startswith("# ")), "")
    names = head.removeprefix("# ").split()
    found = {}
    for line in lines[lines.index(head) + 1 :] if head else ():
        row = dict(zip(names, line.split(), strict=False))
        if len(row) < len(names):
            continue
        stopped = bool(int(row["srv_admin_state"]) & 0x1)
        found[row["srv_name"]] = Server(row["srv_addr"], int(row["srv_port"]), int(row["srv_uweight"]), stopped)
    return found


async def read_slots(socket_: Path, map_: Path) -> list[str]:
    """The lines of a map, without its numbers. Raises DriverFailed."""
    lines = (await ask(socket_, f"show map {map_}")).splitlines()
    return [line.partition(" ")[2] for line in lines if line.startswith("0x")]


def plan_servers(listener: Listener, known: dict[str, Server]) -> list[str]:
    """The commands that bring the servers of a backend to what they should be. Those that go are stopped, and removed once their
    last connection has ended. Pure."""
    backend = name_backend(listener)
    commands = []
    for one in listener.backends:
        name = name_server(one.address)
        weight = 1 if one.weight > 0 else 0
        there = known.get(name)
        if there is None:
            added = render_server(listener, one)
            commands += [f"add server {backend}/{added}", f"enable server {backend}/{name}"]
            continue
        if there.stopped:
            commands.append(f"enable server {backend}/{name}")
        if there.weight != weight:
            commands.append(f"set server {backend}/{name} weight {weight}")
    return commands


def plan_removals(listener: Listener, known: dict[str, Server]) -> list[str]:
    """Plan the removals to do after the map has changed. Pure."""
    backend = name_backend(listener)
    wanted = {name_server(one.address) for one in listener.backends}
    commands = []
    for name in sorted(known.keys() - wanted):
        commands += [] if known[name].stopped else [f"set server {backend}/{name} state maint"]
        commands.append(f"del server {backend}/{name}")
    return commands


async def change_slots(socket_: Path, map_: Path, lines: Sequence[str]) -> None:
    """Replace a map's lines by these at one moment. Raises DriverFailed."""
    answer = await ask(socket_, f"prepare map {map_}")
    version = answer.rpartition(":")[2].strip()
    if not version.isdigit():
        raise DriverFailed(f"proxy: a change was refused: {answer.strip()[:200]}", details={"step": "proxy"})
    if lines:
        refused = await ask(socket_, f"add map @{version} {map_} <<\n" + "\n".join(lines) + "\n")
        if refused.strip():
            raise DriverFailed(f"proxy: a change was refused: {refused.strip()[:200]}", details={"step": "proxy"})
    await ask(socket_, f"commit map @{version} {map_}")


async def perform(socket_: Path, commands: Iterable[str]) -> list[str]:
    """Give these commands, one after the other; returns what was refused. Raises DriverFailed where it doesn't answer."""
    refused = []
    for command in commands:
        answer = (await ask(socket_, command)).strip()
        if answer and not answer.startswith(("New server registered", "Server deleted")):
            refused.append(f"{command.split()[0]} {command.split()[1]}: {answer[:200]}")
    return refused


async def follow(socket_: Path, listener: Listener, map_: Path) -> bool:
    """Bring a backend's servers and shares to the listener's. False: something goes later. Raises DriverFailed."""
    known = await read_servers(socket_, name_backend(listener))
    if refused := await perform(socket_, plan_servers(listener, known)):
        raise DriverFailed(f"proxy: {refused[0]}", details={"step": "proxy"})
    lines = list_slots(listener)
    if await read_slots(socket_, map_) != lines:
        await change_slots(socket_, map_, lines)
    return not await perform(socket_, plan_removals(listener, known))


def read_statistics(text: str) -> list[dict[str, str]]:
    """The rows of ``show stat`` that are of servers. Pure."""
    late = importlib.import_module("csv")  # an agent without HTTP services never needs it
    rows = late.DictReader(io.StringIO(text.removeprefix("# ")))
    return [row for row in rows if row.get("svname") not in ("FRONTEND", "BACKEND", None)]
