"""Alert rules from their evaluator's findings to what is due, through the store: with kills, and an evaluator that is away.

What the evaluator finds is played here; ``test_alert_evaluation.py`` has the real one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.controllers_lab import Lab

from weft.controllers.alert.controller import AWAY_SECONDS, KEEP_SILENCE_SECONDS, Unevaluated
from weft.controllers.alert.due import Addressee, list_due, note_sent
from weft.informer.cache import Cache
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import Item, make_view
from weft.kinds.alert_rule import AlertRuleStatus
from weft.launch.store.engine import LEADER_LEASE
from weft.objects.envelope import Envelope, decode_part
from weft.objects.errors import Unavailable
from weft.telemetry.metrics.evaluator import Evaluated, FoundSeries


class PlayedEvaluator:
    """Finds for each rule that it was given the VMs in ``bad``."""

    interval = 10.0

    def __init__(self) -> None:
        self.bad: list[str] = []
        self.rules: list[dict[str, Any]] = []
        self.is_away = self.is_full = False

    def write_rules(self, document: bytes) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")
        self.rules = [rule for group in msgspec.json.decode(document)["groups"] for rule in group["rules"]]

    async def read(self) -> dict[str, Evaluated]:
        if self.is_away:
            raise Unavailable("the evaluator of alert rules doesn't answer")
        found = [FoundSeries({"vm": vm}, 1.0, True, 0.0) for vm in self.bad]
        return {rule["alert"]: Evaluated(rule["expr"], float(rule["for"][:-1]), "", found) for rule in self.rules}


async def begin(lab: Lab, evaluator: object) -> None:
    await lab.kill_controllers()
    lab.start_controllers(evaluator=evaluator)


async def put_rule(lab: Lab, name: str = "full", **spec: Any) -> Envelope:
    return await lab.put("alertrule", name, {"expr": "weft_x > 0", **spec})


async def read_rule(lab: Lab, rule: Envelope) -> tuple[AlertRuleStatus, str]:
    """Its status, and the reason of its condition."""
    found = await lab.get(rule.key)
    assert found is not None
    condition = found.condition("Evaluated")
    return decode_part(found.status, AlertRuleStatus), condition.reason if condition is not None else ""


async def until_state(lab: Lab, rule: Envelope, state: str) -> AlertRuleStatus:
    async def reached() -> bool:
        return (await read_rule(lab, rule))[0].state == state

    await lab.until(reached)
    return (await read_rule(lab, rule))[0]


async def until_reason(lab: Lab, rule: Envelope, reason: str) -> None:
    async def reached() -> bool:
        return (await read_rule(lab, rule))[1] == reason

    await lab.until(reached, 2 * AWAY_SECONDS)


async def test_an_alert_fires_is_sent_and_is_over(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        evaluator = PlayedEvaluator()
        await begin(lab, evaluator)
        rule = await put_rule(lab)
        silence = await lab.put("silence", "old", {"rule": "x", "until": lab.clock.now() - KEEP_SILENCE_SECONDS - 1})
        await lab.until_gone(silence.key)
        evaluator.bad = ["web"]
        status = await until_state(lab, rule, "firing")
        assert [alert.labels for alert in status.alerts] == [{"vm": "web"}]
        await lab.kill_controllers()
        await send_all(lab, rule)
        assert (await read_rule(lab, rule))[0].sent == {"ops": status.notices[-1].id}
        await begin(lab, evaluator)
        evaluator.bad = []
        status = await until_state(lab, rule, "inactive")
        assert lab.journal.reasons("full") == ["AlertFiring", "AlertResolved"]


async def send_all(lab: Lab, rule: Envelope) -> int:
    """As a sender of notifications does it, who leads; how many were due."""
    cache = Cache(lab.store, make_view(), lab.clock)
    lease = LeaderLease(lab.store, cache, lab.journal, lab.clock, LEADER_LEASE, "sender")
    running = asyncio.ensure_future(cache.run())
    beginning = asyncio.ensure_future(lease.begin())
    while not beginning.done():
        await asyncio.sleep(0)
        if lab.clock.next_in() < 60:
            lab.clock.advance(lab.clock.next_in())
    item: Item | None = cache.view.get(rule.key)
    assert item is not None
    due = list(list_due(item, [Addressee("ops", 0.0)], [], lab.clock.now()))
    for name, notice in due:
        while (item := cache.view.get(rule.key)) is not None:
            commit = note_sent(item, {name: notice.id})
            if commit is None:
                break
            await lease.perform([commit])
    await lease.end()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return len(due)


async def test_a_server_that_is_killed_before_it_has_sent_sends_once_not_never(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        evaluator = PlayedEvaluator()
        await begin(lab, evaluator)
        rule = await put_rule(lab)
        evaluator.bad = ["web"]
        await until_state(lab, rule, "firing")
        for _ in range(3):  # each new server finds the same state
            await begin(lab, evaluator)
            await lab.pass_time(30)
        await lab.kill_controllers()
        assert (await send_all(lab, rule), await send_all(lab, rule)) == (1, 0)
        assert lab.journal.reasons("full") == ["AlertFiring"]


async def test_an_evaluator_that_is_away_ends_no_alert_and_is_said_so_after_a_while(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        evaluator = PlayedEvaluator()
        await begin(lab, evaluator)
        rule = await put_rule(lab)
        evaluator.bad = ["web"]
        await until_state(lab, rule, "firing")
        evaluator.is_away = True
        await lab.pass_time(10)
        assert await read_rule(lab, rule) == (await until_state(lab, rule, "firing"), "Evaluated")
        await until_reason(lab, rule, "evaluatorAway")
        assert (await read_rule(lab, rule))[0].state == "firing"
        evaluator.is_away = False
        await until_reason(lab, rule, "Evaluated")
        assert lab.journal.reasons("full") == ["AlertFiring"]


async def test_rules_that_a_full_disk_takes_not_are_said_so_and_written_later(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        evaluator = PlayedEvaluator()
        evaluator.is_full = True
        await begin(lab, evaluator)
        rule = await put_rule(lab)
        await until_reason(lab, rule, "rulesNotWritten")
        evaluator.is_full = False
        await until_reason(lab, rule, "Evaluated")
        evaluator.is_full, evaluator.bad = True, ["db"]
        late = await put_rule(lab, "late")
        await until_reason(lab, late, "rulesNotWritten")
        await until_state(lab, rule, "firing")  # those from before go on
        evaluator.is_full, evaluator.bad = False, ["web"]
        await until_state(lab, rule, "firing")
        await until_reason(lab, rule, "Evaluated")


async def test_a_server_without_a_history_says_that_nothing_is_evaluated(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await begin(lab, Unevaluated("metricsOff", "nothing evaluates alert rules"))
        rule = await put_rule(lab)
        await until_reason(lab, rule, "metricsOff")
        assert (await read_rule(lab, rule))[0].state == "inactive"


@pytest.mark.long
async def test_a_storm_writes_a_rule_once_and_keeps_it_small(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        evaluator = PlayedEvaluator()
        await begin(lab, evaluator)
        rule = await put_rule(lab)
        evaluator.bad = [f"vm-{number:05}" for number in range(10_000)]
        status = await until_state(lab, rule, "firing")
        assert (status.firing, len(status.alerts), len(status.notices)) == (10_000, 100, 1)
        found = await lab.get(rule.key)
        await lab.pass_time(60)
        again = await lab.get(rule.key)
        assert found is not None
        assert again is not None
        assert (again.revision, len(again.status) < 40_000) == (found.revision, True)
