"""Requests that name a project run out and come back within a second; who has no right there can't use them up."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from tests.scenario.controllers_lab import VirtualClock

from weft.api.state.request_rates import RequestRates
from weft.contracts.store import Delete, Put
from weft.kinds.permissions import find_built_in
from weft.kinds.quota import QUOTA, QuotaSpec, quota_key
from weft.objects.envelope import encode_envelope
from weft.objects.errors import Throttled
from weft.objects.roles import Grant
from weft.store.memory import MemoryStore
from weft.trust.credentials import Actor


def person(role: str, project: str | None = "lab") -> Actor:
    permissions = find_built_in(role, project is None)
    assert permissions is not None
    return Actor("person", "ann", "t1", (Grant(role, project, permissions),))


class Lab:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.store = MemoryStore(self.clock)
        self.rates = RequestRates(self.store, self.clock)

    async def limit(self, most: int | None) -> None:
        """Set the limit of the project lab, or delete its quota."""
        quota = QUOTA.make("project", QuotaSpec(requests_per_second=most), 0.0, project="lab")
        key = quota_key("lab")
        await self.store.commit([Delete(key)] if most is None else [Put(key, encode_envelope(quota))])
        for _ in range(100):
            await asyncio.sleep(0)

    def count(self, actor: Actor, most: int, project: str = "lab") -> int:
        """How many of ``most`` requests at once pass."""
        passed = 0
        for _ in range(most):
            try:
                self.rates.take(actor, project)
                passed += 1
            except Throttled:
                pass
        return passed


@pytest.fixture
async def lab() -> Lab:
    lab = Lab()
    await lab.store.open()
    lab.task = asyncio.ensure_future(lab.rates.run())  # type: ignore[attr-defined]
    return lab


async def test_as_many_pass_as_the_limit_and_they_come_back_within_a_second(lab: Lab) -> None:
    ann = person("editor")
    assert lab.count(ann, 50) == 50 and not lab.rates.has_limits
    await lab.limit(10)
    assert lab.rates.has_limits and lab.count(ann, 50) == 10
    with pytest.raises(Throttled) as caught:
        lab.rates.take(ann, "lab")
    assert caught.value.token == "quotaExceeded"
    assert caught.value.message == "project lab: requests_per_second: 10 of 10 used, 1 more requested"
    assert caught.value.retry_after_seconds == pytest.approx(0.1)
    lab.clock.advance(0.3)
    assert lab.count(ann, 50) == 3
    lab.clock.advance(60)
    assert lab.count(ann, 50) == 10, "no more than one second's are saved up"
    assert lab.count(ann, 50, "other") == 50


async def test_all_people_of_a_project_share_them_and_nobody_else_uses_them_up(lab: Lab) -> None:
    await lab.limit(4)
    node, editor = Actor("node", "n1", "u1"), person("editor", None)
    limited = msgspec.structs.replace(editor, limit=editor.grants[0]._replace(project="other"))
    assert lab.count(limited, 20) == 20
    for other in (person("admin", "other"), person("fabric-admin", None), node, Actor("stranger", "", "")):
        assert lab.count(other, 20) == 20
    assert lab.count(person("viewer"), 2) == 2
    assert lab.count(person("invoker"), 1) == 1
    assert lab.count(person("auditor", None), 9) == 1


async def test_a_project_may_have_a_quota_until_it_is_known_that_there_is_none(lab: Lab) -> None:
    key = quota_key("lab")
    assert RequestRates(lab.store, lab.clock).may_have_quota(key), "nothing was read yet"
    await lab.limit(None)
    assert not lab.rates.may_have_quota(key)
    lab.rates.note(QUOTA.make("project", QuotaSpec(cpu=1), 0.0, project="lab"))
    assert lab.rates.may_have_quota(key) and not lab.rates.has_limits
    assert lab.count(person("editor"), 50) == 50


async def test_a_new_limit_counts_at_once_and_none_ends_it(lab: Lab) -> None:
    ann = person("editor")
    await lab.limit(2)
    assert lab.count(ann, 9) == 2
    await lab.limit(5)
    assert lab.count(ann, 9) == 5
    await lab.limit(None)
    assert lab.count(ann, 9) == 9
