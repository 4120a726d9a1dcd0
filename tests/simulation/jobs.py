"""Jobs: people who run them, the containers that are their tasks on each machine, and what is true of them in the end.

No try runs twice, none is made after one that did its work, and what a job says of its tasks is what happened.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from typing import TYPE_CHECKING, Any

import msgspec

from tests.scenario.container_agent_lab import Containers, World
from tests.simulation.connections import Line
from tests.simulation.people import MIB, TOKEN, insist
from weft.contracts.driver.container import ContainerPlan
from weft.contracts.driver.runtime import GuestFacts
from weft.kinds.job import ENDED, JobStatus
from weft.objects.envelope import Envelope, decode_part
from weft.objects.index_ranges import read_indexes

if TYPE_CHECKING:
    from tests.simulation.fabric import Fabric

JOBS = "/v1/projects/default/jobs"
Task = tuple[str, int]  # name of the job, index


class TaskBook:
    """Every try that began, wherever: by its task, its number → how it ended; None while it runs, "lost" with its machine."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.tries: dict[Task, dict[int, int | str | None]] = {}

    def begin(self, plan: ContainerPlan) -> tuple[Task, int]:
        env = dict(word.split("=", 1) for word in plan.process.env)
        task, attempt = (env["WEFT_JOB"], int(env["WEFT_TASK_INDEX"])), int(env["WEFT_TRY"])
        tries = self.tries.setdefault(task, {})
        if attempt in tries:
            self._fabric.witness.fail(f"try {attempt} of {task} ran twice")
        if None in tries.values():
            self._fabric.witness.fail(f"try {attempt} of {task} was begun beside another one")
        if 0 in tries.values():
            self._fabric.witness.fail(f"try {attempt} of {task} was begun after one that did its work")
        tries[attempt] = None
        return task, attempt


class Tasks(Containers):
    """The containers of one machine: each runs for a while and ends with the code that is its own."""

    name = "fake-tasks"

    def __init__(self, world: World, fabric: Fabric) -> None:
        super().__init__(world)
        self._fabric = fabric

    async def _meet(self, verb: str, *more: str) -> None: ...

    async def start(self, plan: ContainerPlan) -> GuestFacts:
        await self._meet("start")
        fresh = plan.id not in self.world.facts or self.world.facts[plan.id].state != "running"
        facts = await super().start(plan)
        if fresh:
            task, attempt = self._fabric.book.begin(plan)
            draw = random.Random(f"{self._fabric.fate.seed} {task} {attempt}")
            code, seconds = draw.choice((0, 0, 1)), draw.choice((0.0, 1.0, 8.0))
            # The machine's doing, not the agent's: it goes on when that is killed.
            self._fabric.loop.call_later(seconds, self._come_to_its_end, plan, code, context=contextvars.Context())
        return facts

    def _come_to_its_end(self, plan: ContainerPlan, code: int) -> None:
        if self.world.facts.get(plan.id, GuestFacts("", "", "", 0, "absent")).state == "running":
            state, reason = ("stopped", "completed") if code == 0 else ("failed", "exited")
            self._end(plan.id, state, reason, code, code)

    def _end(self, id_: str, state: str, reason: str, code: Any, end: int | str) -> None:
        env = dict(word.split("=", 1) for word in self.world.plans[id_].process.env)
        self._fabric.book.tries[env["WEFT_JOB"], int(env["WEFT_TASK_INDEX"])][int(env["WEFT_TRY"])] = end
        self.world.end(id_, state, reason, code)

    def lose_power(self) -> None:
        """Nobody has seen how those ended that ran."""
        for id_, facts in list(self.world.facts.items()):
            if facts.state == "running":
                self._end(id_, "failed", "nodeRestarted", None, "lost")

    async def stop(self, guest_id: str, *, grace_seconds: float) -> None:
        await self._meet("stop")
        if guest_id in self.world.facts and self.world.facts[guest_id].state == "running":
            self._end(guest_id, "stopped", "stopRequested", 143, 143)

    async def remove(self, guest_id: str) -> None:
        await self._meet("remove")
        await super().remove(guest_id)


class Runner:
    """Someone who runs one job after the other, and looks at what it says when it has ended."""

    def __init__(self, fabric: Fabric, name: str, seed: int) -> None:
        self.name = name
        self._fabric = fabric
        self._draw = random.Random(f"jobs {seed} {name}")
        self._line = Line(fabric.doorways, fabric.fate, f"runner of {name}", token=TOKEN)

    async def live(self) -> None:
        number = 0
        while not self._fabric.fate.spent:
            number += 1
            await asyncio.sleep(self._draw.random() * 8.0)
            await self._run(f"{self.name}-{number}")

    async def _run(self, name: str) -> None:
        draw = self._draw
        task = {"image": "registry.example.org/web:1", "cpu": 0.1, "memory": 16 * MIB, "grace": 1.0}
        spec = {
            "task": task,
            "array": draw.choice(("0", "0-4", "0-9")),
            "parallelism": draw.choice((1, 3, 10)),
            "retries": draw.choice((0, 1, 3)),
            "backoff": 1.0,
        }
        answer = await self._ask("POST", JOBS, {"kind": "job", "name": name, "spec": spec})
        if answer.status >= 300:
            return
        self._fabric.wishes["run job"] += 1
        while True:
            await asyncio.sleep(3.0)
            job = next((j for j in self._fabric.ledger.notes.objects("job") if j.name == name), None)
            if job is None:
                return self._fabric.witness.note(f"job {name} was lost")
            if decode_part(job.status, JobStatus).phase in ENDED:
                break
        for wrong in check_job(self._fabric, job, spec["array"], spec["retries"]):
            self._fabric.witness.note(wrong)
        await self._ask("DELETE", f"{JOBS}/{name}", None)

    async def _ask(self, method: str, path: str, body: Any) -> Any:
        return await insist(self._line, method, path, body, lambda: self._fabric.restores)


def check_job(fabric: Fabric, job: Envelope, array: str, retries: int) -> list[str]:
    """What a job that has ended says otherwise than it was."""
    status, found = decode_part(job.status, JobStatus), []
    indexes = read_indexes(array)
    tries = {index: fabric.book.tries.get((job.name, index), {}) for index in indexes}
    good = {index for index, of in tries.items() if 0 in of.values()}
    if (status.tasks, status.succeeded, status.failed) != (len(indexes), len(good), len(indexes) - len(good)):
        found.append(f"job {job.name} counts {msgspec.to_builtins(status)}, and there was {tries}")
    if status.phase != ("Succeeded" if len(good) == len(indexes) else "Failed"):
        found.append(f"job {job.name} is {status.phase}, and there was {tries}")
    for index in set(indexes) - good:
        failed = sum(end == 1 for end in tries[index].values())
        if failed != retries + 1:
            told = f"after {failed} failures, of {retries + 1}: {tries[index]}, {status.message}"
            found.append(f"task {index} of job {job.name} was given up {told}")
    return found
