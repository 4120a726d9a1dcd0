"""What the controllers make of what gateways report: of devices, of rules, and of settings that go to devices in waves."""

from __future__ import annotations

from pathlib import Path

import msgspec
from tests.scenario.controllers_lab import Lab

from weft.kinds.device import DeviceReport, DeviceSpec, DeviceStatus
from weft.kinds.device_model import DeviceModelSpec
from weft.kinds.device_rollout import DeviceRolloutSpec, DeviceRolloutStatus
from weft.kinds.fields.device.affordance import Property
from weft.kinds.function import FunctionSpec
from weft.kinds.model import ModelReport, ModelSpec, ModelStatus, NodeRuns, Result
from weft.kinds.rule import Act, NodeCount, RuleReport, RuleSpec, RuleStatus
from weft.objects.envelope import Envelope, decode_part

MODEL = DeviceModelSpec(properties={"setpoint": Property(type="number", maximum=10)})


async def report(lab: Lab, key: str, told: msgspec.Struct) -> None:
    def change(envelope: Envelope) -> None:
        envelope.report = msgspec.Raw(msgspec.json.encode(told))

    await lab.change(key, change)


async def test_a_desired_value_drifts_until_its_time_is_over_and_a_rule_that_fired_is_counted(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put("devicemodel", "fridge", MODEL)
        until = lab.clock.now() + 300.0
        fridge = await lab.put("device", "fridge", DeviceSpec(node="n1", model="fridge", desired={"setpoint": 4}))
        await lab.ask("fridge", "device", desired_until={"setpoint": until})
        warm = await lab.put("rule", "warm", RuleSpec(when="setpoint>5", then=[Act(event="too warm")]))
        other = await lab.put("device", "other", DeviceSpec(node="n2", model="fridge"))
        spec_of_model = ModelSpec(file="a" * 64, inputs=["setpoint"], result=Result(event="defrost", threshold=0.5))
        frost = await lab.put("model", "frost", spec_of_model)
        runs = {"n1": NodeRuns(runs=9, late=1, nan=2, p99_ms=2.5), "n2": NodeRuns(runs=1, dead=1, problem="gone")}
        await report(lab, frost.key, ModelReport(nodes=runs))
        await report(lab, fridge.key, DeviceReport(phase="Online", seen_at=lab.clock.now(), reported={"setpoint": 7.0}))
        await report(lab, warm.key, RuleReport(nodes={"n1": NodeCount(fired=3, last_fired=lab.clock.now())}))

        async def status() -> DeviceStatus:
            envelope = await lab.get(fridge.key)
            assert envelope is not None
            return decode_part(envelope.status, DeviceStatus)

        async def drifts() -> bool:
            found = await status()
            return found.phase == "Online" and found.drift == ["setpoint"]

        async def is_counted() -> bool:
            envelope = await lab.get(warm.key)
            return envelope is not None and decode_part(envelope.status, RuleStatus).fired == 3

        async def is_summed_up() -> bool:
            envelope = await lab.get(frost.key)
            assert envelope is not None
            found = decode_part(envelope.status, ModelStatus)
            return (found.runs, found.misses, found.p99_ms, found.problem) == (10, 4, 2.5, "n2: gone")

        async def is_without_the_node_that_it_left() -> bool:
            envelope = await lab.get(frost.key)
            assert envelope is not None
            found = decode_part(envelope.status, ModelStatus)
            return (found.runs, found.problem, [*found.nodes]) == (9, "", ["n1"])

        def move(envelope: Envelope) -> None:
            envelope.spec = msgspec.Raw(msgspec.json.encode(DeviceSpec(node="n1", model="fridge")))

        async def is_over() -> bool:
            envelope = await lab.get(fridge.key)
            return envelope is not None and not decode_part(envelope.spec, DeviceSpec).desired

        await lab.until(drifts)
        await lab.until(is_counted)
        await lab.until(is_summed_up)
        await lab.change(other.key, move)
        await lab.until(is_without_the_node_that_it_left)
        await lab.until(is_over, 400.0)
        assert not (await status()).drift


async def test_a_function_whose_topics_no_device_can_send_says_so_until_one_can(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put("devicemodel", "fridge", MODEL)
        topics = ["weft/default/fridge/reported/setpoint"]
        spec = FunctionSpec(runtime="python3.11", handler="a.b", code="a" * 64, topics=topics)
        made = await lab.put("function", "handler", spec)

        async def says() -> str | None:
            envelope = await lab.get(made.key)
            found = envelope.condition("TopicsFit") if envelope is not None else None
            return None if found is None else found.message

        async def is_said() -> bool:
            return await says() == f"{topics[0]}: there is no device fridge"

        async def is_over() -> bool:
            return await says() == ""

        await lab.until(is_said)
        await lab.put("device", "fridge", DeviceSpec(node="n1", model="fridge"))
        await lab.until(is_over)


async def test_a_rollout_waits_for_its_model_and_sets_each_device_once(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        devices = [await lab.put("device", f"f{n}", DeviceSpec(node="n1", model="fridge")) for n in range(2)]
        given = DeviceRolloutSpec(model="fridge", set={"setpoint": 4}, percent=100)
        rollout = await lab.put("devicerollout", "colder", given)

        async def status() -> DeviceRolloutStatus:
            envelope = await lab.get(rollout.key)
            assert envelope is not None
            return decode_part(envelope.status, DeviceRolloutStatus)

        async def has_a_problem() -> bool:
            return "fridge" in (await status()).problem

        async def are_set() -> bool:
            found = [await lab.get(one.key) for one in devices]
            return all(one is not None and decode_part(one.spec, DeviceSpec).desired for one in found)

        async def is_done() -> bool:
            return (await status()).phase == "Done"

        await lab.until(has_a_problem)
        await lab.put("devicemodel", "fridge", MODEL)
        await lab.until(are_set)
        for one in devices:
            await report(lab, one.key, DeviceReport(phase="Online", seen_at=lab.clock.now(), reported={"setpoint": 4}))
        await lab.until(is_done)
        assert (await status()).states == "cc"
