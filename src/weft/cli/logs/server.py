"""Logs of the server's own processes, beside the lines of workloads and nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec

from weft.cli.command.target import usage
from weft.cli.logs.reader import Reader
from weft.cli.wait.again import read_again
from weft.client.answer import raise_problem
from weft.client.http import Http

PROCESSES = ("api", "controllers", "gateway", "supervisor")
FOLLOW_SECONDS = 0.5


class ServerProcess(NamedTuple):
    name: str

    @property
    def what(self) -> str:
        return f"server/{self.name}"


def take_processes(words: tuple[str, ...], *, all_of_them: bool) -> tuple[tuple[str, ...], list[ServerProcess]]:
    """The words that name other things, and the processes that the others name, each once. Raises UsageError."""
    rest, found = [], list(PROCESSES) if all_of_them else []
    for word in words:
        before, slash, name = word.partition("/")
        if before != "server" or not slash:
            rest.append(word)
        elif name not in PROCESSES:
            raise usage(f"the server has no process {name[:40]!r}", f"give server/NAME, of {', '.join(PROCESSES)}")
        else:
            found.append(name)
    return tuple(rest), [ServerProcess(name) for name in dict.fromkeys(found)]


class ServerReader(Reader):
    """Reader of one process of the server, page by page."""

    def read(self) -> int:
        """Raises WeftError."""
        asked: dict[str, Any] = self.asked
        query = {name: str(asked[name]) for name in ("since", "until", "filter", "regex") if asked.get(name)}
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
