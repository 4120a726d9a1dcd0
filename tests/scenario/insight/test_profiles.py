"""Profiles of workloads and nodes, from a history in memory, in virtual time: with kills in the middle, a history that is off, away
or of an object that had the name before, and clocks that go back."""

from __future__ import annotations

import asyncio
import itertools
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.scenario.controllers_lab import Lab

from weft.contracts.history import Floats, Labels, Span
from weft.contracts.store import Delete
from weft.controllers.profile.controller import Profiles
from weft.controllers.profile.series import write_query
from weft.insight.profile.analysis import analyse
from weft.kinds.profile import ProfileStatus
from weft.launch.insight.worker import InsightWorker
from weft.objects.envelope import Envelope, decode_part
from weft.objects.errors import Unavailable
from weft.telemetry.metrics.database import make_off
from weft.telemetry.metrics.history import SampleHistory
from weft.telemetry.metrics.sample import Sample

STEP = 300.0
_SELECTED = re.compile(r"(__name__|project|kind|name)=~?'([^']*)'")


class ListHistory:
    """What a database answers to weft's own queries, from samples in a list."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.away = False
        self.asked = 0

    def add(self, name: str, values: Sequence[float], last: float, kind: str = "vm", metric: str = "cpu_cores") -> None:
        """A value every five minutes, the newest at ``last``."""
        labels = (("project", "default"), ("kind", kind), ("name", name))
        metric = f"weft_{'function' if kind == 'function' else 'guest'}_{metric}"
        begin = last // STEP * STEP - (len(values) - 1) * STEP
        self.samples += [
            Sample(metric, labels, int((begin + at * STEP) * 1000), value) for at, value in enumerate(values)
        ]

    async def read(self, query: str, span: Span) -> Mapping[Labels, Floats]:
        self.asked += 1
        if self.away:
            raise Unavailable("the database for metrics can't be reached")
        wanted = dict(_SELECTED.findall(query))
        metric_names = wanted.pop("__name__")
        metrics = {one.name for one in self.samples if re.fullmatch(metric_names, one.name)}
        found = [(await SampleHistory(self.samples).read(metric, span)).items() for metric in metrics]
        return {
            labels: row
            for labels, row in itertools.chain(*found)
            if all(re.fullmatch(value, labels.get(name)) for name, value in wanted.items())
        }


class Here:
    """The arithmetic in this process; one that hangs never ends."""

    def __init__(self) -> None:
        self.hangs = False
        self.asked = 0

    async def analyse(self, batch: bytes) -> bytes:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        return analyse(batch)

    async def rest(self) -> None:
        pass


class KilledOnce(InsightWorker):
    """The process of its own, killed with its first batch in its hands."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs = False
        self.asked = 0

    async def analyse(self, batch: bytes) -> bytes:
        self.asked += 1
        process = await self._find()
        if self.asked == 1:
            process.send_signal(signal.SIGSTOP)  # so that it can't have answered
            asyncio.get_running_loop().call_later(0.05, process.kill)
        return await super().analyse(batch)


class ProfilesLab:
    """A fabric whose controllers are started after its objects are old enough for profiles."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.history = lab, ListHistory()
        self.analyst: Here | KilledOnce = Here()
        self.past: ListHistory | Unavailable = self.history

    async def age(self, seconds: float) -> None:
        """Time passes while nobody decides: whoever is at it is killed."""
        await self.lab.kill_controllers()
        self.lab.clock.advance(seconds)
        for node in self.lab.nodes.values():
            await node.heartbeat()

    def start(self) -> None:
        self.lab.start_controllers(more=[lambda lease: Profiles(lease, self.past, self.analyst)])

    async def profile(self, name: str, kind: str = "workloadprofile") -> Envelope | None:
        found = [one for one in await self.lab.every(kind) if one.name == name]
        return found[0] if found else None

    async def status(self, name: str, kind: str = "workloadprofile") -> ProfileStatus | None:
        found = await self.profile(name, kind)
        return decode_part(found.status, ProfileStatus) if found is not None else None

    async def until_looked(self, name: str, after: float = 0.0, kind: str = "workloadprofile") -> ProfileStatus:
        async def looked() -> bool:
            status = await self.status(name, kind)
            return status is not None and status.looked_at > after

        await self.lab.until(looked, 40)
        status = await self.status(name, kind)
        assert status is not None
        return status


def work(samples: int, every: int = 36) -> list[float]:
    """Cores of what works a quarter of every three hours, with a little noise."""
    noise = np.random.default_rng(4).random(samples) * 0.02
    return [float(0.1 + 0.6 * (at % every < every / 4) + noise[at]) for at in range(samples)]


async def test_profiles_come_are_kept_through_kills_and_go_with_what_they_are_of(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        made = ProfilesLab(lab)
        await lab.add_node("n1")
        vm = await lab.put_vm("web", cpu=1.0)
        await lab.until_phase("web", "Running")
        values = work(400)
        made.history.add("web", values, lab.clock.now() + 120_000)
        await made.age(120_000)
        made.analyst.hangs = True
        made.start()

        async def hangs() -> bool:
            return made.analyst.asked > 0

        await lab.until(hangs)
        await made.age(10)  # killed in the middle of a look: nothing is half-done
        assert not await lab.every("workloadprofile") and not await lab.every("nodeprofile")
        made.analyst.hangs = False
        made.start()
        first = await made.until_looked("vm.web")
        assert [one.type for one in first.patterns] == ["every 3 h"] and set(first.prediction) == {"5m", "1h"}
        assert first.missing == {"prediction.24h": "less than two days of history"}
        assert (first.resource, first.unit, first.full) == ("cpu", "cores", 1.0)
        assert first.patterns[0].peaks[0].at >= first.looked_at
        of_node = await made.until_looked("n1", kind="nodeprofile")
        assert of_node.history_seconds == first.history_seconds and of_node.full == 8.0

        await made.age(3600)
        made.history.add("web", [*work(408)[400:404], 3.0, 3.0, 3.0, 3.0], lab.clock.now())
        made.start()
        second = await made.until_looked("vm.web", first.looked_at)
        (one,) = second.anomalies
        assert one.channel == "jump" and one.value == 3.0 and one.high < 0.8
        assert lab.journal.reasons("web").count("UnusualUse") == 1 == lab.journal.reasons("n1").count("UnusualUse")
        assert second.patterns[0].cycle_seconds == first.patterns[0].cycle_seconds
        assert second.patterns[0].peaks[0].at >= second.looked_at

        await lab.delete(vm.key)
        await lab.until_gone(vm.key)

        async def gone() -> bool:
            return not await lab.every("workloadprofile") and not await lab.every("nodeprofile")

        await lab.store.commit([Delete("/node/-/n1")])
        await lab.until(gone)


async def test_a_young_guest_and_one_that_has_the_name_of_another_are_told_apart(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        made = ProfilesLab(lab)
        await made.age(50_000)
        made.history.add("web", work(300), lab.clock.now())  # of a VM that is gone
        await lab.put_vm("web", hold=True)
        await lab.put("container", "task", {"image": "x", "once": True})
        await made.age(400)
        made.history.add("web", [0.5], lab.clock.now())
        made.start()
        status = await made.until_looked("vm.web")
        assert status.history_seconds == 0 and not status.patterns and not status.prediction
        assert status.missing["prediction.5m"] == "less than an hour of history"
        assert status.missing["signature"] == "less than a day of history"
        assert [one.name for one in await lab.every("workloadprofile")] == ["vm.web"]  # no task's


async def test_a_database_that_goes_leaves_what_was_known_and_none_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Lab(tmp_path) as lab:
        made = ProfilesLab(lab)
        await made.age(10)
        await lab.put_vm("web", hold=True)
        await made.age(30_000)
        made.history.add("web", work(90), lab.clock.now())
        made.start()
        first = await made.until_looked("vm.web")
        await made.age(4000)
        made.history.away, before = True, made.history.asked
        made.start()

        async def asked_again() -> bool:
            return made.history.asked > before + 1

        await lab.until(asked_again, 90)
        assert await made.status("vm.web") == first
        assert caplog.text.count("profiles are not kept up to date: the database for metrics can't be reached") == 1
        made.history.away = False
        await made.until_looked("vm.web", first.looked_at)
        await made.age(-8000)  # the clock is set back: it is looked at again at its own time
        made.start()
        last = lab.clock.now()

        async def looked_now() -> bool:
            status = await made.status("vm.web")
            return status is not None and abs(status.looked_at - last) < 60 and not status.anomalies

        await lab.until(looked_now)
        made.past = make_off()
        await made.age(4000)
        made.start()

        async def is_off() -> bool:
            status = await made.status("vm.web")
            return status is not None and status.missing.get("prediction") == "this server keeps no history of metrics"

        await lab.until(is_off)
        written = await made.profile("vm.web")
        await lab.pass_time(45)
        again = await made.profile("vm.web")
        assert written is not None and again is not None and again.revision == written.revision


async def test_a_process_that_is_killed_in_the_middle_costs_one_look_and_functions_have_profiles(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Lab(tmp_path) as lab:
        lab.has_threads = True  # the process needs real time
        made = ProfilesLab(lab)
        made.analyst = killed = KilledOnce()
        await lab.put("function", "orders", {"code": "c0" * 32, "code_size": 1, "handler": "app.handler"})
        await made.age(40_000)
        made.history.add("orders", work(130), lab.clock.now(), kind="function", metric="invocations_total")
        made.start()
        status = await made.until_looked("function.orders")
        assert killed.asked == 2 and caplog.text.count("the process that computes profiles ended early") == 1
        assert (status.resource, status.unit, [one.type for one in status.patterns]) == (
            "invocations",
            "1/s",
            ["every 3 h"],
        )
        assert set(status.prediction) == {"5m", "1h"} and not status.correlations


def test_a_query_is_of_one_project_and_resets_of_counters_are_no_traffic() -> None:
    query = write_query("network", "default", 300, "vm", ["a", "b"])
    assert "project='default',kind='vm',name=~'a|b'" in query and "rate(" in query and "[300s]" in query
