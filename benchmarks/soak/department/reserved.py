"""The reservations that a department's people make, and the workloads in their slots."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.soak.department.lease import WITHIN, Lease
from weft.objects.errors import Forbidden, InUse, NotFound

if TYPE_CHECKING:
    from benchmarks.soak.department.leases import Book

MEMORY_BYTES, GRACE_SECONDS = 96 << 20, 2.0
OVER = ("Done", "Rejected")


class Reserved:
    """One reservation, as it was acknowledged."""

    def __init__(self, project: str, name: str) -> None:
        self.project, self.name, self.deleted = project, name, False

    def __str__(self) -> str:
        return f"reservation/{self.name} of {self.project}"


class Reservations:
    def __init__(self, book: Book) -> None:
        self._book = book
        self.made: list[Reserved] = []

    def plan(self, draw: random.Random) -> Callable[[], str]:
        """A reservation, and at once workloads that use it; not always do all of them fit into it."""
        book, project, count = self._book, draw.choice(list(self._book.clients)), draw.choice((1, 2))
        cores, ahead, duration = draw.choice((2.0, 3.0)), draw.uniform(*book.ahead), draw.uniform(10.0, 30.0)
        name, at_once = book.name("class"), draw.random() < 0.25
        users = [(book.name("user"), draw.choice((1.0, cores))) for _ in range(draw.choice((1, 2, 3)))]

        def reserve() -> str:
            spec: dict[str, Any] = {"cpu": cores, "memory": MEMORY_BYTES, "count": count, "grace": GRACE_SECONDS}
            start = None if at_once else round(time.time() + ahead, 3)
            spec |= {"duration": round(duration, 1), "start": start}
            try:
                manifest = {"kind": "reservation", "name": name, "project": project, "spec": spec}
                book.clients[project].create(manifest)
            except Forbidden as problem:
                if problem.token != "quotaExceeded":
                    raise
                return book.note("reserve, quotaExceeded")
            self.made.append(Reserved(project, name))
            for user, cpu in users:
                made = Lease(project, "container", user, {"mode": WITHIN, "start": start})
                made.reservation = name
                within = {**book.plain(cpu), "reservation": name}
                if told := book.create(made, within, ""):
                    return book.note(f"reserve, workload{told}")
            return book.note("reserve")

        return reserve

    def find_lost(self, objects: Mapping[tuple[str, str], Any]) -> str:
        for one in self.made:
            obj = objects.get(("reservation", one.name))
            if (obj is None) != one.deleted:
                return f"{one} {'is lost' if obj is None else 'should be gone'}"
            if obj is not None and obj["status"].get("state", "Requested") == "Requested":
                return f"{one} is neither accepted nor refused"
        return ""

    def clear(self, objects: Mapping[tuple[str, str], Any], *, all_of_them: bool = False) -> None:
        """Delete those that are over, once nothing names them any more; their workloads are deleted as they end."""
        self.made = [one for one in self.made if not one.deleted or ("reservation", one.name) in objects]
        for one in self.made:
            obj = objects.get(("reservation", one.name))
            if one.deleted or obj is None or not (all_of_them or obj["status"].get("state") in OVER):
                continue
            for lease in self._book.leases:
                if lease.reservation == one.name and not lease.deleted:
                    self._book.delete(lease)
            try:
                self._book.clients[one.project].delete("reservation", one.name, project=one.project)
                one.deleted = True
                self._book.note("delete reservation")
            except InUse:
                continue  # a workload of it is on its way out
            except NotFound:
                one.deleted = True
                self._book.problems.append(f"{one} was lost: it is deleted, and wasn't there")
