"""Clerks: people who change the same few objects, each request at another server. They count up a tally by ``If-Match``, make
objects of the same names, and fill a project to its quota, which they change.

``Register`` looks at each commit and each answer: a read shows what was acknowledged before it began, a change that was
acknowledged was made once and one that was refused was not, a name was given to one of those who asked for it, and no quota was
passed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.simulation.connections import Line
from tests.simulation.people import TOKEN, insist
from weft.kinds.quota import QuotaSpec
from weft.objects.envelope import Envelope, decode_part
from weft.objects.identity import new_uid

if TYPE_CHECKING:
    from tests.simulation.fabric import Fabric

PROJECT = "shop"
TALLIES, NAMES = ("tally0", "tally1"), ("n0", "n1", "n2", "n3", "n4")
GIB = 1024**3
BUDGETS, VOLUMES = f"/v1/projects/{PROJECT}/disruptionbudgets", f"/v1/projects/{PROJECT}/volumes"
QUOTA = f"/v1/projects/{PROJECT}/quotas/project"
LIMITS = (2, 3, 4)


class Register:
    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.made: Counter[str] = Counter()  # how often each change was committed, by its mark
        self.counted: Counter[str] = Counter()  # acknowledged counts, by tally
        self._known: dict[str, int] = {}  # the newest revision of each tally that was acknowledged or read
        self._givers: dict[str, str] = {}  # uid → mark of who was told to have made it

    def see_commit(self, was: Envelope | None, now: Envelope | None) -> None:
        if now is None or now.project != PROJECT or now.kind not in ("disruptionbudget", "volume"):
            return
        mark = now.labels.get("by", "")
        if was is not None and (now.deleting_since is not None or mark == was.labels.get("by", "")):
            return  # of a controller, or the deletion of one that has finalizers
        self.made[mark] += 1
        witness = self._fabric.witness
        if self.made[mark] > 1:
            witness.fail(f"{now.kind} {now.name}: the change {mark} was made twice")
        if now.kind == "disruptionbudget" and was is not None:
            if int(now.labels["n"]) != int(was.labels["n"]) + 1:
                witness.fail(f"{now.name} was counted from {was.labels['n']} to {now.labels['n']}")
        elif now.kind == "volume":
            self._check_quota()

    def _check_quota(self) -> None:
        notes = self._fabric.ledger.notes
        used = sum(1 for one in notes.objects("volume") if one.project == PROJECT)
        [quota] = [one for one in notes.objects("quota") if one.project == PROJECT]
        most = (decode_part(quota.spec, QuotaSpec).disk or 0) // GIB
        if used > most:
            self._fabric.witness.fail(f"project {PROJECT} has {used} volumes, and its quota is {most}")

    def read(self, name: str, floor: int, revision: int) -> None:
        """A tally was read that had reached ``floor`` before."""
        if revision < floor:
            self._fabric.witness.note(f"{name} was read at revision {revision}, after {floor} was known")
        self._known[name] = max(revision, self._known.get(name, 0))

    def find_floor(self, name: str) -> int:
        return self._known.get(name, 0)

    def acknowledge(self, mark: str, uid: str, *, creates: bool) -> None:
        """The change with this mark was said to be made, of the object with this uid."""
        if self.made[mark] != 1:
            self._fabric.witness.note(f"the change {mark} was acknowledged, and made {self.made[mark]} times")
        if creates and self._givers.setdefault(uid, mark) != mark:
            self._fabric.witness.note(f"{uid} was given to {self._givers[uid]}, and to {mark}")

    def refuse(self, mark: str, status: int) -> None:
        """The change with this mark was said not to be made."""
        if self.made[mark]:
            self._fabric.witness.note(f"the change {mark} was refused with {status}, and made")

    def find_unmet(self) -> list[str]:
        return [
            f"{item.name} stands at {item.labels['n']}, {self.counted[item.name]} were acknowledged"
            for item in self._fabric.ledger.notes.objects("disruptionbudget")
            if item.name in TALLIES and int(item.labels["n"]) != self.counted[item.name]
        ]


class Clerk:
    def __init__(self, fabric: Fabric, name: str, seed: int) -> None:
        self.name = name
        self._fabric, self._register = fabric, fabric.register
        self._draw = random.Random(f"clerk {seed} {name}")
        self._line = Line(fabric.doorways, fabric.fate, f"clerk {name}", token=TOKEN)

    async def live(self) -> None:
        draw = self._draw
        while not self._fabric.fate.spent:
            await asyncio.sleep(draw.random() * 2.0)
            act = draw.choices((self._count, self._make, self._delete, self._limit), (6, 4, 2, 1))[0]
            await act()

    async def _count(self) -> None:
        name = self._draw.choice(TALLIES)
        path = f"{BUDGETS}/{name}"
        floor = self._register.find_floor(name)
        found = await self._insist("GET", path)
        tally = found.json()
        self._register.read(name, floor, tally["revision"])
        mark = new_uid()
        change = {"labels": {"n": str(int(tally["labels"]["n"]) + 1), "by": mark}}
        answer = await self._insist("PATCH", path, change, {"if-match": f'"{tally["revision"]}"'})
        if self._close(mark, answer, creates=False):
            self._register.counted[name] += 1
            self._register.read(name, 0, answer.json()["revision"])

    async def _make(self) -> None:
        mark = new_uid()
        body = {"kind": "volume", "name": self._draw.choice(NAMES), "labels": {"by": mark}, "spec": {"size": GIB}}
        self._close(mark, await self._insist("POST", VOLUMES, body), creates=True)

    async def _delete(self) -> None:
        await self._insist("DELETE", f"{VOLUMES}/{self._draw.choice(NAMES)}")

    async def _limit(self) -> None:
        change = {"spec": {"disk": self._draw.choice(LIMITS) * GIB}}
        await self._insist("PATCH", QUOTA, change)

    def _close(self, mark: str, answer: Any, *, creates: bool) -> bool:
        """Note what became of a change; whether it was made."""
        what = "created" if creates else "counted"
        if answer.status == 400 and answer.json().get("field") == "Idempotency-Key":
            self._fabric.wishes[f"{what} and deleted"] += 1
            return False  # it was made, and is gone
        done = bool(answer.status < 300)
        self._fabric.wishes[what if done else f"{what} {answer.status}"] += 1
        if done:
            made = answer.json()
            own = made["labels"].get("by") == mark  # else it is what has the name now, after this one's was deleted
            self._register.acknowledge(mark, made["uid"], creates=creates and own)
        else:
            self._register.refuse(mark, answer.status)
        return done

    async def _insist(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        return await insist(self._line, method, path, body, given=headers)
