"""An agent's collector over the consoles in a folder: ``once``, until all is read, or for ``ever``, until it is killed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from weft.agent.logs.collector import LogCollector
from weft.contracts.clock import SystemClock
from weft.telemetry.logs.store import LogStore

MOST_BYTES = 1 << 30


class Consoles:
    """A driver with a console's log for each guest, the allocations of these, and the runtimes of a node."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guests = sorted(path.stem for path in folder.glob("*.log"))

    def console_log(self, guest_id: str) -> str:
        return str(self._folder / f"{guest_id}.log")

    def console_socket(self, guest_id: str) -> str:
        return ""

    def find(self, local: object) -> Consoles:
        return self

    def __iter__(self) -> Iterator[Any]:
        for id_ in self._guests:
            spec = SimpleNamespace(workload=SimpleNamespace(uid=str(int(id_))), role="active")
            yield SimpleNamespace(local=SimpleNamespace(spec=spec, what=id_, id=id_), guest=True)


def main(folder: Path, *, once: bool) -> None:
    consoles: Any = Consoles(folder)
    store = LogStore(folder / "logs", SystemClock(), MOST_BYTES)
    logs = LogCollector(store, consoles, consoles, "n1", "node", SystemClock())
    workloads = logs._find_workloads()
    logs._gather([], None, keeps=False)  # opens the store
    if not once:
        print("begun", flush=True)
        while True:
            logs._gather(workloads, None, keeps=False)
    began, read = time.perf_counter(), {one.uid: store.next_number(one.uid) for one in workloads}
    first = {one.uid: 0 for one in workloads}
    while True:
        before = {one.uid: store.next_number(one.uid) for one in workloads}
        logs._gather(workloads, None, keeps=True)
        for uid, known in first.items():
            if not known and not read[uid] and (segments := store.find(uid)):
                found = [part.first for one in segments[1] for part in one.head.parts if part.uid == uid]
                first[uid] = min([*found, *(lines.first for lines in segments[2])], default=0)
        if before == {one.uid: store.next_number(one.uid) for one in workloads}:
            break
    seconds = time.perf_counter() - began
    lines = sum(store.next_number(one.uid) - (read[one.uid] or first[one.uid]) for one in workloads)
    print(json.dumps({"lines": lines, "seconds": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), once=sys.argv[2] == "once")
