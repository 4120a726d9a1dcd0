"""Volumes that are trimmed: a verb asks, the node of the VM that uses the volume does it, and its result is in the status."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.scenario.agent_lab import NODE_UID, make_allocation
from tests.scenario.agent_lab import Lab as AgentLab
from tests.scenario.controllers.test_volume_snapshots import VolumeNode, join, put_volume, volume
from tests.scenario.migration_lab import MovingLab

from weft.cli.command.target import Target
from weft.cli.wait.finish import plan_wait
from weft.cli.wait.watch import judge
from weft.kinds.allocation import AllocatedVolume
from weft.kinds.orders import OrderReports, Orders, find_report
from weft.kinds.parts.snapshot.volume_work import TrimOrder, TrimReport
from weft.kinds.volume import VOLUME, VolumeActions, VolumeTrim
from weft.objects.envelope import Envelope, merge_part
from weft.objects.errors import DriverFailed, IllegalTransition

ORDER = TrimOrder(uid="v1", generation=1, node_uid=NODE_UID, workload="uid-of-web")


async def ask(lab: MovingLab, name: str = "data") -> None:
    """As the verb does."""

    def change(envelope: Envelope) -> None:
        found = msgspec.json.decode(envelope.actions) if envelope.actions else {}
        envelope.actions = merge_part(envelope.actions, VolumeActions(trim=found.get("trim", 0) + 1))

    await lab.change(f"/volume/default/{name}", change)


async def until_ordered(lab: MovingLab) -> TrimOrder:
    async def there() -> bool:
        return (await volume(lab)).trim_order is not None

    await lab.until(there)
    order = (await volume(lab)).trim_order
    assert order is not None
    return order


async def until_ended(lab: MovingLab, generation: int) -> VolumeTrim:
    async def there() -> bool:
        trimmed = (await volume(lab)).trimmed
        return trimmed is not None and trimmed.generation == generation

    await lab.until(there)
    status = await volume(lab)
    assert status.trim_order is None and status.trimmed is not None
    return status.trimmed


async def test_the_node_of_its_vm_trims_it_once_for_each_request_whichever_controllers_die(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node: VolumeNode = await join(lab)
        made = await put_volume(lab, node)
        await lab.put_image("tiny")
        vm = await lab.put_vm("web", volumes=["data"])
        await lab.until_phase("web", "Running")
        await ask(lab)
        order = await until_ordered(lab)
        assert order == TrimOrder(uid=made.uid, generation=1, node_uid=node.uid, workload=vm.uid)
        await lab.kill_controllers()
        done = TrimReport(uid=made.uid, generation=1, phase="done", trimmed=3 << 20, freed=2 << 20)
        await node.write_report(orders=OrderReports(trim=[done]))
        lab.start_controllers()
        ended = await until_ended(lab, 1)
        assert (ended.trimmed, ended.freed, ended.reason) == (3 << 20, 2 << 20, "")
        await ask(lab)  # the report on the first is not the second's
        assert (await until_ordered(lab)).generation == 2
        failed = TrimReport(uid=made.uid, generation=2, phase="failed", reason="notTrimmed", message="it couldn't")
        await node.write_report(orders=OrderReports(trim=[failed]))
        assert (await until_ended(lab, 2)).reason == "notTrimmed"


async def test_a_trim_ends_with_the_vm_that_had_the_volume(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await put_volume(lab, node)
        await ask(lab)
        assert (await until_ended(lab, 1)).reason == "notAttached"


@pytest.mark.parametrize(
    ("of", "said"), [(None, "attached to no VM"), ({"kind": "container", "name": "c"}, "mounted by container/c")]
)
def test_only_a_volume_that_a_vm_has_can_be_trimmed(of: dict[str, str] | None, said: str) -> None:
    verb = VOLUME.verb("trim")
    assert verb is not None and verb.act is not None
    with pytest.raises(IllegalTransition, match=said) as refused:
        verb.act({"name": "data", "spec": {}, "status": {"attached_to": of}}, None)
    assert refused.value.hint


def test_a_command_that_waits_for_a_trim_ends_with_why_it_failed() -> None:
    trimmed = {"generation": 2, "reason": "notRunning", "message": "vm/web doesn't run"}
    obj = {"kind": "volume", "name": "data", "uid": "u", "project": "default", "actions": {"trim": 2}}
    for status, problem in (({"trimmed": {**trimmed, "generation": 1}}, ""), ({"trimmed": trimmed}, "doesn't run")):
        whole = {**obj, "spec": {"size": 1}, "status": {"phase": "Attached", **status}}
        wait = plan_wait(whole, Target(VOLUME, "data"), "trim")
        assert wait is not None
        ended = judge(wait, whole)
        said = str(ended.error) if ended is not None else ""
        assert said == (f"volume/data is not trimmed: vm/web {problem}" if problem else "")


class TrimLab(AgentLab):
    def find(self) -> TrimReport | None:
        report = self.server.node_report
        return find_report(report.orders.trim, ORDER) if report is not None else None

    async def trim(self) -> TrimReport:
        self.server.orders = Orders(trim=[ORDER])
        await self.until(lambda: (found := self.find()) is not None and found.phase != "working", "the trim's end")
        found = self.find()
        assert found is not None
        self.server.orders = Orders()
        await self.until(lambda: self.find() is None, "no report on it")
        return found


async def test_an_agent_has_the_guest_trim_its_disks_and_says_why_it_can_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.agent.agent.HEARTBEAT_SECONDS", 0.1)
    lab = TrimLab(tmp_path)
    async with lab.agent():
        assert (await lab.trim()).reason == "notAttached"
        made = make_allocation(volumes=[AllocatedVolume(name="data", uid="v1", size=1 << 20)])
        lab.server.put(made)
        await lab.until(lambda: (one := lab.server.reports.get(made.name)) is not None and one.state == "running")
        done = await lab.trim()
        assert (done.phase, done.trimmed, done.freed) == ("done", 1 << 20, 0)  # the pool's file is as it was
        lab.orders.failures["trim"] = [DriverFailed("the guest couldn't", reason="notTrimmed")]
        assert ((again := await lab.trim()).phase, again.reason) == ("failed", "notTrimmed")
