"""People: each has one VM, perhaps with a volume, and many wishes about it; asks until there is an answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from tests.simulation.connections import Line, Unsent
from weft.objects.errors import Unavailable
from weft.objects.identity import new_uid

if TYPE_CHECKING:
    from tests.simulation.fabric import Fabric

MIB = 1024**2
TOKEN_SECRET = "ab" * 32
TOKEN = f"weft_sim_{TOKEN_SECRET}"
VMS = "/v1/projects/default/vms"
VOLUMES = "/v1/projects/default/volumes"
MIGRATIONS = "/v1/projects/default/migrations"
REPORTS, PLANS = "/v1/reports", "/v1/rebalanceplans"
VERBS = ("stop", "start", "suspend", "resume", "restart", "hold", "release")
LONGEST_UNDER_WAY_SECONDS = 60.0  # of a request to a server that hung
NETWORKS: tuple[list[str], ...] = (["default"], ["default", "back"], ["back"], [])


class Person:
    """``wanted`` is the VM as it was last asked for, None: absent; ``has_volume`` whether the volume should be there."""

    def __init__(self, fabric: Fabric, name: str, seed: int) -> None:
        self.name, self.volume = name, f"{name}-data"
        self.wanted: dict[str, Any] | None = None
        self.has_volume = False
        self._fabric = fabric
        self._draw = random.Random(f"wishes {seed} {name}")
        self._line = Line(fabric.doorways, fabric.fate, f"person of {name}", token=TOKEN)

    async def live(self) -> None:
        fabric, draw = self._fabric, self._draw
        while not fabric.fate.spent:
            await asyncio.sleep(draw.random() * 8.0)
            if fabric.migrations and self.wanted is not None and draw.random() < 0.4:
                await (self._rebalance() if draw.random() < 0.2 else self._move())
            elif self.wanted is None:
                await self._change_volume()
                await self._create()
            elif draw.random() < (0.06 if fabric.migrations else 0.15):
                await self._delete()
            elif draw.random() < 0.15:
                await self._resize()
            else:
                await self._ask(draw.choice(VERBS))

    async def _change_volume(self) -> None:
        """Between two VMs: make the volume, or be rid of it."""
        had, draw = self.has_volume, self._draw.random()
        if not had and draw < 0.5:
            body = {"kind": "volume", "name": self.volume, "spec": {"size": 64 * MIB}}
            answer = await self._insist("POST", VOLUMES, body)
            if answer.status < 300:  # one that is on its way out still has the name
                self.has_volume = True
                self._fabric.wishes["create volume"] += 1
        elif had and draw < 0.3:
            answer = await self._insist("DELETE", f"{VOLUMES}/{self.volume}", None)
            if answer.status < 300 or answer.status == 404:
                self.has_volume = False
                self._fabric.wishes["delete volume"] += 1

    async def _create(self) -> None:
        draw = self._draw
        spec = {
            "image": "tiny", "cpu": draw.choice((0.5, 1, 2)), "memory": draw.choice((256, 512, 768)) * MIB,
            "hold": draw.random() < 0.2, "grace": 1.0, "restart": "always", "networks": draw.choice(NETWORKS),
            "volumes": [self.volume] if self.has_volume else [], **draw.choice(({}, {"gpu_share": 0.5})),
        }  # fmt: skip
        if self._fabric.migrations and draw.random() < 0.7:
            spec.pop("gpu_share", None)  # it would keep the VM from moving live
        answer = await self._insist("POST", VMS, {"kind": "vm", "name": self.name, "spec": spec})
        if answer.status < 300:
            self._fabric.wishes["create"] += 1
            self.wanted = answer.json()

    async def _delete(self) -> None:
        answer = await self._insist("DELETE", f"{VMS}/{self.name}", None)
        if answer.status < 300 or answer.status == 404:
            self._fabric.wishes["delete"] += 1
            self.wanted = None

    async def _resize(self) -> None:
        """Another size or other networks, live if that can be; sometimes more than there is room for."""
        draw = self._draw
        change = draw.choice(
            (
                {"cpu": draw.choice((0.5, 1, 2, 4))},
                {"memory": draw.choice((256, 512, 1024, 2048)) * MIB},
                {"networks": draw.choice(NETWORKS)},
            )
        )
        answer = await self._insist("PATCH", f"{VMS}/{self.name}", {"spec": change})
        if answer.status < 300:
            self._fabric.wishes["resize"] += 1
            self.wanted = answer.json()

    async def _ask(self, verb: str) -> None:
        answer = await self._insist("POST", f"{VMS}/{self.name}:{verb}", {})
        if answer.status == 404 and self.wanted is not None:
            self._fabric.witness.note(f"vm {self.name} was lost: {verb} finds it no more")
        elif answer.status < 300:
            self._fabric.wishes[verb] += 1
            self.wanted = answer.json()

    async def _move(self) -> None:
        """To another node; a while later, perhaps, rather not."""
        draw = self._draw
        wish = {
            "mode": draw.choice(("live", "live", "cold")), "timeout_seconds": draw.choice((20.0, 90.0)),
            "bytes_per_second": draw.choice((0, 64, 256)) * MIB,
            **draw.choice(({}, {"to": draw.choice(("n1", "n2", "n3"))})),
        }  # fmt: skip
        answer = await self._insist("POST", f"{VMS}/{self.name}:migrate", wish)
        if answer.status >= 300:
            return
        self._fabric.wishes["migrate"] += 1
        await asyncio.sleep(draw.choice((0.0, 0.0, 5.0, 15.0)))
        if draw.random() < 0.2:
            answer = await self._insist("POST", f"{MIGRATIONS}/{answer.json()['name']}:cancel", {})
            self._fabric.wishes["cancel"] += answer.status < 300

    async def _rebalance(self) -> None:
        """Ask what would even out load, and have it done; a while later, perhaps, rather not."""
        draw = self._draw
        name = f"{self.name}-{new_uid()[:8]}"
        asked = await self._insist("POST", REPORTS, {"kind": "report", "name": name, "spec": {"subject": "rebalance"}})
        status: dict[str, Any] = {}
        while asked.status < 300 and status.get("phase", "Pending") == "Pending" and not self._fabric.fate.spent:
            await asyncio.sleep(0.5)
            answer = await self._insist("GET", f"{REPORTS}/{name}", None)
            if answer.status >= 300:
                return  # the store went back in time
            status = answer.json().get("status") or {}
        if not status.get("steps"):
            return
        spec = {"steps": status["steps"], "concurrent": draw.choice((1, 2, 4))}
        answer = await self._insist("POST", PLANS, {"kind": "rebalanceplan", "name": name, "spec": spec})
        if answer.status >= 300 or (await self._insist("POST", f"{PLANS}/{name}:start", {})).status >= 300:
            return
        self._fabric.wishes["rebalance"] += 1
        await asyncio.sleep(draw.choice((0.0, 5.0, 15.0)))
        if draw.random() < 0.4:
            answer = await self._insist("POST", f"{PLANS}/{name}:undo", {})
            self._fabric.wishes["undo"] += answer.status < 300

    async def _insist(self, method: str, path: str, body: Any) -> Any:
        return await insist(self._line, method, path, body, lambda: self._fabric.restores)


async def insist(
    line: Line, method: str, path: str, body: Any, era: Callable[[], int] = int, given: dict[str, str] | None = None
) -> Any:
    """Ask until there is an answer that is one; what was answered before the store went back in time is none.

    Of several servers one that hung may do later what another one has done or refused by then: so each change has a key, and a
    refusal after a request without an answer counts once nothing is under way any more."""
    keyed = method == "POST" or (line.roams and method != "GET")
    headers = {**(given or {}), **({"idempotency-key": new_uid()} if keyed else {})}
    unanswered = False
    while True:
        asked_in = era()
        try:
            answer = await line.exchange(method, path, b"" if body is None else msgspec.json.encode(body), headers)
            if answer.status >= 500:
                unanswered = True
            elif era() == asked_in:
                if answer.status < 300 or not (unanswered and line.roams and keyed):
                    return answer
                unanswered = False
                await asyncio.sleep(LONGEST_UNDER_WAY_SECONDS)
        except Unavailable as problem:
            unanswered |= not isinstance(problem, Unsent)
        await asyncio.sleep(0.5)
