"""Logs of the server's own processes, beside the lines of workloads and nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec

from weft.cli.command.target import usage
from weft.cli.logs.reader import Reader
from weft.cli.session import Session
from weft.cli.wait.again import read_again
from weft.client.answer import raise_problem
from weft.client.http import Http

PROCESSES = ("api", "controllers", "gateway", "supervisor")
FOLLOW_SECONDS = 0.5


class ServerProcess(NamedTuple):
    name: str
    server: str = ""  # "": the fabric has one

    @property
    def what(self) -> str:
        return f"server/{self.server}/{self.name}" if self.server else f"server/{self.name}"


def take_processes(words: tuple[str, ...], *, all_of_them: bool) -> tuple[tuple[str, ...], list[ServerProcess]]:
    """The words that name other things, and the processes that the others name, each once. Raises UsageError."""
    rest, found = list[str](), [ServerProcess(name) for name in PROCESSES] if all_of_them else []
    for word in words:
        before, *parts = word.split("/")
        if before != "server" or not parts:
            rest.append(word)
        elif parts[-1] not in PROCESSES or len(parts) > 2:
            raise usage(
                f"the server has no process {'/'.join(parts)[:40]!r}",
                f"give server/NAME or server/SERVER/NAME, with NAME of {', '.join(PROCESSES)}",
            )
        else:
            found.append(ServerProcess(parts[-1], parts[0] if len(parts) == 2 else ""))
    return tuple(rest), list(dict.fromkeys(found))


def find_servers(session: Session, processes: list[ServerProcess]) -> list[ServerProcess]:
    """The processes at each server of the fabric, where the fabric has several and a word names no server."""
    servers = [one["name"] for one in session.client.list("server").items]
    if len(servers) < 2:
        return processes
    return [
        ServerProcess(one.name, server) for one in processes for server in ([one.server] if one.server else servers)
    ]


class ServerReader(Reader):
    """Reader of one process of a server, page by page."""

    target: ServerProcess

    def read(self) -> int:
        """Raises WeftError."""
        asked: dict[str, Any] = self.asked
        query = {name: str(asked[name]) for name in ("since", "until", "filter", "regex") if asked.get(name)}
        if self.target.server:
            query["server"] = self.target.server
        if asked["tail"] >= 0:
            query["tail"] = str(asked["tail"])
        page = self._read_page(query)
        while not self.session.client.http.closed.is_set():
            for line in page["items"]:
                self.put(line)
            query.pop("tail", None)
            query["from"] = str(page["next"])
            if not page["more"]:
                if not asked["follow"]:
                    break
                query.pop("since", None)
                self.session.client.http.closed.wait(FOLLOW_SECONDS)
            page = (
                read_again(self.session, lambda: self._read_page(query)) if asked["follow"] else self._read_page(query)
            )
        return 0

    def _read_page(self, query: Mapping[str, str]) -> dict[str, Any]:
        return read_server_log(self.session.client.http, self.target.name, query)


def read_server_log(http: Http, process: str, query: Mapping[str, str]) -> dict[str, Any]:
    """A page: ``items``, ``next`` and ``more``. Raises NotFound, InvalidInput, Forbidden."""
    answer = http.request("GET", f"/v1/server/logs/{process}?{urlencode(query)}", timeout_seconds=60.0)
    raise_problem(answer)
    return msgspec.json.decode(answer.body, type=dict[str, Any])
