"""HAProxy as the proxy of services: one for each proxy's id, on files in a folder of its own below the host's run_dir.

Files come first, then the process: what is started again has what stood. Endpoints and shares change in the process that runs; for
other changes it reloads: the master hands its listening sockets to the next worker. It begins as root in the endpoints'
namespace, takes its sockets at the services' addresses from the router's, and then is nobody in an empty root. Called by the agent,
for each proxy one call at a time.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections import defaultdict
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.durable_file import write_durably
from weft.contracts.proxy import EndpointCount, Proxy
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.linux.processes import ProcessId, is_alive
from weft.drivers.proxy.haproxy import process as processes
from weft.drivers.proxy.haproxy.config import (
    CHROOT,
    CONFIG,
    TIMES,
    Rendered,
    name_backend,
    name_server,
    name_socket,
    read_server,
    render,
)
from weft.drivers.proxy.haproxy.control import ask, follow, read_statistics
from weft.drivers.proxy.haproxy.times import Times
from weft.objects.errors import DriverFailed

GROUP = "proxy-"
COUNTED = "counted.json"
NAMESPACES = Path("/run/netns")
_CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")
NO_ANSWER = "none"
Counts = dict[tuple[str, str], dict[str, int]]  # by backend and server


class Running(msgspec.Struct):
    process: ProcessId
    proxy: Proxy
    shape: str
    places: tuple[int, int]  # the namespaces that it is in, by number
    settled: bool = False  # nothing waits to be removed


class HaproxyDriver:
    def __init__(self, host: Host, clock: Clock) -> None:
        self._folder = Path(host.run_dir) / "proxies"
        self._groups = ControlGroups(host.cgroup)
        self._clock = clock
        self._running: dict[str, Running] = {}
        self._times: dict[str, Times] = {}
        self._before: dict[str, Counts] = {}  # what workers before the present one counted

    async def ensure(self, proxy: Proxy) -> None:
        """See contracts.proxy. Raises DriverFailed."""
        known = self._running.get(proxy.id)
        try:
            places = _find_places(proxy)
        except OSError as problem:
            raise DriverFailed(f"proxy: its network is not there yet: {problem.filename}") from problem
        alive = known is not None and is_alive(known.process)
        if known is not None and alive and known.settled and known.proxy == proxy and known.places == places:
            return
        folder = self._folder / proxy.id
        rendered, missing = render(proxy, folder), set[str]()
        found = known.process if known is not None and alive else processes.find(folder)
        shape = known.shape if known is not None else _read_shape(folder)
        if found is not None and (known or _read_places(folder)) and self._places(known, folder) != places:
            await self._end(proxy.id)
            found = None
        if found is None or shape != rendered.shape:
            proxy, missing = await _leave_out(proxy)
            if not proxy.listeners:
                raise _describe_missing(missing)
            rendered = render(proxy, folder)
        if found is None:
            await self._start(proxy, rendered, folder, places)
        elif shape != rendered.shape or (known is None and not await _answers(folder / name_socket(shape))):
            await self._reload(proxy, rendered, folder, found, places)
        else:
            _write(folder, rendered, places)
            self._listen(proxy.id, folder)
            self._running[proxy.id] = Running(found, proxy, rendered.shape, places)
        await self._follow(proxy, folder)
        if missing:
            raise _describe_missing(missing)

    async def remove(self, id: str) -> None:
        """See contracts.proxy. Raises DriverFailed."""
        await self._end(id)
        self._before.pop(id, None)
        if (times := self._times.pop(id, None)) is not None:
            times.close()
        await asyncio.to_thread(shutil.rmtree, self._folder / id, ignore_errors=True)

    def find_all(self) -> list[str]:
        """See contracts.proxy."""
        return sorted(path.name for path in self._folder.glob("*") if path.is_dir())

    def find_ended(self) -> list[str]:
        """See contracts.proxy."""
        return [id for id, one in self._running.items() if not is_alive(one.process)]

    async def read(self, id: str) -> list[EndpointCount]:
        """See contracts.proxy. Raises DriverFailed."""
        folder = self._folder / id
        counts = _add(self._before.get(id, {}), await _read_counts(folder / name_socket(self._find_shape(id))))
        times = self._times[id].take() if id in self._times else {}
        found = defaultdict[tuple[str, str], list[tuple[dict[str, int], float | None]]](list)
        for (backend, server), answers in counts.items():
            service = backend.rpartition(".")[0]
            found[service, read_server(server)].append((answers, times.get((backend, server))))
        return [_join(service, address, parts) for (service, address), parts in sorted(found.items())]

    async def _start(self, proxy: Proxy, rendered: Rendered, folder: Path, places: tuple[int, int]) -> None:
        await self._groups.clear(
            f"{GROUP}{proxy.id}", self._clock
        )  # a worker without its master, of one that was killed
        self._before[proxy.id] = {}
        _write(folder, rendered, places)
        _keep_counts(folder, {})
        self._listen(proxy.id, folder)
        process = await processes.start(folder, proxy.namespace, self._groups, f"{GROUP}{proxy.id}", self._clock)
        self._running[proxy.id] = Running(process, proxy, rendered.shape, places)

    async def _reload(
        self, proxy: Proxy, rendered: Rendered, folder: Path, process: ProcessId, places: tuple[int, int]
    ) -> None:
        self._listen(proxy.id, folder)
        counts = self._before.get(proxy.id, {})
        if await _answers(socket_ := folder / name_socket(_read_shape(folder))):
            counts = _add(counts, await _read_counts(socket_))
        backends = {name_backend(one) for one in proxy.listeners}
        before = _read_files(folder)
        _write(folder, rendered, places)
        try:
            await processes.check(folder, proxy.namespace)
            await processes.reload(process, folder / name_socket(rendered.shape), self._clock)
        except DriverFailed:
            _restore(folder, before)
            raise
        self._before[proxy.id] = {key: one for key, one in counts.items() if key[0] in backends}
        _keep_counts(folder, self._before[proxy.id])
        _drop_others(folder, rendered)
        self._running[proxy.id] = Running(process, proxy, rendered.shape, places)

    async def _follow(self, proxy: Proxy, folder: Path) -> None:
        settled, socket_ = True, folder / name_socket(self._running[proxy.id].shape)
        for listener in proxy.listeners:
            settled &= await follow(socket_, listener, folder / f"{name_backend(listener)}.map")
            known = {name_server(one.address) for one in listener.backends}
            before = self._before.get(proxy.id, {})  # an address that comes back may be another workload's
            for key in [key for key in before if key[0] == name_backend(listener) and key[1] not in known]:
                del before[key]
        self._running[proxy.id].settled = settled

    async def _end(self, id: str) -> None:
        self._running.pop(id, None)
        if not await self._groups.clear(f"{GROUP}{id}", self._clock):
            raise DriverFailed(f"proxy {id}: it doesn't end, even killed", details={"step": "proxy"})
        if (found := processes.find(self._folder / id)) is not None:  # where there are no control groups
            os.kill(found.pid, 9)

    def _find_shape(self, id: str) -> str:
        return self._running[id].shape if id in self._running else _read_shape(self._folder / id)

    def _listen(self, id: str, folder: Path) -> None:
        if id not in self._times:
            self._times[id] = Times(folder / CHROOT / TIMES)
            self._before.setdefault(id, _recall_counts(folder))

    @staticmethod
    def _places(known: Running | None, folder: Path) -> tuple[int, int] | None:
        return known.places if known is not None else _read_places(folder)


async def _leave_out(proxy: Proxy) -> tuple[Proxy, set[str]]:
    """``proxy`` without the listeners whose address isn't in its network yet, and these addresses. With one that can't be bound,
    HAProxy would have the worker before it stop to listen, and as both have the same sockets, neither would afterwards."""
    there = await processes.list_addresses(NAMESPACES / proxy.router)
    kept = tuple(one for one in proxy.listeners if one.address in there)
    return msgspec.structs.replace(proxy, listeners=kept), {one.address for one in proxy.listeners} - there


def _describe_missing(missing: set[str]) -> DriverFailed:
    words = ", ".join(sorted(missing)[:3])
    return DriverFailed(f"proxy: its network has no address {words} here yet", details={"step": "proxy"})


async def _answers(socket_: Path) -> bool:
    """Whether the worker on these files is there; not if an agent ended between writing them and the reload."""
    try:
        await ask(socket_, "show info")
    except DriverFailed:
        return False
    return True


def _find_places(proxy: Proxy) -> tuple[int, int]:
    """Raises OSError."""
    return Path(proxy.namespace).stat().st_ino, (NAMESPACES / proxy.router).stat().st_ino


def _write(folder: Path, rendered: Rendered, places: tuple[int, int]) -> None:
    """The configuration last: what it names is there."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / CHROOT).mkdir(mode=0o755, exist_ok=True)
    for name, text in (*rendered.files.items(), ("shape", rendered.shape), ("places", json.dumps(places))):
        _replace(folder / name, text)
    _replace(folder / CONFIG, rendered.config)


def _replace(path: Path, text: str) -> None:
    try:
        if path.read_text() == text:
            return
    except OSError:
        pass
    write_durably(path, text.encode())


def _drop_others(folder: Path, rendered: Rendered) -> None:
    kept = {*rendered.files, name_socket(rendered.shape), TIMES}
    for path in folder.iterdir():
        if path.suffix in (".pem", ".map", ".sock") and path.name not in kept:
            path.unlink()


def _read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _restore(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        if (folder / name).read_bytes() != data:
            write_durably(folder / name, data)


def _read_shape(folder: Path) -> str:
    try:
        return (folder / "shape").read_text()
    except OSError:
        return ""


def _read_places(folder: Path) -> tuple[int, int] | None:
    try:
        first, second = json.loads((folder / "places").read_text())
    except (OSError, ValueError):
        return None
    return int(first), int(second)


async def _read_counts(socket_: Path) -> Counts:
    rows = read_statistics(await ask(socket_, "show stat -1 4 -1"))
    found: Counts = {}
    for row in rows:
        answers = {one: int(row.get(f"hrsp_{one}") or 0) for one in _CLASSES}
        answers[NO_ANSWER] = int(row.get("econ") or 0) + int(row.get("eresp") or 0)
        found[row["pxname"], row["svname"]] = {one: number for one, number in answers.items() if number}
    return found


def _add(one: Counts, other: Counts) -> Counts:
    return {
        key: {name: one.get(key, {}).get(name, 0) + other.get(key, {}).get(name, 0) for name in (*_CLASSES, NO_ANSWER)}
        for key in one.keys() | other.keys()
    }


def _join(service: str, address: str, parts: list[tuple[dict[str, int], float | None]]) -> EndpointCount:
    names = {name for answers, _ in parts for name in answers}
    answers = {name: sum(each.get(name, 0) for each, _ in parts) for name in sorted(names)}
    seconds = [one for _, one in parts if one is not None]
    return EndpointCount(service, address, answers, sum(seconds) / len(seconds) if seconds else None)


def _keep_counts(folder: Path, counts: Counts) -> None:
    _replace(folder / COUNTED, json.dumps([[*key, one] for key, one in sorted(counts.items())]))


def _recall_counts(folder: Path) -> Counts:
    try:
        return {(backend, server): one for backend, server, one in json.loads((folder / COUNTED).read_text())}
    except (OSError, ValueError):
        return {}
